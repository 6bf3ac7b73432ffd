//! Sending by an AF_XDP socket in copy mode: a ring of descriptors that the
//! kernel puts on the interface, past its queue and every hook of a socket.
//!
//! One frame. Offsets and numbers are those of linux/if_xdp.h.

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::Ordering,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use super::{kinds, sockets::LIMIT, uring::Mapping};
use crate::patience::scaled;

const SOL_XDP: i32 = 283;
const MMAP_OFFSETS: i32 = 1;
const TX_RING: i32 = 3;
const UMEM_REG: i32 = 4;
const FILL_RING: i32 = 5;
const COMPLETION_RING: i32 = 6;
const COPY: u16 = 2;
const PAGE_TX: libc::off_t = 0x8000_0000;
const PAGE_COMPLETION: libc::off_t = 0x1_8000_0000;

/// Descriptors in each ring.
const ENTRIES: u32 = 4;
const PAGE: usize = 4096;
/// A frame's room: all of the memory.
const ROOM: u32 = 4096;

#[repr(C)]
struct Registration {
    address: u64,
    length: u64,
    room: u32,
    headroom: u32,
    flags: u32,
    metadata: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RingOffsets {
    producer: u64,
    consumer: u64,
    descriptors: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Offsets {
    rx: RingOffsets,
    tx: RingOffsets,
    fill: RingOffsets,
    completion: RingOffsets,
}

#[repr(C)]
struct Address {
    family: u16,
    flags: u16,
    interface: u32,
    queue: u32,
    shared: u32,
}

#[repr(C)]
struct Descriptor {
    address: u64,
    length: u32,
    options: u32,
}

/// Memory that begins at a page.
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Whether this kernel has such sockets.
pub fn is_there() -> Result<(), Errno> {
    socket().map(drop)
}

/// Sends a frame as it is; `ETIMEDOUT` if the kernel does not take it.
pub fn send(frame: &[u8]) -> Result<(), Errno> {
    let socket = socket()?;
    let mut memory = Box::new(Page([0; PAGE]));
    memory.0[..frame.len()].copy_from_slice(frame);
    let registration = Registration {
        address: memory.0.as_ptr().addr() as u64,
        length: PAGE as u64,
        room: ROOM,
        headroom: 0,
        flags: 0,
        metadata: 0,
    };
    set(&socket, UMEM_REG, &registration)?;
    for ring in [FILL_RING, COMPLETION_RING, TX_RING] {
        set(&socket, ring, &ENTRIES)?;
    }
    let offsets = offsets(&socket)?;
    let tx = Mapping::of(&socket, PAGE_TX, PAGE)?;
    let completion = Mapping::of(&socket, PAGE_COMPLETION, PAGE)?;
    bind(&socket)?;
    let descriptor = Descriptor {
        address: 0,
        length: u32::try_from(frame.len()).map_err(|_| Errno::EMSGSIZE)?,
        options: 0,
    };
    let first = tx.word(at(offsets.tx.descriptors)?).as_ptr();
    // SAFETY: the mapping has room for the first one; the kernel does not look
    // at it yet.
    unsafe { first.cast::<Descriptor>().write(descriptor) };
    tx.word(at(offsets.tx.producer)?)
        .store(1, Ordering::Release);
    let sent = completion.word(at(offsets.completion.producer)?);
    wake(&socket, || sent.load(Ordering::Acquire) == 1)
}

/// Has the kernel look at the ring until it has sent.
fn wake(socket: &OwnedFd, sent: impl Fn() -> bool) -> Result<(), Errno> {
    let deadline = Instant::now() + scaled(LIMIT);
    while !sent() {
        // SAFETY: no bytes and no address.
        let result = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        match Errno::result(result) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS) => {}
            Err(errno) => return Err(errno),
        }
        if Instant::now() > deadline {
            return Err(Errno::ETIMEDOUT);
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn at(offset: u64) -> Result<u32, Errno> {
    u32::try_from(offset).map_err(|_| Errno::EOVERFLOW)
}

fn socket() -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(Errno::result(fd)?) })
}

fn set<T>(socket: &OwnedFd, option: i32, value: &T) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("a few bytes");
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the value is as long as said.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), SOL_XDP, option, value, length) };
    Errno::result(result).map(drop)
}

fn offsets(socket: &OwnedFd) -> Result<Offsets, Errno> {
    let mut offsets = Offsets::default();
    let mut length = libc::socklen_t::try_from(size_of::<Offsets>()).expect("a few bytes");
    let into = (&raw mut offsets).cast();
    // SAFETY: there is room for what is said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            SOL_XDP,
            MMAP_OFFSETS,
            into,
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| offsets)
}

/// To the first queue of the workload's interface. The one before may still be
/// about to leave it.
fn bind(socket: &OwnedFd) -> Result<(), Errno> {
    let address = Address {
        family: libc::AF_XDP.try_into().expect("a small number"),
        flags: COPY,
        interface: kinds::index()?,
        queue: 0,
        shared: 0,
    };
    let length = libc::socklen_t::try_from(size_of::<Address>()).expect("a few bytes");
    let deadline = Instant::now() + scaled(LIMIT);
    loop {
        let at = (&raw const address).cast();
        // SAFETY: as long as said.
        match Errno::result(unsafe { libc::bind(socket.as_raw_fd(), at, length) }) {
            Err(Errno::EBUSY) if Instant::now() < deadline => sleep(Duration::from_millis(5)),
            result => return result.map(drop),
        }
    }
}
