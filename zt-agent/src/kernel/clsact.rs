//! Programs on interfaces by the `clsact` queueing discipline, where the
//! kernel has no TCX. The classifier outlives the agent by itself; what is
//! pinned is its program, so that a later agent knows it.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use super::{KernelError, links::Attachment, sys, tc::Side, tcx::unpin};
use crate::netlink::{
    NetlinkError,
    traffic_control::{self, Filter, Slot},
};

/// Ours, always, so that a restart replaces the program and adds no second
/// one. The first priority; of one priority, the last that was added is asked
/// first.
const SLOT: Slot = Slot {
    priority: 1,
    // "zt"
    handle: 0x7a74,
};

/// What `tc filter show` calls it.
const NAME: &str = "zt-agent";

/// As [`super::tc::attach`].
///
/// # Errors
/// When somebody else's classifiers are in the way, or the pin cannot be
/// written.
pub fn attach(
    program: BorrowedFd<'_>,
    interface: u32,
    side: Side,
    pin: &Path,
) -> Result<Attachment, KernelError> {
    let what = || format!("{} of interface {interface}", side.name());
    traffic_control::ensure_clsact(interface)?;
    let before = ours(interface, side)?;
    traffic_control::set_program(interface, side, SLOT, program, NAME)?;
    unpin(pin)?;
    sys::pin(program, pin).map_err(KernelError::call("pin", what()))?;
    Ok(match before {
        None => Attachment::Attached,
        Some(_) => Attachment::Replaced,
    })
}

/// As [`super::tc::detach`]. The queueing discipline stays: others may use it.
///
/// # Errors
/// When the kernel refuses or the pin cannot be removed.
pub fn detach(interface: u32, side: Side, pin: &Path) -> Result<(), KernelError> {
    match ours(interface, side) {
        Ok(Some(_)) => traffic_control::delete(interface, side, SLOT)?,
        Ok(None) => {}
        Err(error) if error.errno() == Some(libc::ENODEV) => {}
        Err(error) => return Err(error.into()),
    }
    unpin(pin)
}

/// The classifiers of one side, in the order in which they are asked, and
/// whether each is ours: at our place, with the program that is pinned.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn programs(
    interface: u32,
    side: Side,
    pin: &Path,
) -> Result<Vec<(Filter, bool)>, KernelError> {
    let pinned = pinned(pin)?;
    let filters = traffic_control::filters(interface, side)?;
    let is_ours = |filter: &Filter| {
        filter.slot == SLOT && filter.program_id.is_some() && filter.program_id == pinned
    };
    let with = |filter: Filter| {
        let ours = is_ours(&filter);
        (filter, ours)
    };
    Ok(filters.into_iter().map(with).collect())
}

fn ours(interface: u32, side: Side) -> Result<Option<Filter>, NetlinkError> {
    let filters = traffic_control::filters(interface, side)?;
    Ok(filters.into_iter().find(|filter| filter.slot == SLOT))
}

/// The id of the program at a pin, if one is there.
fn pinned(pin: &Path) -> Result<Option<u32>, KernelError> {
    match sys::get_pinned(pin) {
        Ok(program) => Ok(sys::classifier_id(program.as_fd()).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KernelError::io(pin)(error)),
    }
}
