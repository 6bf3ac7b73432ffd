//! The few names, addresses and numbers of which every world is made, so that
//! overlaps, conflicts and near misses are the usual case.

use std::net::IpAddr;

use ipnet::IpNet;
use zt_agent::model::{SpiffeId, SpiffePattern};

/// Identities; the last two are never workloads of this node. One differs from
/// another only where a careless pattern has a dot.
pub const LOCAL_IDS: &[&str] = &[
    "spiffe://td/c/shop/web",
    "spiffe://td/c/shop/a.b",
    "spiffe://td/c/shop/axb",
    "spiffe://td/c/bank/web",
    "spiffe://td/c/bank/vault/key",
    "spiffe://other/c/shop/web",
];
pub const REMOTE_IDS: &[&str] = &["spiffe://td/c/shop/far", "spiffe://td/d/far"];

pub const PATTERNS: &[&str] = &[
    "spiffe://td/**",
    "spiffe://td/c/**",
    "spiffe://td/c/shop/**",
    "spiffe://td/c/shop/*",
    "spiffe://td/c/bank/*",
    "spiffe://td/c/*/web",
    "spiffe://td/*/shop/*",
    "spiffe://other/**",
    "spiffe://td/c/bank/*/key",
];

pub const ADDRESSES: &[&str] = &[
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.1.1",
    "192.0.2.1",
    "192.0.2.2",
    "198.51.100.7",
    "169.254.169.254",
    "169.254.0.1",
    "172.16.0.1",
    "fd00::1",
    "fd00::2",
    "fd00:0:0:1::1",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:0:1::1",
    "fe80::1",
    "febf::1",
];

/// Two of them can be claimed as well.
pub const NODE_ADDRESSES: &[&str] = &["172.16.0.1", "10.0.0.3", "192.0.2.9", "fd00::9", "fd00::2"];

pub const CLUSTER_RANGES: &[&str] = &["10.0.0.0/16", "172.16.0.0/12", "fd00::/48", "2001:db8::/64"];

/// Nested and overlapping; some hold link-local addresses, some lie among them.
pub const PREFIXES: &[&str] = &[
    "0.0.0.0/0",
    "128.0.0.0/1",
    "168.0.0.0/7",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.2/31",
    "10.0.0.2/32",
    "192.0.2.0/24",
    "192.0.2.0/30",
    "192.0.2.1/32",
    "169.254.0.0/15",
    "169.254.0.0/16",
    "169.254.169.0/24",
    "169.254.169.254/32",
    "::/0",
    "::/64",
    "fc00::/7",
    "fd00::/64",
    "2000::/3",
    "2001:db8::/32",
    "2001:db8::/64",
    "2001:db8::1/128",
    "fe00::/8",
    "fe80::/10",
    "fe80::/64",
    "fe80::1/128",
];

/// Ranges that touch, overlap and end at the ends.
pub const RANGES: &[(u16, u16)] = &[
    (1, 1),
    (1, 79),
    (79, 81),
    (80, 80),
    (81, 443),
    (443, 443),
    (444, 8000),
    (8000, 8999),
    (80, 65_535),
    (1, 65_535),
    (65_535, 65_535),
];

/// The ports that a claim on a shared address may declare.
pub const DECLARED_PORTS: &[u16] = &[80, 443, 8000];

pub fn id(text: &str) -> SpiffeId {
    parse(text)
}

pub fn pattern(text: &str) -> SpiffePattern {
    parse(text)
}

pub fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| parse(text)).collect()
}

pub fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| parse(text)).collect()
}

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("the pool is well formed")
}
