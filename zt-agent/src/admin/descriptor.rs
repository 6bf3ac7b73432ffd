//! A descriptor that goes with the first bytes of a request (SCM_RIGHTS).

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

/// As many as the kernel lets one message have: so none of them is lost, and
/// left open, for want of room.
const MOST: usize = 253;

/// Sends some of the bytes with a descriptor; how many of them.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send(stream: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    let bytes = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(
        stream.as_raw_fd(),
        &bytes,
        &control,
        flags,
        None,
    )?)
}

/// Receives bytes, and the descriptors that came with them. 0 bytes: the end.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(stream: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = cmsg_space!([RawFd; MOST]);
    let mut bytes = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut bytes, Some(&mut room), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(some) = control {
            // SAFETY: the kernel has just made them for us, and nobody else knows
            // them.
            let some = some
                .into_iter()
                .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            descriptors.extend(some);
        }
    }
    Ok((message.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Seek as _, Write as _},
        os::fd::AsFd as _,
    };

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_bytes_and_is_the_same_file() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x").unwrap();
        let sent = send(&ours, b"abc", file.as_fd()).unwrap();
        assert_eq!(sent, 3);
        ours.write_all(b"def").unwrap();
        let mut bytes = [0; 3];
        let (read, mut descriptors) = receive(theirs.as_fd(), &mut bytes).unwrap();
        assert_eq!((&bytes[..read], descriptors.len()), (&b"abc"[..], 1));
        let mut same = File::from(descriptors.remove(0));
        file.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        let (read, descriptors) = receive(theirs.as_fd(), &mut bytes).unwrap();
        assert_eq!((&bytes[..read], descriptors.len()), (&b"def"[..], 0));
        drop(ours);
        assert_eq!(receive(theirs.as_fd(), &mut bytes).unwrap().0, 0);
    }
}
