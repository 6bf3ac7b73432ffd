//! Looks at the attach points and at what is pinned: a program of somebody
//! else that runs after ours can turn a deny into an allow, and a link that
//! somebody detached enforces nothing.

use std::sync::Arc;

use super::board::Board;
use crate::kernel::{
    KernelError,
    cgroup::Root,
    held::{Found, Held},
    links::{self, PointStatus},
    load::Loaded,
    pins::Pins,
};

/// Keeps the programs loaded, to attach them again.
pub struct Guard {
    pub loaded: Loaded,
    pub root: Arc<Root>,
    pub pins: Pins,
    pub board: Arc<Board>,
    pub held: Held,
}

impl Guard {
    /// Attaches the programs, or replaces those of an agent before this one; see
    /// [`links::attach`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, before_packets: impl FnOnce(&Self)) -> Result<(), KernelError> {
        let before_packets = || before_packets(self);
        let attached = links::attach(&self.loaded, &self.root, &self.pins, before_packets)?;
        for (point, what) in attached {
            tracing::debug!(hook = point.hook, ?what, "program");
        }
        self.held.hold_links(&self.pins)?;
        tracing::info!(root = %self.root.path.display(), "enforcing below this cgroup");
        Ok(())
    }

    /// Looks once, and puts back what is missing.
    pub fn look(&mut self) {
        let found = self.held.look(&self.loaded, &self.root, &self.pins);
        self.note(found);
        match links::status(&self.root, &self.pins) {
            Ok(status) => self.tell(&status),
            Err(error) => self.fail(&error),
        }
        self.follow_pins();
    }

    /// Everything is enforced while the file system with the pins is away; it
    /// has to be said, because it ends with this process.
    fn follow_pins(&self) {
        match self.pins.follow() {
            Ok(false) => {}
            Ok(true) => tracing::error!(
                directory = %self.pins.directory().display(),
                "another bpf file system is mounted where the maps and links were pinned: they are pinned in it now"
            ),
            Err(error) => {
                let text = error.to_string();
                let mut facts = self.board.facts();
                if facts.unpinned.is_none() {
                    tracing::error!("{text}");
                }
                facts.unpinned = Some(text);
                return;
            }
        }
        self.board.facts().unpinned = None;
    }

    fn note(&self, found: Found) {
        let mut facts = self.board.facts();
        for repair in &found.repairs {
            facts.repaired(repair);
        }
        for text in &found.damage {
            if !facts.damage.contains(text) {
                tracing::error!("{text}");
            }
        }
        facts.damage = found.damage;
    }

    fn tell(&self, status: &[PointStatus]) {
        let strangers: Vec<(&'static str, usize)> = status
            .iter()
            .filter(|point| !point.strangers.is_empty())
            .map(|point| (point.point.hook, point.strangers.len()))
            .collect();
        let mut facts = self.board.facts();
        if facts.strangers != strangers && !strangers.is_empty() {
            tracing::error!(
                ?strangers,
                "programs that are not ours are attached to the managed root: one that runs after ours can allow what we deny; look at them with `bpftool cgroup show {}`",
                self.root.path.display()
            );
        }
        facts.strangers = strangers;
        facts.missing_links = missing(status);
        facts.links_error = None;
    }

    fn fail(&self, error: &KernelError) {
        let text = format!(
            "the attach points cannot be looked at or restored: {error}; if {} was removed, restart the agent",
            self.root.path.display()
        );
        let mut facts = self.board.facts();
        if facts.links_error.as_ref() != Some(&text) {
            tracing::error!("{text}");
        }
        facts.links_error = Some(text);
    }
}

fn missing(status: &[PointStatus]) -> Vec<&'static str> {
    let missing = status.iter().filter(|point| point.program_id.is_none());
    missing.map(|point| point.point.hook).collect()
}
