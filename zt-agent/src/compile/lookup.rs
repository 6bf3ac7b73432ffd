//! Looks things up in tables, step by step as the kernel does.

use zt_common::{
    address::{AddressKey, CidrKey, Ip, Peer, is_loopback, peer_flags},
    codes::Protocol,
    identity,
    policy::{Entry, PolicyKey, RANGE_PREFIX, RangeKey},
};

use super::Tables;
use zt_common::identity::Number;

/// Who is at `ip`, at this port (host byte order) and IP protocol.
///
/// Where an address is shared and the port is not declared, the kernel asks
/// the socket behind it. Tables hold no sockets: the answer is then the row of
/// the address, with [`peer_flags::SHARED`].
#[must_use]
pub fn peer(tables: &Tables, ip: &Ip, port: u16, protocol: u8) -> Peer {
    let at = |port, protocol| {
        let key = AddressKey {
            ip: *ip,
            port,
            protocol,
            zero: 0,
        };
        tables.address.get(&key).copied()
    };
    let whole = if is_loopback(ip) {
        Some(Peer {
            identity: identity::UNKNOWN_PEER,
            flags: peer_flags::SHARED,
            ..Peer::default()
        })
    } else {
        at(0, 0)
    };
    match whole {
        Some(shared) if shared.flags & peer_flags::SHARED != 0 => {
            at(rule_port(port, protocol), protocol).unwrap_or(shared)
        }
        Some(owner) => owner,
        None => class(tables, ip),
    }
}

/// The longest prefix that covers `ip`, or `world`.
fn class(tables: &Tables, ip: &Ip) -> Peer {
    let bits = u128::from_be_bytes(*ip);
    let longest = (0..=u128::BITS).rev().find_map(|prefix_len| {
        let mask = u128::MAX.checked_shl(u128::BITS - prefix_len).unwrap_or(0);
        let ip = (bits & mask).to_be_bytes();
        tables.cidr.get(&CidrKey { prefix_len, ip })
    });
    longest.copied().unwrap_or(Peer {
        identity: identity::WORLD,
        ..Peer::default()
    })
}

/// What the rules say of this pair at this destination port.
#[must_use]
pub fn entry(
    tables: &Tables,
    source: Number,
    destination: Number,
    protocol: u8,
    port: u16,
) -> Entry {
    let exact = PolicyKey {
        source,
        destination,
        port: rule_port(port, protocol),
        protocol,
        zero: 0,
    };
    if let Some(entry) = tables.policy.get(&exact) {
        return *entry;
    }
    match tables.policy.get(&PolicyKey { port: 0, ..exact }) {
        Some(rest) if rest.ranges != 0 => *block(tables, &exact).unwrap_or(rest),
        Some(rest) => *rest,
        None => Entry::default(),
    }
}

/// The block of ports that holds the key's port.
fn block<'a>(tables: &'a Tables, key: &PolicyKey) -> Option<&'a Entry> {
    (0..=u16::BITS).rev().find_map(|bits| {
        let mask = u16::MAX.checked_shl(u16::BITS - bits).unwrap_or(0);
        let block = RangeKey {
            prefix_len: RANGE_PREFIX + bits,
            port: (key.port & mask).to_be_bytes(),
            ..RangeKey::lookup(key)
        };
        tables.range.get(&block)
    })
}

/// ICMP has no ports: rules are kept under 0.
fn rule_port(port: u16, protocol: u8) -> u16 {
    if protocol == Protocol::Icmp as u8 {
        0
    } else {
        port
    }
}
