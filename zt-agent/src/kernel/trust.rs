//! Quarantine: one map write, effective on the next packet.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
};

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

    /// Every number that is quarantined, read in one go: 0.5 ms.
    ///
    /// # Errors
    /// When a call fails.
    pub fn all(&self) -> Result<BTreeSet<Number>, KernelError> {
        let failed = || KernelError::call("lookup batch", "zt_trust_v1");
        let mut keys = vec![0; LIMIT as usize];
        let mut values = vec![Trust::default(); LIMIT as usize];
        let mut cursor = sys::Cursor::default();
        let (count, more) =
            sys::map_lookup_batch(self.0.as_fd(), &mut cursor, &mut keys, &mut values)
                .map_err(failed())?;
        if count != keys.len() || more {
            return Err(failed()(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let pairs = keys.iter().zip(&values);
        let quarantined = pairs.filter(|(_, trust)| trust.quarantined != 0);
        Ok(quarantined.map(|(number, _)| *number).collect())
    }

    /// Every number that is quarantined, of those given.
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
