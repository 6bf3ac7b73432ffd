//! Looks things up in tables, step by step as the kernel does.

use zt_common::{
    address::{AddressKey, CidrKey, Ip, Peer, Workload, is_loopback, peer_flags, workload_flags},
    codes::Protocol,
    flow::Owner,
    identity::{self, Number},
    policy::{Entry, PolicyKey, RANGE_PREFIX, RangeKey},
};

use super::Tables;

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

/// Whose a socket is: the nearest enrolled cgroup at or above the one it was
/// made in. If there is none, that cgroup itself, unenrolled.
#[must_use]
pub fn local(tables: &Tables, owner: &Owner) -> (u64, Workload) {
    let row = |cgroup: u64| tables.workload.get(&cgroup).copied();
    let above = owner.below_root.iter().rev().copied();
    let enrolled = std::iter::once(owner.leaf)
        .chain(above)
        .filter(|cgroup| *cgroup != 0)
        .find_map(|cgroup| Some((cgroup, row(cgroup)?)));
    enrolled.unwrap_or_else(|| {
        // Without that row the node's mode is not known: enforce.
        let unknown = Workload {
            identity: identity::UNENROLLED,
            flags: workload_flags::ENFORCE,
            netns: 0,
        };
        let row = row(0).unwrap_or(unknown);
        (owner.leaf, row.of_unenrolled(owner.netns))
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use zt_common::policy::Side;

    fn said(rule: u32) -> Entry {
        let now = Side {
            rule,
            ..Side::default()
        };
        Entry {
            now,
            ..Entry::default()
        }
    }

    fn key(port: u16) -> PolicyKey {
        PolicyKey {
            source: 300,
            destination: 301,
            port,
            protocol: 6,
            zero: 0,
        }
    }

    fn rule(tables: &Tables, port: u16) -> u32 {
        entry(tables, 300, 301, 6, port).now.rule
    }

    #[test]
    fn a_port_of_its_own_comes_first_then_its_block_then_the_rest() {
        let mut tables = Tables::default();
        assert_eq!(rule(&tables, 80), 0);

        let rest = Entry {
            ranges: 1,
            ..said(1)
        };
        let block = RangeKey {
            prefix_len: RANGE_PREFIX + 12,
            ..RangeKey::lookup(&key(80))
        };
        tables.policy.insert(key(0), rest);
        tables.range.insert(block, said(2));
        tables.policy.insert(key(81), said(3));
        assert_eq!(
            [79, 80, 81, 95, 96].map(|port| rule(&tables, port)),
            [1, 2, 3, 2, 1]
        );

        // Without the pointer nobody looks at the blocks.
        tables.policy.insert(key(0), said(1));
        assert_eq!(rule(&tables, 80), 1);
    }

    #[test]
    fn the_longest_prefix_counts_and_an_address_comes_before_all() {
        let ip = |last| zt_common::address::mapped([10, 0, 0, last]);
        let peer_of = |identity| Peer {
            identity,
            ..Peer::default()
        };
        let mut tables = Tables::default();
        assert_eq!(peer(&tables, &ip(1), 80, 6).identity, identity::WORLD);
        for prefix_len in [0, 96, 104, 127, 128] {
            let bits = u128::from_be_bytes(ip(0));
            let mask = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
            let ip = (bits & mask).to_be_bytes();
            tables
                .cidr
                .insert(CidrKey { prefix_len, ip }, peer_of(prefix_len));
        }
        let found = |last| peer(&tables, &ip(last), 80, 6).identity;
        assert_eq!([found(0), found(1), found(2)], [128, 127, 104]);

        let address = AddressKey {
            ip: ip(1),
            ..AddressKey::default()
        };
        tables.address.insert(address, peer_of(300));
        assert_eq!(peer(&tables, &ip(1), 80, 6).identity, 300);
    }
}
