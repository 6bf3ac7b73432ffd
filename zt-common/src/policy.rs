//! Policy entries: what the rules say of one pair of ends, protocol and port.

use crate::identity::Number;

/// Key of `zt_policy_v1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PolicyKey {
    pub source: Number,
    pub destination: Number,
    /// Destination port, host byte order. 0: all ports without a row of
    /// their own (always 0 for ICMP).
    pub port: u16,
    /// IP protocol number; ICMPv6 counts as ICMP (1).
    pub protocol: u8,
    pub zero: u8,
}

/// Key of `zt_range_v1` (longest prefix match): port ranges, cut into
/// power-of-two blocks that do not overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RangeKey {
    /// `RANGE_PREFIX` + the bits of the port that count.
    pub prefix_len: u32,
    /// Network byte order, like everything in a trie key.
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub protocol: u8,
    /// The data after the prefix length must be a multiple of eight bytes, or
    /// the value behind it would not be aligned.
    pub zero: [u8; 5],
    /// Network byte order.
    pub port: [u8; 2],
}

/// Bits of a [`RangeKey`] before the port.
pub const RANGE_PREFIX: u32 = 112;

/// What the rules say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Side {
    /// `CLOCK_BOOTTIME` nanoseconds after which an allow has lapsed; 0: never.
    pub deadline: u64,
    /// The rule that decides; 0: none.
    pub rule: u32,
    /// [`crate::codes::Action`].
    pub action: u8,
    pub zero: [u8; 3],
}

/// Value of `zt_policy_v1` and `zt_range_v1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Entry {
    /// By the policies in force.
    pub now: Side,
    /// By those and the policies in audit mode together.
    pub would: Side,
    /// Non-zero on a row with port 0: look in `zt_range_v1` before taking it.
    pub ranges: u32,
    pub zero: u32,
}

crate::plain!(PolicyKey = 12, RangeKey = 20, Side = 16, Entry = 40);

impl RangeKey {
    /// The key that looks up `port`: all bits count.
    #[inline(always)]
    #[must_use]
    pub const fn lookup(key: &PolicyKey) -> Self {
        Self {
            prefix_len: RANGE_PREFIX + 16,
            source: key.source.to_be_bytes(),
            destination: key.destination.to_be_bytes(),
            protocol: key.protocol,
            zero: [0; 5],
            port: key.port.to_be_bytes(),
        }
    }
}
