//! Sockets that go from one process to another, by SCM_RIGHTS.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        bind, recvmsg, sendmsg, socket,
    },
};

/// Sends a descriptor to whoever receives at `path`; waits a little for that.
pub fn pass(fd: i32, path: &str) -> Result<(), Errno> {
    let socket = datagram()?;
    let to = UnixAddr::new(path)?;
    let rights = [fd];
    let message = [ControlMessage::ScmRights(&rights)];
    let payload = [IoSlice::new(b"x")];
    for _ in 0..200 {
        let sent = sendmsg(
            socket.as_raw_fd(),
            &payload,
            &message,
            MsgFlags::empty(),
            Some(&to),
        );
        match sent {
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => return other.map(drop),
        }
    }
    Err(Errno::ENOENT)
}

/// Takes a descriptor at `path`.
pub fn receive(path: &str) -> Result<OwnedFd, Errno> {
    let socket = datagram()?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let mut payload = [0u8; 1];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let rights = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(rights) => rights.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel just gave it to us.
    rights
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .ok_or(Errno::EBADMSG)
}

fn datagram() -> Result<OwnedFd, Errno> {
    socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}
