//! Programs on interfaces by TCX: links, pinned, in an order.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use super::{
    KernelError,
    links::Attachment,
    sys::{self, TcxLink, TcxProgram},
    tc::Side,
};

/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`
fn attach_type(side: Side) -> u32 {
    match side {
        Side::Ingress => 46,
        Side::Egress => 47,
    }
}

/// How long a link may take to go.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Loopback, in every network namespace.
const LOOPBACK: u32 = 1;

/// Whether this kernel has TCX.
///
/// # Errors
/// When it does not say, for want of privileges.
pub fn is_there() -> Result<bool, KernelError> {
    match sys::tcx_programs(LOOPBACK, attach_type(Side::Ingress)) {
        Ok(_) => Ok(true),
        // An attach type it does not know.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(KernelError::call("query", "TCX")(error)),
    }
}

/// As [`super::tc::attach`].
///
/// # Errors
/// When the kernel refuses or the pin cannot be written.
pub fn attach(
    program: BorrowedFd<'_>,
    interface: u32,
    side: Side,
    pin: &Path,
) -> Result<Attachment, KernelError> {
    let what = || format!("{} of interface {interface}", side.name());
    if let Some((link, info)) = pinned(pin)?
        && info.interface == interface
        && info.attach_type == attach_type(side)
    {
        sys::link_update(link.as_fd(), program)
            .map_err(KernelError::call("link update", what()))?;
        return Ok(Attachment::Replaced);
    }
    // Of an interface that is gone: it governs nothing.
    unpin(pin)?;
    let (link, attachment) =
        link(program, interface, side).map_err(KernelError::call("link create", what()))?;
    // Unpinned, it would disappear with the agent, and that is fail-open.
    sys::pin(link.as_fd(), pin).map_err(KernelError::call("pin", what()))?;
    Ok(attachment)
}

/// A new link, or the one by which the program is attached already: a hook
/// takes a program once.
fn link(program: BorrowedFd<'_>, interface: u32, side: Side) -> io::Result<(OwnedFd, Attachment)> {
    let mut attempts = 0;
    loop {
        let refused = match sys::tcx_link_create(program, interface, attach_type(side)) {
            Ok(link) => return Ok((link, Attachment::Attached)),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => error,
            Err(error) => return Err(error),
        };
        if let Some(link) = link_of(program, interface, side)? {
            return Ok((link, Attachment::Replaced));
        }
        // A link whose pin was removed goes a little later than its pin.
        attempts += 1;
        if attempts == ATTEMPTS {
            return Err(refused);
        }
        thread::sleep(PAUSE);
    }
}

/// The link that attaches a program, if there is one that can be had.
fn link_of(program: BorrowedFd<'_>, interface: u32, side: Side) -> io::Result<Option<OwnedFd>> {
    let id = sys::classifier_id(program)?;
    let programs = sys::tcx_programs(interface, attach_type(side))?;
    let mut ours = programs
        .iter()
        .filter(|found| found.program_id == id && found.link_id != 0);
    Ok(ours.find_map(|found| sys::link_by_id(found.link_id).ok()))
}

/// As [`super::tc::detach`].
///
/// # Errors
/// When the kernel refuses or the pin cannot be removed.
pub fn detach(pin: &Path) -> Result<(), KernelError> {
    if let Some((link, _)) = pinned(pin)? {
        match sys::link_detach(link.as_fd()) {
            // Its interface is gone.
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => {
                return Err(KernelError::call("link detach", pin.display().to_string())(
                    error,
                ));
            }
            _ => {}
        }
    }
    unpin(pin)
}

/// The programs of one side, in the order in which they run, and whether each
/// is that of the link that is pinned at `pin`.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn programs(
    interface: u32,
    side: Side,
    pin: &Path,
) -> Result<Vec<(TcxProgram, bool)>, KernelError> {
    let what = || format!("{} of interface {interface}", side.name());
    let programs = sys::tcx_programs(interface, attach_type(side))
        .map_err(KernelError::call("query", what()))?;
    let ours = pinned(pin)?.map(|(_, info)| info.id);
    let with = |program: TcxProgram| (program, ours == Some(program.link_id));
    Ok(programs.into_iter().map(with).collect())
}

/// The TCX link at a pin, if one is there.
fn pinned(pin: &Path) -> Result<Option<(OwnedFd, TcxLink)>, KernelError> {
    let link = match sys::get_pinned(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(KernelError::io(pin)(error)),
    };
    let info = sys::tcx_link_info(link.as_fd()).ok();
    Ok(info.map(|info| (link, info)))
}

/// Removes a pin, if it is there.
pub(super) fn unpin(pin: &Path) -> Result<(), KernelError> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KernelError::io(pin)(error)),
        _ => Ok(()),
    }
}
