//! The few words that every decision reads, and the totals it leaves behind.

use crate::{identity::Number, version::Generation};

/// The one element of `zt_control_v1`, an mmapable array.
///
/// The agent writes `active` with one aligned 8-byte store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// High half: the active generation. Low half: the last generation that
    /// took a permission away; allows cached before it are decided again.
    pub active: u64,
    /// Random; names this set of maps in the audit trail.
    pub epoch: u64,
    /// Cgroup id of the managed root.
    pub root: u64,
    /// Its depth below the root of the cgroup tree.
    pub root_level: u32,
    /// `control_flags`.
    pub flags: u32,
    /// A UDP or ICMP flow without a packet for so long is forgotten, ns.
    pub datagram_idle: u64,
    /// New flows that one workload may put into the main table per window.
    pub flow_share: u64,
    /// Bits that a packet's mark gets when it may leave its workload. The
    /// default drop lets nothing else out of a managed interface.
    pub mark: u32,
    pub zero: u32,
}

/// Bits of [`Control::flags`].
pub mod control_flags {
    /// `host` may reach the workloads of its node without a rule.
    pub const HOST_MAY_REACH: u32 = 1;
}

impl Control {
    #[inline(always)]
    #[must_use]
    pub const fn pack(generation: Generation, narrowed: Generation) -> u64 {
        (generation as u64) << 32 | narrowed as u64
    }

    /// (active, narrowed)
    #[inline(always)]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "takes the halves of a packed word"
    )]
    pub const fn unpack(active: u64) -> (Generation, Generation) {
        ((active >> 32) as Generation, active as Generation)
    }
}

/// The one element of `zt_totals_v1`, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Totals {
    /// Decisions made; also the next sequence number of this CPU.
    pub decisions: u64,
    /// Decisions whose event found no room in the ring buffer.
    pub lost_ring: u64,
    /// Decisions that found no row in `zt_count_v1`.
    pub uncounted: u64,
    /// Flows that could not be remembered.
    pub flow_full: u64,
    /// Flows sent to the spill table because their workload's share was used.
    pub flow_spilled: u64,
}

/// Key of `zt_count_v1`; the value is a per-CPU `u64` count of decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct CountKey {
    pub source: Number,
    pub destination: Number,
    /// [`crate::codes::Verdict`].
    pub verdict: u8,
    /// [`crate::codes::Reason`].
    pub reason: u8,
    /// [`crate::codes::Direction`].
    pub direction: u8,
    pub zero: u8,
}

crate::plain!(Control = 56, Totals = 40, CountKey = 12);
