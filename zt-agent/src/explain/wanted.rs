//! What the policy files want for the workloads that the kernel knows now.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use zt_common::{
    address::{Ip, peer_flags, unmapped, workload_flags},
    codes::Protocol,
    identity::{self, Number},
};

use crate::{
    compile::{self, CompileError, Compiled, Tables},
    document::{Config, IdentityFile},
    model::{
        Endpoint, Mode, Name, NodeModel, Numbers, Party, Policy, Service, SpiffeId, WorkloadSpec,
        names::OutOfNumbers,
    },
    source::clock::Reading,
};

/// Why the wanted state is not known.
#[derive(Debug, thiserror::Error)]
pub enum WantedError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Numbers(#[from] OutOfNumbers),
}

/// The node as the kernel has it, with other policies. Endpoints of the
/// identity file are added: patterns select among them, too.
#[must_use]
pub fn live(
    tables: &Tables,
    numbers: &Numbers,
    file: Option<&IdentityFile>,
    config: &Config,
    policies: Vec<Policy>,
    clock: Reading,
) -> NodeModel {
    let names = by_number(numbers);
    let name = |number| names.get(&number).cloned();
    let services = services_by_number(numbers);
    let workloads = (tables.workload.iter()).filter_map(|(cgroup, row)| {
        Some(WorkloadSpec {
            cgroup: *cgroup,
            path: "".into(),
            mode: mode(row.flags & workload_flags::ENFORCE != 0),
            raw_sockets: row.flags & workload_flags::RAW != 0,
            netns: (row.netns != 0).then_some(row.netns),
            identity: name(row.identity)?,
        })
    });
    let known = (tables.address.iter()).filter_map(|(key, peer)| {
        Some(Endpoint {
            ip: address(&key.ip),
            party: Party::Workload(name(peer.identity)?),
            cgroup: (peer.cgroup != 0).then_some(peer.cgroup),
            ports: None,
            target: None,
        })
    });
    let others = (tables.address.iter())
        .filter(|(_, peer)| matches!(peer.identity, identity::NODES | identity::APISERVER))
        .map(|(key, peer)| Endpoint {
            ip: address(&key.ip),
            party: Party::Reserved(peer.identity),
            cgroup: None,
            ports: None,
            target: None,
        });
    let services = (tables.address.iter()).filter_map(|(key, peer)| {
        let service = services.get(&peer.identity)?;
        Some(Endpoint {
            ip: address(&key.ip),
            party: Party::Service(service.clone()),
            cgroup: None,
            ports: Some(vec![(Protocol::from_code(key.protocol)?, key.port)]),
            target: None,
        })
    });
    let node = (tables.address.iter()).filter(|(_, peer)| peer.flags & peer_flags::NODE != 0);
    NodeModel {
        mode: config.mode,
        workloads: workloads.collect(),
        endpoints: known
            .chain(others)
            .chain(services)
            .chain(file.into_iter().flat_map(elsewhere))
            .collect(),
        interfaces: Vec::new(),
        host_netns: (tables.workload.get(&0))
            .map(|row| row.netns)
            .filter(|netns| *netns != 0),
        departed: Vec::new(),
        node_addresses: node.map(|(key, _)| address(&key.ip)).collect(),
        cluster_ranges: ranges(tables)
            .chain(config.cluster_ranges.iter().copied())
            .collect(),
        policies,
        boot_offset: clock.boot_offset,
        set_back_from: clock.set_back_from,
    }
}

/// The cluster's ranges, also those that it says itself.
fn ranges(tables: &Tables) -> impl Iterator<Item = IpNet> {
    let unknown = (tables.cidr.iter()).filter(|(_, peer)| peer.identity == identity::UNKNOWN_PEER);
    unknown.filter_map(|(key, _)| {
        let bits = u8::try_from(key.prefix_len).ok()?;
        match address(&key.ip) {
            // IPv4 lives below `::ffff:0:0/96`.
            ip @ IpAddr::V4(_) => IpNet::new(ip, bits.checked_sub(96)?).ok(),
            ip @ IpAddr::V6(_) => IpNet::new(ip, bits).ok(),
        }
    })
}

/// The node as the identity file has it, as if every cgroup were there: good
/// enough to see whom rules select.
#[must_use]
pub fn on_paper(file: &IdentityFile, config: &Config, policies: Vec<Policy>) -> NodeModel {
    let workload =
        |(cgroup, entry): (u64, &crate::document::identities::WorkloadEntry)| WorkloadSpec {
            identity: entry.spiffe.clone(),
            cgroup,
            path: "".into(),
            mode: entry.mode.unwrap_or(config.mode),
            raw_sockets: entry.raw_sockets,
            netns: None,
        };
    NodeModel {
        mode: config.mode,
        workloads: (1..).zip(&file.workloads).map(workload).collect(),
        endpoints: elsewhere(file).collect(),
        interfaces: Vec::new(),
        host_netns: None,
        departed: Vec::new(),
        node_addresses: Vec::new(),
        cluster_ranges: config.cluster_ranges.clone(),
        policies,
        boot_offset: 0,
        set_back_from: 0,
    }
}

/// Compiles; numbers that are missing are given out in memory only.
///
/// # Errors
/// When the model contradicts itself or numbers run out.
pub fn compile(model: &NodeModel, known: &Numbers) -> Result<(Compiled, Numbers), WantedError> {
    let mut numbers = known.clone();
    let needs = compile::names(model);
    for name in &needs.names {
        numbers.intern(name)?;
    }
    for rule in &needs.rules {
        numbers.intern_rule(rule)?;
    }
    Ok((compile::compile(model, &numbers)?, numbers))
}

fn elsewhere(file: &IdentityFile) -> impl Iterator<Item = Endpoint> {
    file.endpoints.iter().flat_map(|entry| {
        entry.addresses.iter().map(|ip| Endpoint {
            ip: *ip,
            party: entry.party.clone(),
            cgroup: None,
            ports: entry.ports.clone(),
            target: None,
        })
    })
}

fn mode(enforce: bool) -> Mode {
    if enforce { Mode::Enforce } else { Mode::Audit }
}

/// The SPIFFE IDs by their numbers.
#[must_use]
pub fn by_number(numbers: &Numbers) -> HashMap<Number, SpiffeId> {
    (numbers.names())
        .filter_map(|(name, number)| match name {
            Name::Spiffe(id) => Some((number, id.clone())),
            Name::Class(_) | Name::Service(_) => None,
        })
        .collect()
}

fn services_by_number(numbers: &Numbers) -> HashMap<Number, Arc<Service>> {
    let named = numbers.names();
    let services = named.filter_map(|(name, number)| match name {
        Name::Service(service) => Some((number, service.clone())),
        Name::Spiffe(_) | Name::Class(_) => None,
    });
    services.collect()
}

/// An address of a map as people write it.
#[must_use]
pub fn address(ip: &Ip) -> IpAddr {
    unmapped(ip).map_or_else(|| IpAddr::from(*ip), IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::samples::{allow, built, endpoint, model, policy, workload},
        explain::changes,
    };

    #[test]
    fn the_same_policies_want_what_the_kernel_has() {
        let mut world = model();
        world.workloads = vec![workload("a", 10), workload("b", 11)];
        world.endpoints = vec![
            endpoint("10.0.0.1", "a", 10),
            endpoint("10.0.0.2", "b", 11),
            endpoint("10.9.0.3", "far", 0),
            Endpoint {
                party: Party::Reserved(identity::NODES),
                ..endpoint("192.0.2.7", "x", 0)
            },
        ];
        world.cluster_ranges = ["10.0.0.0/24", "fd00:1::/64"]
            .map(|range| range.parse().unwrap())
            .into();
        let rules = vec![
            allow(1, "a", "*").ports(&[(80, 80)]),
            allow(2, "b", "203.0.113.0/24"),
        ];
        world.policies = vec![policy("p", rules)];
        let built = built(&world);
        let again = live(
            built.tables(),
            &built.numbers,
            None,
            &Config::default(),
            world.policies.clone(),
            Reading::default(),
        );
        let (compiled, numbers) = compile(&again, &built.numbers).unwrap();
        assert_eq!(changes::between(built.tables(), &compiled.tables), []);
        assert_eq!(numbers, built.numbers);
    }
}
