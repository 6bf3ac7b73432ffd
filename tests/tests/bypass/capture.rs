//! What arrives at an interface, whatever the stack behind it makes of it.

use std::{
    io::Write as _,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::errno::Errno;
use zt_tests::netns::Netns;

const ETH_P_ALL: u16 = 3;
/// `sll_pkttype` of what this end sends.
const OUTGOING: u8 = 4;

/// A packet socket on a namespace's `eth0`.
pub struct Capture(OwnedFd);

impl Capture {
    pub fn at(netns: &Netns) -> Result<Self> {
        netns.enter(|| {
            let protocol = i32::from(ETH_P_ALL.to_be());
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: no pointers.
            let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, protocol) })?;
            // SAFETY: the kernel just gave it to us.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            bind(&socket).context("cannot capture on eth0")?;
            Ok(Self(socket))
        })
    }

    /// The frames that came in since the last call, oldest first.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.next())
            .filter(|(kind, _)| *kind != OUTGOING)
            .map(|(_, frame)| frame)
            .collect()
    }

    fn next(&self) -> Option<(u8, Vec<u8>)> {
        let mut frame = vec![0u8; 1 << 16];
        // SAFETY: plain integers, all zero is valid.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = libc::socklen_t::try_from(size_of_val(&from)).unwrap();
        // SAFETY: both buffers are as long as said.
        let got = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        // Nothing more, or the interface is gone.
        frame.truncate(usize::try_from(got).ok()?);
        Some((from.sll_pkttype, frame))
    }
}

fn bind(socket: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: a string with its end.
    let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
    // SAFETY: plain integers, all zero is valid.
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    at.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    at.sll_protocol = ETH_P_ALL.to_be();
    at.sll_ifindex = i32::try_from(index).unwrap();
    let length = libc::socklen_t::try_from(size_of_val(&at)).unwrap();
    // SAFETY: as long as said.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const at).cast(), length) };
    Errno::result(bound).map(drop)
}

/// Shows frames, for a failure's message.
pub fn show(frames: &[Vec<u8>]) -> String {
    let mut text = Vec::new();
    for frame in frames {
        for byte in frame.iter().take(96) {
            let _ = write!(text, "{byte:02x}");
        }
        text.push(b'\n');
    }
    String::from_utf8(text).unwrap()
}
