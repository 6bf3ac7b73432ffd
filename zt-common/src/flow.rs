//! Cached verdicts: the flow table and what a socket remembers.

use crate::{MAX_DEPTH, address::Ip, identity::Number, version::Generation};

/// Key of `zt_flow_v1` and `zt_spill_v1`: one flow as one of its ends sees it.
///
/// The local address is left out on purpose: the identity does not depend on
/// it, and a socket hook often cannot know it yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    pub remote: Ip,
    /// The cgroup of the local end's socket: known before any lookup, and a
    /// flow belongs to one socket anyway.
    pub leaf: u64,
    /// Host byte order. For ICMP echo both ports are the identifier.
    pub remote_port: u16,
    pub local_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    pub zero: [u8; 3],
}

/// A verdict and what it depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cached {
    /// The grant it rests on ends here (`CLOCK_BOOTTIME` ns); 0: none.
    pub deadline: u64,
    pub generation: Generation,
    pub source: Number,
    pub destination: Number,
    pub rule: u32,
    /// [`crate::codes::Verdict`]; 0: nothing is cached.
    pub verdict: u8,
    /// [`crate::codes::Reason`].
    pub reason: u8,
    /// [`crate::codes::Direction`] of the first packet, from this end.
    pub opened: u8,
    pub zero: [u8; 5],
}

impl Cached {
    /// Whether it was exempt from a decision: a workload that talks to itself.
    #[inline(always)]
    #[must_use]
    pub const fn is_exemption(&self) -> bool {
        self.verdict != 0 && self.reason == 0
    }
}

/// Value of `zt_flow_v1` and `zt_spill_v1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    pub cached: Cached,
    /// Coarse monotonic nanoseconds of the last packet.
    pub seen: u64,
    /// Repeats the key, see [`crate::version::Row`].
    pub key: FlowKey,
}

/// Where a socket was made: what decides whose it is, wherever it is passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Owner {
    /// The cgroup of the socket.
    pub leaf: u64,
    /// Its ancestors at the levels below the managed root, topmost first; 0
    /// past the leaf.
    pub below_root: [u64; MAX_DEPTH],
    /// Cookie of the network namespace; 0: not known.
    pub netns: u64,
}

/// Value of `zt_socket_v1`, the storage of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Socket {
    pub owner: Owner,
    /// The verdict for `remote`:`remote_port`, from connect or from a packet.
    pub cached: Cached,
    pub remote: Ip,
    /// Coarse monotonic nanoseconds at which the flow table last said it; 0:
    /// not yet. A datagram socket asks the table again after a while, so that
    /// the flow's own idle timer goes on.
    pub seen: u64,
    pub remote_port: u16,
    /// 0 if it was not bound yet.
    pub local_port: u16,
    pub protocol: u8,
    pub zero: [u8; 3],
}

/// Value of `zt_share_v1`, by enrolled cgroup: how much of the flow table it
/// has taken in the current window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Share {
    /// Number of the window.
    pub window: u64,
    /// Flows added in it.
    pub flows: u64,
}

crate::plain!(
    FlowKey = 32,
    Cached = 32,
    Flow = 72,
    Owner = 48,
    Socket = 112,
    Share = 16,
);

/// Length of a share's window, nanoseconds.
pub const SHARE_WINDOW: u64 = 10_000_000_000;
