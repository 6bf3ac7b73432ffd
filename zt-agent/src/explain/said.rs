//! What the rows say of a pair, port by port.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use zt_common::{
    codes::{Action, Protocol},
    identity::Number,
    policy::{Entry, RANGE_PREFIX, Side},
};

use crate::compile::{Tables, lookup};

/// Two ends and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    pub source: Number,
    pub destination: Number,
    /// IP protocol number.
    pub protocol: u8,
}

/// The same is said of all these ports. ICMP has only port 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub ports: RangeInclusive<u16>,
    pub now: Side,
    pub would: Side,
}

/// Where what is said can change, for every pair that has rows: the first
/// ports of the pieces, ascending.
pub type Starts = BTreeMap<Pair, BTreeSet<u16>>;

/// The pieces of all pairs.
#[must_use]
pub fn starts(tables: &Tables) -> Starts {
    let mut starts = Starts::new();
    for key in tables.policy.keys() {
        let pair = Pair {
            source: key.source,
            destination: key.destination,
            protocol: key.protocol,
        };
        let pieces = starts.entry(pair).or_insert_with(|| first(key.protocol));
        if key.port != 0 {
            pieces.extend(
                [Some(key.port), key.port.checked_add(1)]
                    .into_iter()
                    .flatten(),
            );
        }
    }
    for key in tables.range.keys() {
        let pair = Pair {
            source: Number::from_be_bytes(key.source),
            destination: Number::from_be_bytes(key.destination),
            protocol: key.protocol,
        };
        let bits = key.prefix_len.saturating_sub(RANGE_PREFIX);
        let length = 0x1_0000u32.checked_shr(bits).unwrap_or(0);
        let start = u16::from_be_bytes(key.port);
        let end = u16::try_from(u32::from(start) + length).ok();
        let pieces = starts.entry(pair).or_insert_with(|| first(key.protocol));
        pieces.extend([Some(start.max(1)), end].into_iter().flatten());
    }
    starts
}

fn first(protocol: u8) -> BTreeSet<u16> {
    BTreeSet::from([u16::from(protocol != Protocol::Icmp as u8)])
}

/// The pieces between `starts` with what `ask` says of their first port;
/// equal neighbours are one.
pub fn pieces<T: PartialEq>(
    starts: &BTreeSet<u16>,
    mut ask: impl FnMut(u16) -> T,
) -> Vec<(RangeInclusive<u16>, T)> {
    let mut pieces: Vec<(RangeInclusive<u16>, T)> = Vec::new();
    let ends = starts.iter().skip(1).map(|next| next - 1);
    for (start, end) in starts.iter().zip(ends.chain([u16::MAX])) {
        let value = ask(*start);
        match pieces.last_mut() {
            Some((ports, same)) if *same == value => *ports = *ports.start()..=end,
            _ => pieces.push((*start..=end, value)),
        }
    }
    pieces
}

/// What is said of one port of a pair.
#[must_use]
pub fn at(tables: &Tables, pair: &Pair, port: u16) -> Entry {
    lookup::entry(tables, pair.source, pair.destination, pair.protocol, port)
}

/// Everything that is said of all pairs, silence left out.
#[must_use]
pub fn everything(tables: &Tables) -> BTreeMap<Pair, Vec<Said>> {
    let silent = |side: &Side| side.action == Action::None as u8;
    let said = |pair: &Pair, starts| {
        let sides = |port| {
            let entry = at(tables, pair, port);
            (entry.now, entry.would)
        };
        (pieces(starts, sides).into_iter())
            .filter(|(_, (now, would))| !silent(now) || !silent(would))
            .map(|(ports, (now, would))| Said { ports, now, would })
            .collect::<Vec<_>>()
    };
    (starts(tables).iter())
        .map(|(pair, starts)| (*pair, said(pair, starts)))
        .collect()
}

/// `5432/tcp`, `8000-8010/udp`, `any/tcp`, `icmp`.
#[must_use]
pub fn ports(ports: &RangeInclusive<u16>, protocol: u8) -> String {
    let name = Protocol::from_code(protocol).map_or_else(
        || format!("protocol-{protocol}"),
        |protocol| protocol.name().to_lowercase(),
    );
    match (*ports.start(), *ports.end()) {
        _ if protocol == Protocol::Icmp as u8 => name,
        (1, u16::MAX) => format!("any/{name}"),
        (one, other) if one == other => format!("{one}/{name}"),
        (first, last) => format!("{first}-{last}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::samples::{allow, built, deny, endpoint, model, policy, workload};

    #[test]
    fn ranges_and_single_ports_come_back_as_they_were_written() {
        let mut world = model();
        world.workloads = vec![workload("a", 10), workload("b", 11)];
        world.endpoints = vec![endpoint("10.0.0.1", "a", 10), endpoint("10.0.0.2", "b", 11)];
        world.policies = vec![policy(
            "p",
            vec![
                allow(1, "a", "b").ports(&[(80, 80), (8000, 8010)]),
                deny(2, "a", "b").ports(&[(8005, 8005)]),
                allow(3, "b", "a"),
            ],
        )];
        let built = built(&world);
        let got: Vec<String> = everything(built.tables())
            .iter()
            .flat_map(|(pair, said)| {
                said.iter().map(|s| {
                    let rule = s.now.rule;
                    format!(
                        "{} {} by {rule}",
                        pair.source,
                        ports(&s.ports, pair.protocol)
                    )
                })
            })
            .collect();
        assert_eq!(
            got,
            [
                "256 80/tcp by 1",
                "256 8000-8004/tcp by 1",
                "256 8005/tcp by 2",
                "256 8006-8010/tcp by 1",
                "257 any/tcp by 3"
            ]
        );
    }

    #[test]
    fn the_last_port_ends_the_last_piece() {
        let got = pieces(&BTreeSet::from([1, 65535]), |port| port);
        assert_eq!(got, [(1..=65534, 1), (65535..=65535, 65535)]);
    }
}
