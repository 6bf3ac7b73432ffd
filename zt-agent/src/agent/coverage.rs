//! Keeps the programs for frames at the interfaces of workloads, and the
//! default drop in place that closes the moment before they are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::board::{Board, InterfaceFact};
use crate::{
    compile,
    document::Config,
    kernel::{
        KernelError, default_drop,
        frames::{Fault, Frames},
        repair::{Repair, What},
    },
    model::{InterfacePattern, InterfaceSpec, Mode, WorkloadSpec},
    netlink::links::{self, Link},
    source::identities::Resolved,
};

/// See the module.
pub struct Coverage {
    frames: Frames,
    board: Arc<Board>,
    managed: Vec<InterfacePattern>,
    mark: u32,
    /// The default drop stands only on a node that enforces.
    drops: bool,
    /// Covered by this agent: the programs are its own.
    done: BTreeSet<u32>,
}

impl Coverage {
    #[must_use]
    pub fn new(frames: Frames, board: Arc<Board>, config: &Config) -> Self {
        Self {
            frames,
            board,
            managed: config.interfaces.managed.clone(),
            mark: config.interfaces.mark,
            drops: config.mode == Mode::Enforce && !config.interfaces.managed.is_empty(),
            done: BTreeSet::new(),
        }
    }

    /// Puts the default drop in place, or takes away one that an agent with
    /// another configuration left.
    pub fn keep_default_drop(&self) {
        let patterns: &[_] = if self.drops { &self.managed } else { &[] };
        let result = match default_drop::is_in_place(patterns, self.mark) {
            Ok(true) => Ok(()),
            Ok(false) => {
                tracing::info!(managed = ?patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), "the default drop is put in place");
                default_drop::install(patterns, self.mark)
            }
            Err(error) => Err(error),
        };
        let error = match result {
            // A kernel that cannot drop by default has nothing to take away.
            Err(error) if self.drops => Some(error.to_string()),
            _ => None,
        };
        let counters = if self.drops {
            default_drop::counters()
        } else {
            Ok(Vec::new())
        };
        let mut facts = self.board.facts();
        if let Ok(counters) = counters {
            let counted = counters.iter().map(|one| (one.family.name(), one.packets));
            facts.dropped = counted.collect();
        }
        if facts.default_drop_error != error
            && let Some(error) = &error
        {
            tracing::error!("the default drop is not in place: {error}");
        }
        facts.default_drop_error = error;
    }

    /// Covers the interfaces of workloads, and every interface with a managed
    /// name; uncovers the others. `rows`: those that the programs know: at one of
    /// a workload that found no room nothing passes. `is_whole`: every workload's
    /// interfaces are known and found room; if not, one that is there and nobody's
    /// may be somebody's.
    pub fn follow(&mut self, found: &Resolved, rows: &BTreeSet<u32>, is_whole: bool) {
        let links = match links::list() {
            Ok(links) => links,
            Err(error) => {
                tracing::error!(%error, "the interfaces of this node cannot be listed: those that are covered stay so");
                return;
            }
        };
        let mut wanted = self.managed_among(&links);
        let somebodys = |interface: &&InterfaceSpec| {
            rows.contains(&interface.index)
                || compile::owner_of_interface(&found.workloads, interface).is_some()
        };
        for interface in found.interfaces.iter().filter(somebodys) {
            wanted.insert(interface.index, interface.name.to_string());
        }
        for index in leftovers(self.frames.covered(), &wanted, &links, is_whole) {
            if let Err(error) = self.frames.uncover(index) {
                tracing::warn!(index, %error, "the programs of an interface that is no workload's any more stay");
            }
        }
        self.done.retain(|index| wanted.contains_key(index));
        let known = self.board.facts().interfaces.clone();
        let before = |index| {
            let known = known.iter().find(|fact| fact.index == index);
            known.map_or_else(Vec::new, |fact| fact.before.clone())
        };
        let mut facts = Vec::new();
        for (index, name) in wanted {
            let error = self.cover(index, &name).err();
            facts.push(InterfaceFact {
                index,
                name,
                workload: owner(found, rows, index),
                error: error.map(|error| error.to_string()),
                // Until somebody looks again.
                before: before(index),
            });
        }
        self.board.facts().interfaces = facts;
    }

    fn cover(&mut self, index: u32, name: &str) -> Result<(), KernelError> {
        if self.done.contains(&index) {
            return Ok(());
        }
        let result = self.frames.cover(index);
        match &result {
            Ok(()) => {
                tracing::info!(interface = name, "frames are decided here");
                self.done.insert(index);
            }
            // It may be gone again.
            Err(error) => {
                tracing::warn!(interface = name, %error, "the interface is not covered");
            }
        }
        result
    }

    /// What keeps the programs from deciding an interface's frames, as the kernel
    /// says it now. Empty: nothing.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the interface is not there.
    pub fn faults(&self, index: u32) -> Result<Vec<Fault>, KernelError> {
        self.frames.check(index)
    }

    fn managed_among(&self, links: &[Link]) -> BTreeMap<u32, String> {
        let managed = |name: &str| self.managed.iter().any(|pattern| pattern.matches(name));
        links
            .iter()
            .filter(|link| !link.loopback && managed(&link.name))
            .map(|link| (link.index, link.name.clone()))
            .collect()
    }

    /// Looks whether the programs are still there and come first; puts back
    /// what is missing. `true`: something was missing.
    pub fn look(&mut self) -> bool {
        self.keep_default_drop();
        let mut facts = self.board.facts().interfaces.clone();
        let mut lost = false;
        for fact in &mut facts {
            let Ok(faults) = self.frames.check(fact.index) else {
                // Gone, or about to be: the next step sees it.
                continue;
            };
            fact.before.clear();
            let mut altered = Vec::new();
            for fault in faults {
                match fault {
                    Fault::Missing(hook) => altered.push(Repair::new(
                        What::Link,
                        format!("{}, {hook}: our program was taken off", fact.name),
                    )),
                    Fault::Replaced(hook, id) => altered.push(Repair::new(
                        What::Program,
                        format!(
                            "{}, {hook}: program {id} was in the place of ours",
                            fact.name
                        ),
                    )),
                    Fault::Before(hook, what) => fact.before.push(format!("{hook}: {what}")),
                }
            }
            lost |= !altered.is_empty();
            if !altered.is_empty() && !self.done.remove(&fact.index) {
                // It never was as it should be: nobody altered it.
                altered.clear();
            }
            if !self.done.contains(&fact.index) {
                let covered = self.cover(fact.index, &fact.name);
                if covered.is_ok() {
                    let mut facts = self.board.facts();
                    altered.iter().for_each(|repair| facts.repaired(repair));
                }
                fact.error = covered.err().map(|error| error.to_string());
            }
        }
        self.board.facts().interfaces = facts;
        lost
    }
}

fn owner(found: &Resolved, rows: &BTreeSet<u32>, index: u32) -> Option<String> {
    let interface = found.interfaces.iter().find(|i| i.index == index)?;
    let inside = |w: &&WorkloadSpec| w.netns == Some(interface.netns);
    let workload = rows
        .contains(&index)
        .then(|| found.workloads.iter().find(inside))??;
    Some(workload.identity.to_string())
}

/// Which of the `covered` interfaces are to be uncovered: those that are gone,
/// and those that are nobody's.
fn leftovers(
    covered: BTreeSet<u32>,
    wanted: &BTreeMap<u32, String>,
    links: &[Link],
    is_whole: bool,
) -> Vec<u32> {
    let is_there = |index| links.iter().any(|link| link.index == index);
    let others = covered.into_iter().filter(|i| !wanted.contains_key(i));
    others.filter(|i| is_whole || !is_there(*i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_may_be_somebodys_stays_covered_and_one_that_is_gone_does_not() {
        let wanted = BTreeMap::from([(5, "veth5".to_owned())]);
        let links = [5, 6].map(|index| Link {
            index,
            ..Link::default()
        });
        let left = |is_whole| leftovers([5, 6, 7].into(), &wanted, &links, is_whole);
        assert_eq!(left(true), [6, 7]);
        assert_eq!(left(false), [7]);
    }
}
