//! Quarantine: one map write, effective on the next packet.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
};

use zt_common::identity::{LIMIT, Number, Trust};

use super::{KernelError, pins::Pins, sys};

/// So many are asked for one by one; for more all rows are read at once.
const FEW: usize = 16;

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

    /// Those among these numbers that are quarantined in the kernel now.
    ///
    /// # Errors
    /// When a call fails.
    pub fn quarantined(
        &self,
        among: impl IntoIterator<Item = Number>,
    ) -> Result<BTreeSet<Number>, KernelError> {
        let among: Vec<Number> = among.into_iter().filter(|one| *one < LIMIT).collect();
        if among.len() > FEW
            && let Some(highest) = among.iter().max()
            && let Some(rows) = self.rows_until(*highest)
        {
            let quarantined = |number: &Number| rows[*number as usize].quarantined != 0;
            return Ok(among.into_iter().filter(quarantined).collect());
        }
        let mut found = BTreeSet::new();
        for number in among {
            if self.is_quarantined(number)? {
                found.insert(number);
            }
        }
        Ok(found)
    }

    /// The first rows up to and with this one, in one call. `None`: each has to be
    /// asked for.
    fn rows_until(&self, last: Number) -> Option<Vec<Trust>> {
        let count = last as usize + 1;
        let mut keys = vec![0; count];
        let mut rows = vec![Trust::default(); count];
        let mut start = sys::Cursor::default();
        let read = sys::map_lookup_batch(self.0.as_fd(), &mut start, &mut keys, &mut rows);
        // An array has all of its rows, in order.
        let is_whole = read.is_ok_and(|(read, _)| read == count) && keys.last() == Some(&last);
        is_whole.then_some(rows)
    }
}
