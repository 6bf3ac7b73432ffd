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
    /// The governed end: its enrolled cgroup, which every layer knows, or the
    /// socket's own if nobody enrolled it. See also [`crate::address::NOBODYS`].
    pub cgroup: u64,
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
    /// Of TCP, with a denial: the packets that may still end the flow, bits of
    /// [`crate::reset::owed`]. 0: it was never allowed.
    pub owed: u8,
    /// TCP sequence number of the SYN that it was decided for; 0: none. The
    /// same SYN, met again by another layer or sent again, is no new flow.
    pub sequence: u32,
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
    /// The enrolled cgroup that `owner` belongs to, or its own.
    pub home: u64,
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
    /// The generation in which `home` was looked up; 0: never.
    pub homed: Generation,
    pub pad: u32,
}

/// Key of `zt_fragment_v1`: one fragmented datagram on its way to or from a
/// workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey {
    pub remote: Ip,
    /// As in [`FlowKey`].
    pub cgroup: u64,
    /// IP identification, host byte order.
    pub identification: u32,
    /// IP protocol number; for IPv6 44, the fragment header's own.
    pub protocol: u8,
    /// [`crate::codes::Direction`] in which the datagram goes.
    pub direction: u8,
    pub zero: [u8; 2],
}

/// Value of `zt_fragment_v1`: what was decided for the first fragment, which
/// alone carries the ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    pub cached: Cached,
    /// Coarse monotonic nanoseconds of the first fragment.
    pub seen: u64,
    /// Repeats the key, see [`crate::version::Row`].
    pub key: FragmentKey,
    /// Where the transport header ends, bytes from the start of what was
    /// fragmented. A later fragment that starts before it would rewrite it.
    pub header_end: u32,
    pub zero: u32,
}

/// How long the later fragments of a datagram may take, nanoseconds: as long
/// as Linux waits for them (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_TIME: u64 = 30_000_000_000;

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
    Socket = 128,
    FragmentKey = 32,
    Fragment = 80,
    Share = 16,
);

/// Length of a share's window, nanoseconds.
pub const SHARE_WINDOW: u64 = 10_000_000_000;
