//! One case before the judge: what is asked and what came of it.
//!
//! A program has 512 bytes of stack for its whole call chain, so there is one
//! such struct per run and everybody gets a reference to it.

use zt_common::{
    address::Ip,
    codes::{Direction, Hook, Verdict},
    flow::{Cached, FlowKey},
};

/// See the module.
#[repr(C)]
pub struct Case {
    /// The other end.
    pub remote: Ip,
    /// This end; all zero if not known yet.
    pub local: Ip,
    /// `CLOCK_BOOTTIME` ns at which the decision began.
    pub start: u64,
    /// The governed end: the enrolled cgroup, or the socket's own; see
    /// [`FlowKey::cgroup`].
    pub cgroup: u64,
    /// The verdict and what it depends on; an output, but for `generation` and
    /// `sequence`.
    pub cached: Cached,
    /// With the policies in audit mode in force: the rule that would decide.
    pub would_rule: u32,
    /// Index of the node's interface that it passes; 0: a socket's.
    pub interface: u32,
    /// Of a fragment on a wire: its datagram's identification, and
    /// [`zt_common::packet::Packet::fragment`]; 0: no fragment.
    pub identification: u32,
    pub header_end: u32,
    /// Host byte order.
    pub remote_port: u16,
    pub local_port: u16,
    pub protocol: u8,
    pub hook: Hook,
    /// As asked; `cached.opened` says what the answer is for.
    pub direction: Direction,
    /// Also try the other direction: a TCP segment without a flow.
    pub either: bool,
    /// [`zt_common::codes::Reason`] why no rule can be asked; 0: none.
    pub fault: u8,
    /// [`Verdict`] with the policies in audit mode in force; 0: no change.
    pub would_verdict: u8,
    /// It stays inside its namespace: a call, or a packet on loopback's own
    /// interface. Anything else that bears the workload's own address, or
    /// loopback's, came from somebody else.
    pub inside: bool,
    pub zero: u8,
    /// Where the transport header is, from the start of the IP header.
    pub transport: u16,
    /// What is decided leaves the flow that is known alone.
    pub aside: bool,
    pub pad: u8,
}

impl Case {
    #[inline(always)]
    pub fn new(hook: Hook, direction: Direction) -> Self {
        Self {
            remote: [0; 16],
            local: [0; 16],
            start: 0,
            cgroup: 0,
            cached: Cached::default(),
            would_rule: 0,
            interface: 0,
            identification: 0,
            header_end: 0,
            remote_port: 0,
            local_port: 0,
            protocol: 0,
            hook,
            direction,
            either: false,
            fault: 0,
            would_verdict: 0,
            inside: true,
            zero: 0,
            transport: 0,
            aside: false,
            pad: 0,
        }
    }

    #[inline(always)]
    pub fn passes(&self) -> bool {
        self.cached.verdict != Verdict::Deny as u8
    }

    /// Whether `cached` can be meant for this packet: an exemption is only for
    /// what stays inside.
    #[inline(always)]
    pub fn may_use(&self, cached: &Cached) -> bool {
        self.inside || !cached.is_exemption()
    }

    /// The key of its flow.
    #[inline(always)]
    pub fn flow_key(&self) -> FlowKey {
        FlowKey {
            remote: self.remote,
            cgroup: self.cgroup,
            remote_port: self.remote_port,
            local_port: self.local_port,
            protocol: self.protocol,
            zero: [0; 3],
        }
    }
}

/// How an entry point goes on after [`crate::decide::decide`].
pub mod outcome {
    /// `cached` holds the decision; it was counted and recorded.
    pub const DECIDED: u32 = 0;
    /// Loopback inside a namespace that the workload has for itself: pass.
    pub const EXEMPT: u32 = 1;
    /// Pass here; only the packet layer can tell who is there.
    pub const LATER: u32 = 2;
}
