//! Quarantine: one map write, effective on the next packet.

use std::os::fd::{AsFd, OwnedFd};

use zt_common::identity::{LIMIT, Number, Trust};

use super::{KernelError, pins::Pins, sys};

/// `zt_trust_v1`.
#[derive(Debug)]
pub struct TrustMap(OwnedFd);

impl TrustMap {
    /// # Errors
    /// When it is not pinned.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        sys::get_pinned(&pins.map("zt_trust_v1"))
            .map(Self)
            .map_err(|_| KernelError::NotRunning(pins.directory().into()))
    }

    /// Whether `number` is quarantined in the kernel now.
    ///
    /// # Errors
    /// When the call fails.
    pub fn is_quarantined(&self, number: Number) -> Result<bool, KernelError> {
        let trust: Option<Trust> = sys::map_lookup(self.0.as_fd(), &number)
            .map_err(KernelError::call("lookup", "zt_trust_v1"))?;
        Ok(trust.is_some_and(|trust| trust.quarantined != 0))
    }

    /// Quarantines `number`, or lifts it.
    ///
    /// # Errors
    /// When the call fails.
    pub fn set(&self, number: Number, quarantined: bool) -> Result<(), KernelError> {
        let trust = Trust {
            quarantined: u32::from(quarantined),
        };
        sys::map_update(self.0.as_fd(), &number, &trust)
            .map_err(KernelError::call("update", "zt_trust_v1"))
    }

    /// Every number that is quarantined.
    ///
    /// # Errors
    /// When a call fails.
    pub fn quarantined(
        &self,
        among: impl IntoIterator<Item = Number>,
    ) -> Result<Vec<Number>, KernelError> {
        let mut found = Vec::new();
        for number in among.into_iter().filter(|number| *number < LIMIT) {
            if self.is_quarantined(number)? {
                found.push(number);
            }
        }
        Ok(found)
    }
}
