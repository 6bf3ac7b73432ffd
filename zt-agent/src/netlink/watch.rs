//! Says when links of a network namespace appear, change or go.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{SockFlag, setsockopt, sockopt},
};
use tokio::io::unix::AsyncFd;

use super::{
    NetlinkError,
    links::{self, DELETED_LINK, DELETED_NSID, NEW_LINK, NEW_NSID},
    message,
    socket::{self, Protocol},
};

/// `RTNLGRP_LINK` and `RTNLGRP_NSID`, as bits.
const GROUPS: u32 = 1 | 1 << 27;
/// Some hundred changes at once; more are an [`Change::Overrun`].
const RECEIVE_BUFFER: usize = 1 << 20;
/// `AF_BRIDGE`
const FAMILY_BRIDGE: u8 = 7;
const DATAGRAM: usize = 64 << 10;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It appeared, or something about it changed: name, state, master.
    Link { index: u32, name: String },
    /// It was removed, or moved to another namespace.
    Gone { index: u32, name: String },
    /// Another namespace got a number here, or lost it.
    Namespaces,
    /// Changes were lost, or not understood: look at everything again.
    Overrun,
}

/// The changes of one namespace from its opening on.
#[derive(Debug)]
pub struct Watch {
    descriptor: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    /// Something was lost. It is told when the queue is empty: until then the
    /// kernel goes on to drop changes, and says so only once.
    overrun: bool,
}

impl Watch {
    /// Watches the caller's namespace. List the links after this, and no
    /// change is missed. Needs a tokio runtime.
    ///
    /// # Errors
    /// When there is no descriptor, or no runtime takes it.
    pub fn open() -> Result<Self, NetlinkError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket::bound(Protocol::Route, flags, GROUPS)?;
        // Without the privilege it stays smaller, and is overrun sooner.
        let _ = setsockopt(&descriptor, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        // SAFETY: an owned descriptor is the same one until it is closed.
        let descriptor =
            unsafe { AsyncFd::register(descriptor) }.map_err(|error| failed(error.into()))?;
        Ok(Self {
            descriptor,
            buffer: vec![0; DATAGRAM],
            overrun: false,
        })
    }

    /// Waits for the next changes; there is at least one. Can be cancelled
    /// without losing any.
    ///
    /// # Errors
    /// When the socket fails for good: open another.
    pub async fn next(&mut self) -> Result<Vec<Change>, NetlinkError> {
        loop {
            let mut guard = self.descriptor.readable().await.map_err(failed)?;
            match socket::receive(guard.get_inner().as_fd(), &mut self.buffer) {
                Ok(Some(length)) if !self.overrun => {
                    let changes = changes(&self.buffer[..length]);
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
                Ok(_) => {}
                Err(Errno::EAGAIN) => {
                    guard.clear_ready();
                    if std::mem::take(&mut self.overrun) {
                        return Ok(vec![Change::Overrun]);
                    }
                }
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => self.overrun = true,
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }
}

fn failed(source: io::Error) -> NetlinkError {
    NetlinkError::Socket {
        protocol: "changes of links",
        source,
    }
}

fn changes(datagram: &[u8]) -> Vec<Change> {
    let messages = message::messages(datagram);
    messages
        .filter_map(|message| match message {
            Ok(message) => change(message.kind, message.body),
            Err(_) => Some(Change::Overrun),
        })
        .collect()
}

fn change(kind: u16, body: &[u8]) -> Option<Change> {
    let link = |of: fn(links::Link) -> Change| links::link(body).map_or(Change::Overrun, of);
    match kind {
        NEW_LINK => Some(link(changed)),
        // A bridge says "deleted" in its own family of a port that leaves it.
        DELETED_LINK if body.first() == Some(&FAMILY_BRIDGE) => Some(link(changed)),
        DELETED_LINK => Some(link(|link| Change::Gone {
            index: link.index,
            name: link.name,
        })),
        NEW_NSID | DELETED_NSID => Some(Change::Namespaces),
        _ => None,
    }
}

fn changed(link: links::Link) -> Change {
    Change::Link {
        index: link.index,
        name: link.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_means_to_look_again() {
        assert_eq!(change(NEW_LINK, &[0; 8]), Some(Change::Overrun));
        assert_eq!(changes(&[1, 2, 3]), [Change::Overrun]);
        assert_eq!(change(NEW_NSID, &[]), Some(Change::Namespaces));
        assert_eq!(change(24, &[]), None);
    }
}
