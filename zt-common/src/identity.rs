//! Numbers that stand for an end of a flow inside the kernel.
//!
//! | range | what |
//! |---|---|
//! | 0 | unenrolled |
//! | 1..=255 | reserved identities |
//! | 256..=49151 | SPIFFE IDs interned on this node |
//! | 49152..=65535 | classes of addresses, one per CIDR that a policy names |

/// A number for a SPIFFE ID, a reserved identity or a class of addresses.
pub type Number = u32;

/// A cgroup under the managed root that nobody enrolled.
pub const UNENROLLED: Number = 0;
/// This node's own processes.
pub const HOST: Number = 1;
/// The addresses of the other nodes.
pub const NODES: Number = 2;
/// The endpoints of the cluster's API.
pub const APISERVER: Number = 3;
/// Every address that is nobody's and outside the cluster's ranges.
pub const WORLD: Number = 4;
/// An address of the cluster's ranges that nobody owns, or an end that cannot
/// be told apart. Never allowed by name.
pub const UNKNOWN_PEER: Number = 5;
/// An address with two claimants. Never allowed by name.
pub const CONFLICT: Number = 6;
/// A forwarded packet that bears a node's address.
pub const MASQUERADED: Number = 7;
/// There is no other end: the decision is about a socket, not about a flow.
pub const NOBODY: Number = 8;
/// In counters only: one whose number was given back.
pub const RETIRED: Number = 9;

/// First number for a SPIFFE ID.
pub const FIRST_SPIFFE: Number = 256;
/// First number for a class of addresses.
pub const FIRST_CLASS: Number = 49_152;
/// One past the last number: the length of the trust array.
pub const LIMIT: Number = 65_536;

/// The reserved numbers and the names that records and policies use.
pub const RESERVED: &[(Number, &str)] = &[
    (UNENROLLED, "unenrolled"),
    (HOST, "host"),
    (NODES, "nodes"),
    (APISERVER, "apiserver"),
    (WORLD, "world"),
    (UNKNOWN_PEER, "unknown-peer"),
    (CONFLICT, "conflict"),
    (MASQUERADED, "masqueraded"),
    (NOBODY, "nobody"),
    (RETIRED, "retired"),
];

/// Longest name of an identity, in bytes: a SPIFFE ID has at most 2048
/// (SPIFFE-ID specification, section 2.3).
pub const NAME_LEN: usize = 2048;
/// Longest name of a rule, in bytes.
pub const RULE_NAME_LEN: usize = 128;

/// Row of `zt_identity_v1`: what a number stands for. Key: the number.
///
/// The kernel never reads it. `i8` is what a C `char` is in BTF terms, so
/// bpftool prints the name as a string.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Name {
    /// NUL-padded.
    pub name: [i8; NAME_LEN],
}

/// Row of `zt_rule_v1`: the name of a rule, `policy/rule-N`. Key: the rule.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RuleName {
    /// NUL-padded.
    pub name: [i8; RULE_NAME_LEN],
}

/// Row of `zt_trust_v1`, an array indexed by number. One write quarantines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Trust {
    /// Non-zero: nothing to or from this identity passes, in any mode.
    pub quarantined: u32,
}

crate::plain!(Name = 2048, RuleName = 128, Trust = 4);
