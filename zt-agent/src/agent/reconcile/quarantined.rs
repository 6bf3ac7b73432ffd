//! Follows the quarantine file.

use super::Reconciler;
use crate::{
    kernel::KernelError,
    source::quarantine::{self, Quarantine},
};

impl Reconciler {
    /// Follows the quarantine file at once, whatever becomes of the policies.
    pub(super) fn read_quarantine(&mut self) {
        let path = quarantine::path(&self.config.state_directory);
        let followed = match Quarantine::read(&path) {
            Ok(quarantine) => self
                .follow_quarantine(quarantine)
                .map_err(|error| error.to_string()),
            // Nobody is released by a damaged file.
            Err(error) => {
                self.recall_quarantine();
                Err(error.to_string())
            }
        };
        self.errors.quarantine = followed.err();
    }

    fn follow_quarantine(&mut self, now: Quarantine) -> Result<(), KernelError> {
        let released = self.enforcer.release(self.quarantine.as_ref(), &now);
        if self.quarantine.as_ref() != Some(&now) {
            let kept = quarantine::last_read(&self.config.state_directory);
            if let Err(error) = now.write(&kept) {
                tracing::error!(%error, "the quarantine list is not kept for a start with a damaged one");
            }
        }
        let now = self.quarantine.insert(now);
        self.enforcer.follow_quarantine(Some(now)).map(drop)?;
        released
    }

    /// After a reboot the kernel knows nobody: the list that was read last
    /// counts until the file is repaired.
    fn recall_quarantine(&mut self) {
        let kept = quarantine::last_read(&self.config.state_directory);
        if self.quarantine.is_none()
            && kept.exists()
            && let Ok(last) = Quarantine::read(&kept)
        {
            self.quarantine = Some(last);
        }
    }
}
