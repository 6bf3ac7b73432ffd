//! Model → names → numbers → tables → kernel, all at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use zt_common::{identity::Number, version::Generation};

use super::board::Board;
use crate::{
    audit::Names,
    compile::{self, CompileError, Compiled, Lack, Needs, Room, Shortage},
    kernel::{
        KernelError,
        keeper::{GiveError, Keeper},
        repair::{Repair, What},
        store::{Applied, Store},
        trust::TrustMap,
    },
    model::{Name, NodeModel, Numbers, Problem, SpiffeId, names::OutOfNumbers},
    revoke::cutter::{Cutter, InForce},
    source::{documents::DocumentsError, quarantine::Quarantine},
};

/// Why a step did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("{0}")]
    Documents(#[from] DocumentsError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Lack(#[from] Lack),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("there are no policy and identity files without errors yet; repair them first")]
    NothingToEnforce,
}

impl StepError {
    /// Trying again without a change may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Kernel(_) | Self::Lack(Lack::Numbers(_)))
    }
}

/// What a change did.
pub struct Outcome {
    pub applied: Applied,
    /// What is probably not meant.
    pub warnings: Vec<Problem>,
    pub shortage: Option<Shortage>,
}

/// How often more of a model is tried after a part of it.
const MORE: usize = 4;

/// What went has made room. The model is in force already: an error changes only
/// that not as much of it is as could be.
fn with_more(
    mut outcome: Outcome,
    mut more: impl FnMut() -> Result<Outcome, StepError>,
) -> Outcome {
    for _ in 0..MORE {
        let Some(shortage) = &mut outcome.shortage else {
            break;
        };
        if outcome.applied.rows == 0 {
            break;
        }
        let more = match more() {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(%error, "what has made room is not used yet");
                shortage.passes = true;
                break;
            }
        };
        let is_all = more.applied.rows == 0;
        outcome = Outcome {
            applied: Applied {
                rows: outcome.applied.rows + more.applied.rows,
                narrows: outcome.applied.narrows || more.applied.narrows,
                ..more.applied
            },
            ..more
        };
        if is_all {
            break;
        }
    }
    outcome
}

/// How long to wait, and how often to look, until events that refer to a
/// number were read: only if there is no other number left.
const ROOM: (u32, Duration) = (100, Duration::from_millis(10));

/// Owner of the store, and so of everything that is enforced.
pub struct Enforcer {
    board: Arc<Board>,
    store: Store,
    keeper: Keeper,
    trust: TrustMap,
    cutter: Cutter,
    limits: compile::Limits,
    /// Who was quarantined in the kernel when it was last looked at; not only
    /// the agent writes there.
    cut_off: Arc<BTreeSet<Number>>,
    /// Enrolled cgroups and their paths.
    paths: BTreeMap<u64, Arc<str>>,
    /// As last published: with those that went.
    published: BTreeMap<u64, Arc<str>>,
    /// Whose names were last published.
    named: Arc<Numbers>,
}

impl Enforcer {
    #[must_use]
    pub fn new(
        board: Arc<Board>,
        store: Store,
        keeper: Keeper,
        trust: TrustMap,
        cutter: Cutter,
        limits: compile::Limits,
    ) -> Self {
        let mut enforcer = Self {
            board,
            store,
            keeper,
            trust,
            cutter,
            limits,
            cut_off: Arc::default(),
            paths: BTreeMap::new(),
            published: BTreeMap::new(),
            named: Arc::default(),
        };
        enforcer.publish();
        enforcer
    }

    /// In force; 0: none.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.store.control().generations().0
    }

    /// The MAC address of the other end of an interface, as the programs know
    /// it.
    #[must_use]
    pub fn mac(&self, interface: u32) -> Option<[u8; 6]> {
        Some(self.store.current().interface.get(&interface)?.mac)
    }

    /// Indices of the interfaces whose workload the programs know.
    #[must_use]
    pub fn interfaces(&self) -> BTreeSet<u32> {
        self.store.current().interface.keys().copied().collect()
    }

    /// The cgroup of the workload that the programs know behind an interface.
    #[must_use]
    pub fn cgroup_behind(&self, interface: u32) -> Option<u64> {
        Some(self.store.current().interface.get(&interface)?.cgroup)
    }

    /// The names of the reserved numbers were never written.
    fn is_fresh(&self) -> bool {
        self.generation() == 0
    }

    /// Makes the kernel enforce the model, or as much of it as fits: what it
    /// takes away in any case.
    ///
    /// # Errors
    /// What was in force stays in force.
    pub fn apply(
        &mut self,
        model: &NodeModel,
        quarantine: Option<&Quarantine>,
    ) -> Result<Outcome, StepError> {
        let prepared = compile::compile_what_fits(model, self)?;
        self.follow_paths(model);
        let outcome = self.put_in_force(prepared, quarantine)?;
        Ok(with_more(outcome, || self.apply_more(model, quarantine)))
    }

    /// Counts a generation without a change.
    ///
    /// # Errors
    /// When there is none left.
    pub fn advance(&mut self) -> Result<(), StepError> {
        Ok(self.store.advance()?)
    }

    fn apply_more(
        &mut self,
        model: &NodeModel,
        quarantine: Option<&Quarantine>,
    ) -> Result<Outcome, StepError> {
        let prepared = compile::compile_what_fits(model, self)?;
        self.put_in_force(prepared, quarantine)
    }

    fn put_in_force(
        &mut self,
        (compiled, shortage): (Compiled, Option<Shortage>),
        quarantine: Option<&Quarantine>,
    ) -> Result<Outcome, StepError> {
        self.publish();
        // Before the rows: who is quarantined never has a moment of freedom.
        self.follow_quarantine(quarantine)?;
        let mut applied = self.store.apply(compiled.tables, compiled.takes_over)?;
        self.cut(applied.narrows);
        let tidied = self.take_numbers_back(|keeper, store| keeper.tidy(store, false));
        if let Err(error) = tidied {
            tracing::warn!(%error, "numbers that nobody needs stay taken for now");
        }
        applied.generation = self.generation();
        Ok(Outcome {
            applied,
            warnings: compiled.warnings,
            shortage,
        })
    }

    /// Network namespaces in which there are workloads.
    pub fn declare(&self, namespaces: BTreeSet<PathBuf>) {
        self.cutter.declare(namespaces);
    }

    /// Tells who ends connections what is in force now.
    fn cut(&self, narrowed: bool) {
        if self.is_fresh() {
            return;
        }
        let in_force = InForce {
            tables: self.store.snapshot(),
            control: self.store.control().read(),
            quarantined: self.cut_off.clone(),
        };
        self.cutter.follow(in_force, narrowed);
    }

    /// A quick look whether somebody altered what every decision reads: the
    /// control element, and who is quarantined. Puts it right.
    ///
    /// # Errors
    /// When a call fails.
    pub fn check(&mut self, quarantine: Option<&Quarantine>) -> Result<Vec<Repair>, KernelError> {
        let altered = self.store.restore_control();
        if !matches!(altered, Ok(false)) {
            self.cut(true);
        }
        let mut repairs = self.store.take_repairs();
        let quarantined = self.follow_quarantine(quarantine);
        if let Ok(again @ 1..) = quarantined {
            let found = format!("zt_trust_v1: {again} identities were let out of quarantine");
            repairs.push(Repair::new(What::Quarantine, found));
        }
        for repair in &repairs {
            self.board.facts().repaired(repair);
        }
        altered.and(quarantined)?;
        Ok(repairs)
    }

    /// Reads everything back that the agent writes, and restores what somebody
    /// altered behind our back.
    ///
    /// # Errors
    /// When a call fails.
    pub fn restore(&mut self, quarantine: Option<&Quarantine>) -> Result<(), KernelError> {
        self.check(quarantine)?;
        let rows = self.store.restore();
        let mut repairs = self.store.take_repairs();
        if !repairs.is_empty() {
            self.cut(true);
        }
        let names = self.keeper.restore_names();
        if let Ok(count @ 1..) = names {
            let found = format!("zt_identity_v1, zt_rule_v1: {count} names were altered");
            repairs.push(Repair::new(What::Names, found));
        }
        for repair in &repairs {
            self.board.facts().repaired(repair);
        }
        self.board.facts().restored += rows? as u64;
        names.map(drop)
    }

    fn take_numbers_back(
        &mut self,
        how: impl FnOnce(&mut Keeper, &mut Store) -> Result<bool, KernelError>,
    ) -> Result<bool, KernelError> {
        // Nobody may see counts that have gone from one name and not yet come
        // to the other.
        let board = self.board.clone();
        let _counting = board.counting();
        let came_back = how(&mut self.keeper, &mut self.store)?;
        if came_back {
            self.publish();
        }
        Ok(came_back)
    }

    /// Once per change, before the kernel uses them. Those that go keep their
    /// names until the next one: events of theirs may still be on their way.
    fn follow_paths(&mut self, model: &NodeModel) {
        let paths = model.workloads.iter().map(|w| (w.cgroup, w.path.clone()));
        let paths: BTreeMap<u64, Arc<str>> = paths.collect();
        self.published = std::mem::replace(&mut self.paths, paths.clone());
        self.published.extend(paths);
    }

    fn publish(&mut self) {
        let (numbers, workloads) = (self.keeper.snapshot(), self.published.clone());
        let names = if Arc::ptr_eq(&numbers, &self.named) {
            self.board.names.borrow().beside(workloads)
        } else {
            Names::new(&numbers, workloads)
        };
        self.named = numbers;
        self.board.names.send_replace(Arc::new(names));
    }

    /// Cuts off everybody whom the file names, as far as they have numbers, and
    /// the Services that lead to whoever is cut off. Gives how many were not. One
    /// that cannot be read (`None`) names nobody, and releases nobody.
    ///
    /// # Errors
    /// When a call fails.
    pub fn follow_quarantine(
        &mut self,
        quarantine: Option<&Quarantine>,
    ) -> Result<usize, KernelError> {
        let named = quarantine.iter().flat_map(|file| &file.identities);
        let mut ids: HashSet<&SpiffeId> = named.map(|entry| &entry.spiffe_id.0).collect();
        let known = self.names().map(|(_, number)| number);
        let mut cut_off = self.trust.quarantined(known)?;
        let (mut count, mut people) = (0, 0);
        for (name, number) in self.names() {
            if leads_to_one(name, &ids) && cut_off.insert(number) {
                self.set_quarantined(name, number, true)?;
                count += 1;
            }
            if cut_off.contains(&number)
                && let Name::Spiffe(id) = name
            {
                people += 1;
                // Not only the agent cuts off, and Services come after people.
                ids.insert(id);
            }
        }
        self.board.facts().quarantined = people;
        if cut_off != *self.cut_off {
            let more = !cut_off.is_subset(&self.cut_off);
            self.cut_off = Arc::new(cut_off);
            self.cut(more);
        }
        Ok(count)
    }

    /// Releases those whom `now` no longer names. Who is cut off in the kernel
    /// and was not in the file before is being added, or the disk is full: he
    /// stays so, until the next start (`before` is `None` then).
    ///
    /// # Errors
    /// When a call fails.
    pub fn release(
        &self,
        before: Option<&Quarantine>,
        now: &Quarantine,
    ) -> Result<(), KernelError> {
        let was = |id| before.is_none_or(|before| before.contains(id));
        for (name, number) in self.names() {
            let stays = name.identities().any(|id| now.contains(id));
            if !stays && name.identities().any(was) && self.trust.is_quarantined(number)? {
                self.set_quarantined(name, number, false)?;
            }
        }
        Ok(())
    }

    /// Of all who can be quarantined: identities, and then the Services that lead
    /// to them.
    fn names(&self) -> impl Iterator<Item = (&Name, Number)> {
        let numbers = self.keeper.numbers();
        let of = |services: bool| {
            let names = numbers.names();
            names.filter(move |(name, _)| match name {
                Name::Spiffe(_) => !services,
                Name::Service(_) => services,
                Name::Class(_) => false,
            })
        };
        of(false).chain(of(true))
    }

    fn set_quarantined(
        &self,
        name: &Name,
        number: Number,
        wanted: bool,
    ) -> Result<(), KernelError> {
        self.trust.set(number, wanted)?;
        tracing::warn!(spiffe_id = %name, quarantined = wanted, "quarantine");
        Ok(())
    }
}

/// Whether it is one of these, or a Service that leads to one. There are many
/// Services, with many behind them, and as a rule none of these.
fn leads_to_one(name: &Name, these: &HashSet<&SpiffeId>) -> bool {
    !these.is_empty() && name.identities().any(|id| these.contains(id))
}

impl compile::Stock for Enforcer {
    type Error = StepError;

    fn give(&mut self, needs: &Needs) -> Result<Result<(), OutOfNumbers>, StepError> {
        let fresh = self.is_fresh();
        let mut given = self.keeper.give(needs, fresh);
        if matches!(given, Err(GiveError::Out(_))) {
            self.make_room(needs)?;
            given = self.keeper.give(needs, fresh);
        }
        match given {
            Ok(()) => Ok(Ok(())),
            Err(GiveError::Out(out)) => Ok(Err(out)),
            Err(GiveError::Kernel(error)) => Err(error.into()),
        }
    }

    /// Waits until they are back.
    fn make_room(&mut self, needs: &Needs) -> Result<(), StepError> {
        if self.is_fresh() {
            return Ok(());
        }
        for _ in 0..ROOM.0 {
            let back = self.take_numbers_back(|keeper, store| keeper.make_room(store, needs))?;
            if back || !self.keeper.waits() {
                break;
            }
            thread::sleep(ROOM.1);
        }
        Ok(())
    }

    fn numbers(&self) -> &Numbers {
        self.keeper.numbers()
    }

    fn room(&self) -> Room<'_> {
        Room {
            current: self.store.current(),
            limits: &self.limits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(rows: usize) -> Outcome {
        Outcome {
            applied: Applied {
                generation: 7,
                rows,
                narrows: rows == 3,
            },
            warnings: Vec::new(),
            shortage: Some(Shortage::default()),
        }
    }

    #[test]
    fn what_is_in_force_is_so_though_more_of_it_cannot_be() {
        let outcome = with_more(short(3), || Err(StepError::NothingToEnforce));
        assert_eq!((outcome.applied.rows, outcome.applied.narrows), (3, true));
        assert!(outcome.shortage.unwrap().passes, "it is tried again");
    }

    #[test]
    fn a_service_is_cut_off_for_any_one_behind_it() {
        let id = |name: &str| format!("spiffe://td/{name}").parse::<SpiffeId>().unwrap();
        let service = "service ns/web (spiffe://td/a at 1, spiffe://td/b at 1)";
        let service = Name::Service(Arc::new(service.parse().unwrap()));
        let class = Name::Class("10.0.0.0/8".parse().unwrap());
        let (a, b, c) = (id("a"), id("b"), id("c"));
        let cut = |name: &Name, ids: &[&SpiffeId]| {
            leads_to_one(name, &ids.iter().copied().collect::<HashSet<_>>())
        };
        assert!(cut(&service, &[&a]) && cut(&service, &[&c, &b]));
        assert!(!cut(&service, &[]) && !cut(&service, &[&c]));
        assert!(cut(&Name::Spiffe(a.clone()), &[&a]) && !cut(&Name::Spiffe(a), &[&b]));
        assert!(!cut(&class, &[&b]));
    }

    #[test]
    fn it_is_tried_again_while_that_changes_anything() {
        let mut rows = [2, 0, 9].into_iter();
        let outcome = with_more(short(3), || Ok(short(rows.next().unwrap())));
        assert_eq!((outcome.applied.rows, outcome.applied.narrows), (5, true));
        let outcome = with_more(short(1), || Ok(short(1)));
        assert_eq!(outcome.applied.rows, 1 + MORE);
    }
}
