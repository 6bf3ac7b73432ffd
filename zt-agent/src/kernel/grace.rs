//! A grace period: afterwards no program still runs that began before.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{KernelError, sys};

/// Waits by writing into a map of maps: the kernel returns from that only
/// after a grace period (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`).
#[derive(Debug)]
pub struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    /// # Errors
    /// When the two maps cannot be made.
    pub fn new() -> Result<Self, KernelError> {
        let (outer, inner) =
            sys::array_of_maps().map_err(KernelError::call("create", "grace maps"))?;
        Ok(Self { outer, inner })
    }

    /// Returns when every program that was running has ended. Takes 6 to 70 ms.
    ///
    /// # Errors
    /// When the write fails; then nothing may be reused.
    pub fn wait(&self) -> Result<(), KernelError> {
        let inner = self.inner.as_raw_fd().cast_unsigned();
        sys::map_update(self.outer.as_fd(), &0u32, &inner)
            .map_err(KernelError::call("update", "grace map"))
    }
}
