//! Who is behind an address, and which workload a cgroup is.

use crate::identity::{self, Number};

/// An IPv6 address, or an IPv4 address in its mapped form `::ffff:a.b.c.d`.
/// Network byte order.
pub type Ip = [u8; 16];

/// Key of `zt_address_v1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct AddressKey {
    pub ip: Ip,
    /// Host byte order. 0: the address itself, whatever the port.
    pub port: u16,
    /// IP protocol number. 0 together with port 0.
    pub protocol: u8,
    pub zero: u8,
}

/// Key of `zt_cidr_v1` (longest prefix match), laid out as the kernel's
/// `bpf_lpm_trie_key`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct CidrKey {
    /// Bits of `ip` that count; an IPv4 prefix `/n` is `96 + n`.
    pub prefix_len: u32,
    pub ip: Ip,
}

/// Who is behind an address: value of `zt_address_v1` and `zt_cidr_v1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Peer {
    /// The enrolled cgroup that owns the address on this node; 0 if none.
    pub cgroup: u64,
    /// Whose rules apply.
    pub identity: Number,
    /// Class whose CIDR *denies* apply as well; 0 if none.
    pub class: Number,
    /// `peer_flags`.
    pub flags: u32,
    /// Of a Service's address: the port at which whoever is behind it gets the
    /// packets, by which rules know it. Host byte order; 0: the same port.
    pub port: u16,
    pub zero: u16,
}

/// Bits of [`Peer::flags`].
pub mod peer_flags {
    /// Several owners: look at the port, then at the socket behind it.
    pub const SHARED: u32 = 1;
    /// An address of this node itself.
    pub const NODE: u32 = 2;
    /// A workload of this node in enforce mode: its end's deny is real, so
    /// the other end may say so early.
    pub const ENFORCE: u32 = 4;
}

/// Value of `zt_workload_v1`. Key: cgroup id (`u64`); 0 stands for every
/// cgroup under the managed root that nobody enrolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Workload {
    /// Cookie of the network namespace that this workload has for itself;
    /// 0: it has none, or shares it. In the row for those that nobody enrolled:
    /// see [`Workload::of_unenrolled`].
    pub netns: u64,
    pub identity: Number,
    /// `workload_flags`.
    pub flags: u32,
}

impl Workload {
    /// Of the row for cgroups that nobody enrolled: whose a socket of one of
    /// them is that was made in the network namespace `netns` (0: not known).
    ///
    /// Where the row names the node's own namespace, whoever was put there is
    /// part of the node: it could say anything in the node's name.
    #[inline(always)]
    #[must_use]
    pub const fn of_unenrolled(self, netns: u64) -> Self {
        if self.netns != 0 && self.netns == netns {
            return Self {
                netns: 0,
                identity: identity::HOST,
                flags: workload_flags::RAW,
            };
        }
        Self { netns: 0, ..self }
    }

    /// Whether it may do nothing; see [`workload_flags::SHUT`].
    #[inline(always)]
    #[must_use]
    pub const fn is_shut(&self) -> bool {
        self.flags & workload_flags::SHUT != 0
    }
}

/// Bits of [`Workload::flags`].
pub mod workload_flags {
    /// Enforce mode; otherwise audit mode.
    pub const ENFORCE: u32 = 1;
    /// May open raw sockets.
    pub const RAW: u32 = 2;
    /// What is denied to it is not all in the maps: everything is.
    pub const SHUT: u32 = 4;
}

/// Value of `zt_interface_v1`: the workload behind an interface of the node.
/// Key: the interface's index (`u32`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Interface {
    /// The enrolled cgroup whose network namespace the other end is in.
    pub cgroup: u64,
    /// MAC address of the other end.
    pub mac: [u8; 6],
    pub zero: [u8; 2],
    /// Addresses of the workload that are checked first, all zero if it has
    /// none: IPv4 (mapped), IPv6, and link-local IPv6. Any other address is
    /// looked up in `zt_address_v1`.
    pub addresses: [Ip; 3],
}

/// Stands, together with the interface's index, for the cgroup of an
/// interface that is nobody's. No cgroup has such an id.
pub const NOBODYS: u64 = 1 << 63;

crate::plain!(
    AddressKey = 20,
    CidrKey = 20,
    Peer = 24,
    Workload = 16,
    Interface = 64
);

/// The mapped form of an IPv4 address given in network byte order.
#[inline(always)]
#[must_use]
pub const fn mapped(v4: [u8; 4]) -> Ip {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// The IPv4 address inside a mapped one.
#[inline(always)]
#[must_use]
pub const fn unmapped(ip: &Ip) -> Option<[u8; 4]> {
    match ip {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([*a, *b, *c, *d]),
        _ => None,
    }
}

/// Whether it is an IPv4 address.
#[inline(always)]
#[must_use]
pub fn is_mapped(ip: &Ip) -> bool {
    let word = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    word(0) | word(4) == 0 && word(8) == u32::from_ne_bytes([0, 0, 0xff, 0xff])
}

/// All zero, in either family.
#[inline(always)]
#[must_use]
pub fn is_unspecified(ip: &Ip) -> bool {
    let word = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    let mapped = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    word(0) | word(4) | word(12) == 0 && (word(8) == 0 || word(8) == mapped)
}

/// 127.0.0.0/8, ::1, and the unspecified addresses, which a connect turns
/// into loopback.
#[inline(always)]
#[must_use]
pub fn is_loopback(ip: &Ip) -> bool {
    let word = |at: usize| u32::from_be_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    if word(0) | word(4) != 0 {
        return false;
    }
    match word(8) {
        0 => word(12) <= 1,
        0xffff => ip[12] == 127 || word(12) == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv6Addr};

    #[test]
    fn mapped_is_what_can_be_unmapped() {
        for text in [
            "10.0.0.1",
            "0.0.0.0",
            "::1",
            "::ffff:0:0",
            "::fffe:0:0",
            "1::ffff:0:0",
        ] {
            assert_eq!(
                is_mapped(&ip(text)),
                unmapped(&ip(text)).is_some(),
                "{text}"
            );
        }
    }

    fn ip(text: &str) -> Ip {
        match text.parse().unwrap() {
            IpAddr::V4(v4) => mapped(v4.octets()),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    #[test]
    fn loopback_is_recognised_in_every_form() {
        for yes in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "0.0.0.0",
            "::",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_loopback(&ip(yes)), "{yes}");
        }
        for no in [
            "128.0.0.1",
            "::2",
            "10.0.0.1",
            "1::1",
            "::127.0.0.1",
            "fe80::1",
        ] {
            assert!(!is_loopback(&ip(no)), "{no}");
        }
    }

    #[test]
    fn mapping_is_the_standard_one() {
        let std = std::net::Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped();
        assert_eq!(Ipv6Addr::from(mapped([10, 1, 2, 3])), std);
        assert_eq!(unmapped(&std.octets()), Some([10, 1, 2, 3]));
        assert_eq!(unmapped(&ip("::1")), None);
    }
}
