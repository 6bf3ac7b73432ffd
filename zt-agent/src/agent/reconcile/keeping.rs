//! Keeps what is in force for the next start.
//!
//! What an agent finds at its start must not be older than what the kernel
//! enforces: policies that were taken back since would count again. So what is
//! about to be put in force is written first. If that cannot be, what was kept
//! before goes, and what is in force is kept as soon as it can be.

use super::{Reconciler, StepError};
use crate::source::documents::Documents;

impl Reconciler {
    /// Puts documents in force by `change`.
    pub(super) fn keeping(
        &mut self,
        documents: &Documents,
        change: impl FnOnce(&mut Self) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let generation = self.enforcer.generation();
        let written = self.accepted.write_next(documents, generation);
        if written.is_err() {
            // What is taken back does not wait for a disk.
            self.unkept = true;
            if let Err(error) = self.accepted.withdraw() {
                tracing::error!(%error, "the next start may take what was accepted before for what is in force");
            }
        }
        // At a start nothing of this agent's is in force yet.
        let is_change = self.in_force.is_some();
        let result = change(self).and_then(|()| {
            // An agent that dies here shall see that these are in force, also if
            // they come to the same rows.
            if is_change && self.enforcer.generation() == generation {
                self.enforcer.advance()?;
            }
            Ok(())
        });
        let kept = match &result {
            Ok(()) if written.is_ok() => self.accepted.accept_next(),
            _ => self.accepted.discard_next(),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "what is in force is kept anew");
            self.unkept = true;
        } else if result.is_ok() && written.is_ok() {
            self.unkept = false;
        }
        result
    }

    /// Tries until it is kept.
    pub(super) fn keep(&mut self) {
        let kept = match &self.in_force {
            Some(in_force) if self.unkept => self.accepted.save(&in_force.documents),
            _ => Ok(()),
        };
        self.unkept &= kept.is_err();
        self.errors.kept = kept.err().map(|error| {
            format!("what is in force now cannot be kept for the next start: {error}; make room there, or repair it")
        });
    }
}
