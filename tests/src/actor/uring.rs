//! connect(2) by io_uring: the kernel connects, the process makes no such call.
//!
//! One ring, one request. Offsets and numbers are those of linux/io_uring.h.

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    sys::socket::{SockaddrLike, SockaddrStorage},
};

use super::sockets::LIMIT;
use crate::patience::scaled;

const ENTRIES: u32 = 1;
const OP_CONNECT: u8 = 16;
const ENTER_GETEVENTS: u32 = 1;
/// The last argument of io_uring_enter(2) is a [`Wait`] (Linux 5.11).
const ENTER_EXT_ARG: u32 = 8;
const OFFSET_SQ: libc::off_t = 0;
const OFFSET_CQ: libc::off_t = 0x800_0000;
const OFFSET_SQES: libc::off_t = 0x1000_0000;
/// More than either ring of one entry needs.
const RING_BYTES: usize = 4096;

#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    /// Of the submission ring: flags, dropped, array. Of the completion ring:
    /// overflow, cqes, flags.
    rest: [u32; 3],
    reserved: u32,
    user_address: u64,
}

#[repr(C)]
#[derive(Default)]
struct Parameters {
    sq_entries: u32,
    cq_entries: u32,
    others: [u32; 8],
    sq: Offsets,
    cq: Offsets,
}

/// A submission.
#[repr(C)]
struct Submission {
    operation: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    /// For connect: the length of the address.
    offset: u64,
    address: u64,
    rest: [u64; 5],
}

#[repr(C)]
struct Completion {
    user_data: u64,
    result: i32,
    flags: u32,
}

#[repr(C)]
struct Wait {
    mask: u64,
    mask_size: u32,
    padding: u32,
    limit: u64,
}

/// Whether this kernel lets us make a ring.
pub fn is_there() -> Result<(), Errno> {
    setup(&mut Parameters::default()).map(drop)
}

/// Connects; `EINPROGRESS`, as a blocking socket with a limit says it, if it
/// takes longer than a call may.
pub fn connect(fd: i32, to: &SockaddrStorage) -> Result<(), Errno> {
    let mut parameters = Parameters::default();
    let ring = setup(&mut parameters)?;
    let sq = Mapping::of(&ring, OFFSET_SQ, RING_BYTES)?;
    let cq = Mapping::of(&ring, OFFSET_CQ, RING_BYTES)?;
    let requests = Mapping::of(&ring, OFFSET_SQES, size_of::<Submission>())?;
    let request = Submission {
        operation: OP_CONNECT,
        flags: 0,
        priority: 0,
        fd,
        offset: u64::from(to.len()),
        address: to.as_ptr().addr() as u64,
        rest: [0; 5],
    };
    // SAFETY: the mapping has room for one; the kernel does not look at it yet.
    unsafe { requests.0.cast::<Submission>().write(request) };
    let [_, _, array] = parameters.sq.rest;
    sq.word(array).store(0, Ordering::Relaxed);
    sq.word(parameters.sq.tail).store(1, Ordering::Release);
    enter(&ring)?;
    if cq.word(parameters.cq.tail).load(Ordering::Acquire) == 0 {
        return Err(Errno::EINPROGRESS);
    }
    let [_, cqes, _] = parameters.cq.rest;
    let at = cq.word(cqes).as_ptr().cast::<Completion>();
    // SAFETY: the kernel wrote it before it moved the tail.
    let result = unsafe { at.read() }.result;
    match result {
        0.. => Ok(()),
        errno => Err(Errno::from_raw(-errno)),
    }
}

fn setup(parameters: &mut Parameters) -> Result<OwnedFd, Errno> {
    let parameters = std::ptr::from_mut(parameters);
    // SAFETY: the structure has the kernel's layout.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, parameters) };
    let fd = i32::try_from(Errno::result(fd)?).expect("a descriptor");
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Submits the request, and waits for its completion or the limit.
fn enter(ring: &OwnedFd) -> Result<(), Errno> {
    let limit = scaled(LIMIT);
    let limit = libc::timespec {
        tv_sec: limit.as_secs().try_into().expect("a few seconds"),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let wait = Wait {
        mask: 0,
        mask_size: 0,
        padding: 0,
        limit: (&raw const limit).addr() as u64,
    };
    // SAFETY: `wait` and what it points to outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            ENTER_GETEVENTS | ENTER_EXT_ARG,
            &raw const wait,
            size_of::<Wait>(),
        )
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ETIME) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Memory shared with the kernel.
pub(super) struct Mapping(*mut u8, usize);

impl Mapping {
    pub(super) fn of(ring: &OwnedFd, offset: libc::off_t, length: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let (nowhere, ring) = (std::ptr::null_mut(), ring.as_raw_fd());
        // SAFETY: a mapping of the kernel's choosing.
        let at = unsafe { libc::mmap(nowhere, length, protection, flags, ring, offset) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self(at.cast(), length))
    }

    /// The word at a byte offset.
    pub(super) fn word(&self, offset: u32) -> &AtomicU32 {
        let offset = usize::try_from(offset).expect("an offset fits");
        assert!(offset + size_of::<Completion>() <= self.1);
        // SAFETY: inside the mapping, as just asserted; the kernel aligns it.
        unsafe { AtomicU32::from_ptr(self.0.add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us, and nothing refers to it any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}
