//! Questions that land on borders: of prefixes, of port ranges, of deadlines.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use proptest::{collection::vec, prelude::*, sample::select};
use zt_agent::model::Selector;
use zt_common::codes::{Direction, Protocol};

use super::{
    pool,
    worlds::{BOOT_OFFSET, NOW, World, claimed_addresses},
};
use crate::Question;

/// Any question about `world`; half of them rather one that a rule speaks of,
/// which a blind draw seldom hits.
pub fn question(world: &World) -> impl Strategy<Value = Question> + use<> {
    let world = Arc::new(world.clone());
    let any = blind(&world);
    let aimed = vec(blind(&world), 16).prop_map(move |mut drawn| {
        let spoken_of = |question: &Question| a_rule_decides(&world, question);
        let chosen = drawn.iter().position(spoken_of).unwrap_or_default();
        drawn.swap_remove(chosen)
    });
    prop_oneof![any, aimed]
}

fn a_rule_decides(world: &World, question: &Question) -> bool {
    world.answer(question).rule.is_some()
}

fn blind(world: &World) -> impl Strategy<Value = Question> + use<> {
    let quarantined = world.quarantined.clone();
    let drawn = (
        local(world),
        select(Direction::ALL),
        remote(world),
        ports(),
        select(vec![
            Protocol::Tcp,
            Protocol::Tcp,
            Protocol::Udp,
            Protocol::Icmp,
        ]),
        now(),
    );
    drawn.prop_map(
        move |(local, direction, remote, (remote_port, local_port), protocol, now)| {
            let has_ports = protocol != Protocol::Icmp;
            Question {
                local,
                direction,
                remote,
                remote_port: if has_ports { remote_port } else { 0 },
                local_port: if has_ports { local_port } else { 0 },
                protocol,
                now,
                quarantined: quarantined.clone(),
            }
        },
    )
}

fn local(world: &World) -> impl Strategy<Value = Option<usize>> + use<> {
    prop_oneof![
        1 => Just(None),
        15 => (0..world.model.workloads.len()).prop_map(Some),
    ]
}

fn now() -> impl Strategy<Value = u64> {
    select(vec![BOOT_OFFSET + 1, NOW - 1, NOW, NOW, NOW + 1])
}

/// Mostly somebody; else the pool and the borders of every prefix in use. One
/// IPv4 address in eight comes mapped into IPv6.
fn remote(world: &World) -> impl Strategy<Value = IpAddr> + use<> {
    let mut borders: Vec<IpAddr> = prefixes_in_use(world).iter().flat_map(borders).collect();
    borders.extend(pool::addresses(pool::ADDRESSES));
    borders.retain(|ip| !ip.is_loopback() && !ip.is_unspecified());
    let somebody = prop_oneof![
        10 => select(claimed_addresses(world)),
        3 => select(pool::addresses(pool::NODE_ADDRESSES)),
        6 => select(borders),
    ];
    (somebody, 0..8_u8).prop_map(|(ip, eighth)| match ip {
        IpAddr::V4(v4) if eighth == 0 => IpAddr::V6(v4.to_ipv6_mapped()),
        _ => ip,
    })
}

fn prefixes_in_use(world: &World) -> Vec<IpNet> {
    let rules = world
        .model
        .policies
        .iter()
        .flat_map(|policy| policy.rules.iter());
    let selectors = rules.flat_map(|rule| {
        let to = rule.to.iter().flat_map(|target| &target.selectors);
        rule.from.iter().chain(to)
    });
    let named = selectors.filter_map(|selector| match selector {
        Selector::Cidr(net) => Some(*net),
        Selector::Spiffe(_) | Selector::Reserved(_) => None,
    });
    named.chain(world.model.cluster_ranges.clone()).collect()
}

/// The first and last address of a prefix, and those just outside.
fn borders(net: &IpNet) -> Vec<IpAddr> {
    let (first, last) = (net.network(), net.broadcast());
    let around = [
        neighbour(first, u128::wrapping_sub),
        neighbour(last, u128::wrapping_add),
    ];
    let same_family = around.into_iter().flatten();
    [first, last].into_iter().chain(same_family).collect()
}

/// The address one step away; `None` at the end of IPv4.
fn neighbour(ip: IpAddr, step: fn(u128, u128) -> u128) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(v4) => {
            let next = step(u128::from(u32::from(v4)), 1);
            let next = u32::try_from(next).ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(next)))
        }
        IpAddr::V6(v6) => Some(IpAddr::V6(Ipv6Addr::from(step(u128::from(v6), 1)))),
    }
}

fn ports() -> impl Strategy<Value = (u16, u16)> {
    (port(), port())
}

/// The ends of every range in the pool, the ports beside them, and those that
/// are declared.
fn port() -> impl Strategy<Value = u16> {
    let ends = pool::RANGES
        .iter()
        .flat_map(|(first, last)| [*first, *last]);
    let mut ports: Vec<u16> = ends
        .flat_map(|end| [end.saturating_sub(1), end, end.saturating_add(1)])
        .filter(|port| *port != 0)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    prop_oneof![1 => select(pool::DECLARED_PORTS), 1 => select(ports)]
}
