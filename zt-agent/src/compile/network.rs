//! Addresses and prefixes in the one form that is compared and looked up.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use zt_common::address::{CidrKey, Ip, mapped};

/// Length of `::ffff:0:0/96`, the prefix below which IPv4 lives in the tries.
pub const MAPPED_BITS: u8 = 96;

/// All of IPv4.
pub fn all_v4() -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into()
}

/// 169.254.0.0/16 and fe80::/10.
pub fn link_local() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16).into(),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10).into(),
    ]
}

/// The prefix without host bits; IPv4 in its mapped form becomes IPv4.
pub fn canonical(net: IpNet) -> IpNet {
    let net = net.trunc();
    let v4 = match net {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => v6.addr().to_ipv4_mapped(),
        _ => None,
    };
    v4.and_then(|v4| Ipv4Net::new(v4, net.prefix_len() - MAPPED_BITS).ok())
        .map_or(net, IpNet::from)
}

/// The prefix that holds only `ip`.
pub fn host(ip: IpAddr) -> IpNet {
    ip.to_canonical().into()
}

/// The form in which the kernel looks up `ip`.
pub fn octets(ip: IpAddr) -> Ip {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The key of a canonical prefix in `zt_cidr_v1`.
pub fn cidr_key(net: &IpNet) -> CidrKey {
    let shift = match net {
        IpNet::V4(_) => MAPPED_BITS,
        IpNet::V6(_) => 0,
    };
    CidrKey {
        prefix_len: u32::from(shift + net.prefix_len()),
        ip: octets(net.network()),
    }
}

/// Whether an IPv6 prefix would take in all of mapped IPv4 in the trie.
pub fn swallows_v4(net: &IpNet) -> bool {
    let IpNet::V6(v6) = net else { return false };
    v6.contains(&Ipv6Net::new_assert(
        Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
        MAPPED_BITS,
    ))
}

/// The prefixes of `set` that cover `net`, the longest first.
pub fn covering(set: &BTreeSet<IpNet>, net: IpNet) -> impl Iterator<Item = IpNet> {
    // Often there are none at all.
    let first = (!set.is_empty()).then_some(net);
    std::iter::successors(first, IpNet::supernet).filter(|wider| set.contains(wider))
}

/// The prefixes of `set` that `net` covers. A set sorts by address and then
/// by length, so they stand together.
pub fn covered(set: &BTreeSet<IpNet>, net: IpNet) -> impl Iterator<Item = IpNet> {
    set.range(net..)
        .take_while(move |inner| net.contains(*inner))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_has_one_form() {
        assert_eq!(canonical(net("10.1.2.3/8")), net("10.0.0.0/8"));
        assert_eq!(canonical(net("::ffff:10.0.0.0/104")), net("10.0.0.0/8"));
        assert_eq!(canonical(net("::ffff:0:0/96")), net("0.0.0.0/0"));
        assert_eq!(canonical(net("::/0")), net("::/0"));
        assert_eq!(host("::ffff:10.0.0.1".parse().unwrap()), net("10.0.0.1/32"));
    }

    #[test]
    fn an_ipv4_prefix_is_96_bits_longer_in_the_trie() {
        let key = cidr_key(&net("10.0.0.0/8"));
        assert_eq!((key.prefix_len, key.ip), (104, mapped([10, 0, 0, 0])));
        assert_eq!(cidr_key(&net("fe80::/10")).prefix_len, 10);
    }

    #[test]
    fn only_short_ipv6_prefixes_swallow_ipv4() {
        for (text, expected) in [
            ("::/0", true),
            ("::/64", true),
            ("::/96", false),
            ("2000::/3", false),
            ("0.0.0.0/0", false),
        ] {
            assert_eq!(swallows_v4(&net(text)), expected, "{text}");
        }
    }

    #[test]
    fn covering_goes_up_and_covered_goes_down() {
        let set = BTreeSet::from(
            [
                "0.0.0.0/0",
                "10.0.0.0/8",
                "10.1.0.0/16",
                "11.0.0.0/8",
                "::/0",
            ]
            .map(net),
        );
        let up: Vec<_> = covering(&set, net("10.1.0.0/16")).collect();
        assert_eq!(up, ["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"].map(net));
        let down: Vec<_> = covered(&set, net("10.0.0.0/8")).collect();
        assert_eq!(down, ["10.0.0.0/8", "10.1.0.0/16"].map(net));
    }
}
