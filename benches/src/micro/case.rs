//! Which programs, and what is asked of them.

use serde::{Deserialize, Serialize};

/// A program for packets that can be run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// `cgroup_skb`, what a socket sends.
    Egress,
    /// `cgroup_skb`, what a socket is sent.
    Ingress,
    /// `tc`, what a workload sends.
    From,
    /// `tc`, what a workload is sent.
    To,
}

impl Program {
    pub const ALL: [Self; 4] = [Self::Egress, Self::Ingress, Self::From, Self::To];

    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Egress => "cgroup_skb/egress",
            Self::Ingress => "cgroup_skb/ingress",
            Self::From => "tc, sent",
            Self::To => "tc, received",
        }
    }

    /// Ours, the minimal one and the empty one.
    #[must_use]
    pub const fn names(self) -> [&'static str; 3] {
        match self {
            Self::Egress => ["zt_egress", "floor_egress_new", "empty_egress"],
            Self::Ingress => ["zt_ingress", "floor_ingress_new", "empty_ingress"],
            Self::From => ["zt_tc_from", "floor_tc_from", "empty_tc_from"],
            Self::To => ["zt_tc_to", "floor_tc_to", "empty_tc_to"],
        }
    }

    /// Whether the workload sends the packet.
    #[must_use]
    pub const fn sends(self) -> bool {
        matches!(self, Self::Egress | Self::From)
    }

    /// What lets a packet pass.
    #[must_use]
    pub const fn passes(self) -> u32 {
        match self {
            Self::Egress | Self::Ingress => 1,
            // TC_ACT_UNSPEC, -1
            Self::From | Self::To => u32::MAX,
        }
    }
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// The program that returns at once, on one packet again and again.
    EmptyAgain,
    /// Ours with one flow, which is known, the same.
    CachedAgain,
    /// The empty program, each packet once.
    Empty,
    /// The program that only looks up.
    Minimal,
    /// Ours, of a flow that is known.
    Cached,
    /// Ours, of a flow that is not, and may pass.
    Allowed,
    /// Ours, of a flow that may not.
    Denied,
}

impl Case {
    pub const ALL: [Self; 7] = [
        Self::EmptyAgain,
        Self::CachedAgain,
        Self::Empty,
        Self::Minimal,
        Self::Cached,
        Self::Allowed,
        Self::Denied,
    ];

    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::EmptyAgain => "empty, one packet",
            Self::CachedAgain => "cached, one packet",
            Self::Empty => "empty",
            Self::Minimal => "minimal",
            Self::Cached => "cached",
            Self::Allowed => "first, allowed",
            Self::Denied => "first, denied",
        }
    }
}
