//! Keeps what is in force for the next start.
//!
//! What an agent finds at its start must not be older than what the kernel
//! enforces: policies that were taken back since would count again. So what was
//! kept goes before something else is put in force, and what that is, is kept
//! as soon as it can be.

use super::Reconciler;

impl Reconciler {
    /// Puts something else in force by `change`.
    pub(super) fn keeping<T, E>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        if let Err(error) = self.accepted.withdraw() {
            // What is taken back must not wait for a disk.
            tracing::error!(%error, "the next start may take what was accepted before for what is in force");
        }
        let result = change(self);
        if result.is_ok() {
            self.unkept = true;
        } else if !self.unkept
            && let Err(error) = self.accepted.restore()
        {
            tracing::error!(%error, "what is in force is kept anew");
            self.unkept = true;
        }
        result
    }

    /// Tries until it is kept.
    pub(super) fn keep(&mut self) {
        let Some(in_force) = self.in_force.as_ref().filter(|_| self.unkept) else {
            return;
        };
        let saved = self.accepted.save(&in_force.documents);
        self.unkept = saved.is_err();
        self.errors.kept = saved.err().map(|error| {
            format!("what is in force now cannot be kept for the next start: {error}; make room there, or repair it")
        });
    }
}
