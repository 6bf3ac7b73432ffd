//! Frames as they are on an interface, past every stack.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{MsgFlags, SockaddrLike as _, SockaddrStorage, getsockname, recv, send};

use crate::netns::Netns;
use crate::patience::scaled;

/// How long what must arrive may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what must not arrive is waited for after what must.
const LINGER: Duration = Duration::from_millis(150);

/// Goes to everybody on a link.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A packet socket on one interface of a namespace.
#[derive(Debug)]
pub struct Wire {
    descriptor: OwnedFd,
    /// The interface's own address.
    pub mac: [u8; 6],
}

impl Wire {
    /// Sees every frame from now on, also one that is dropped on its way in.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        Self::of(netns, interface, u16::try_from(libc::ETH_P_ALL)?)
    }

    /// Sees frames of one type that came in, where the stack would take them:
    /// after the programs of the interface, and not what a bridge takes.
    pub fn of(netns: &Netns, interface: &str, ethertype: u16) -> Result<Self> {
        netns.enter(|| {
            let descriptor = bound(interface, ethertype).with_context(|| interface.to_owned())?;
            let mac = mac(&descriptor)?;
            Ok(Self { descriptor, mac })
        })
    }

    /// On an interface of the caller's namespace; only sends.
    pub fn here(interface: &str) -> Result<Self> {
        let descriptor = bound(interface, 0).with_context(|| interface.to_owned())?;
        let mac = mac(&descriptor)?;
        Ok(Self { descriptor, mac })
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.descriptor.as_raw_fd(), frame, MsgFlags::empty())?;
        ensure!(sent == frame.len(), "sent {sent} bytes of {}", frame.len());
        Ok(())
    }

    /// The next frame, if there is one within the time.
    pub fn next(&self, within: Duration) -> Result<Option<Vec<u8>>> {
        let mut poll = libc::pollfd {
            fd: self.descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = i32::try_from(within.as_millis())?;
        // SAFETY: one structure, which outlives the call.
        if Errno::result(unsafe { libc::poll(&raw mut poll, 1, timeout) })? == 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 1 << 16];
        let length = recv(self.descriptor.as_raw_fd(), &mut frame, MsgFlags::empty())?;
        frame.truncate(length);
        Ok(Some(frame))
    }

    /// Waits for a frame with the bytes `awaited` in it, and a little longer;
    /// whether one with the `other` bytes came meanwhile.
    pub fn came_before(&self, awaited: &[u8], other: &[u8]) -> Result<bool> {
        let deadline = Instant::now() + scaled(PATIENCE);
        let (mut seen, mut came) = (false, false);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(frame) = self.next(if seen { scaled(LINGER) } else { left })? else {
                ensure!(seen, "what must arrive does not");
                return Ok(came);
            };
            seen |= contains(&frame, awaited);
            came |= contains(&frame, other);
            ensure!(Instant::now() < deadline, "no silence");
        }
    }

    /// Waits for a frame with the bytes in it.
    pub fn await_frame(&self, with: &[u8]) -> Result<()> {
        self.came_before(with, with).map(drop)
    }
}

/// Whether the bytes are somewhere in the frame.
pub fn contains(frame: &[u8], what: &[u8]) -> bool {
    frame.windows(what.len()).any(|window| window == what)
}

fn bound(interface: &str, ethertype: u16) -> Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers. Protocol 0: it sees nothing before it is bound.
    let raw = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: just made, and nobody else has it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(if_nametoindex(interface)?)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: the kernel reads `length` bytes of `address`.
    Errno::result(unsafe { libc::bind(raw, (&raw const address).cast(), length) })?;
    Ok(descriptor)
}

fn mac(descriptor: &OwnedFd) -> Result<[u8; 6]> {
    let name: SockaddrStorage = getsockname(descriptor.as_raw_fd())?;
    let family = name.family();
    let link = name.as_link_addr().with_context(|| format!("{family:?}"))?;
    link.addr().context("an interface without a MAC address")
}
