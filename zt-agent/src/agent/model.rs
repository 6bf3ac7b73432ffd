//! From what the sources say to the node model. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use zt_common::codes::Protocol;

use crate::{
    document::Config,
    model::{Endpoint, NodeModel, Party, WorkloadSpec},
    source::{clock::Reading, documents::Documents, identities::Resolved},
};

/// What this machine looks like at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub resolved: Resolved,
    /// Enrolled by the admin socket.
    pub enrolled: Vec<Enrolled>,
    pub node_addresses: Vec<IpAddr>,
    /// Cookie of this node's network namespace, if whoever is in it and not
    /// enrolled is part of the node.
    pub host_netns: Option<u64>,
    pub clock: Reading,
}

/// A workload that somebody enrolled by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    pub spec: WorkloadSpec,
    /// Its own on every address of the node and on loopback.
    pub ports: Vec<(Protocol, u16)>,
}

/// Puts together what the compiler reads.
#[must_use]
pub fn build(config: &Config, documents: &Documents, machine: &Machine) -> NodeModel {
    let resolved = &machine.resolved;
    let by_hand = machine.enrolled.iter();
    let workloads = resolved.workloads.iter();
    let endpoints = resolved.endpoints.iter().cloned();
    let claims = (by_hand.clone()).flat_map(|one| ports_of(one, &machine.node_addresses));
    // An address whose owner is not there yet: nobody's, and so nobody may
    // reach it or come from it.
    let unowned = resolved.unowned.iter().map(|ip| IpNet::from(*ip));
    NodeModel {
        mode: config.mode,
        workloads: workloads.chain(by_hand.map(|e| &e.spec)).cloned().collect(),
        endpoints: endpoints.chain(claims).collect(),
        interfaces: resolved.interfaces.clone(),
        host_netns: machine.host_netns,
        departed: resolved.departed.clone(),
        node_addresses: machine.node_addresses.clone(),
        cluster_ranges: config
            .cluster_ranges
            .iter()
            .chain(&resolved.ranges)
            .copied()
            .chain(unowned)
            .collect(),
        policies: documents.all_policies().cloned().collect(),
        boot_offset: machine.clock.boot_offset,
        set_back_from: machine.clock.set_back_from,
    }
}

fn ports_of(enrolled: &Enrolled, node_addresses: &[IpAddr]) -> Vec<Endpoint> {
    if enrolled.ports.is_empty() {
        return Vec::new();
    }
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let addresses = loopback.iter().chain(node_addresses);
    let claim = |ip: &IpAddr| Endpoint {
        ip: *ip,
        party: Party::Workload(enrolled.spec.identity.clone()),
        cgroup: Some(enrolled.spec.cgroup),
        ports: Some(enrolled.ports.clone()),
        target: None,
    };
    addresses.map(claim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mode;

    fn spec(name: &str, cgroup: u64) -> WorkloadSpec {
        WorkloadSpec {
            identity: format!("spiffe://td/{name}").parse().unwrap(),
            cgroup,
            path: name.into(),
            mode: Mode::Enforce,
            raw_sockets: false,
            netns: None,
        }
    }

    #[test]
    fn ports_of_a_command_are_its_own_on_every_local_address() {
        let machine = Machine {
            enrolled: vec![
                Enrolled {
                    spec: spec("a", 7),
                    ports: vec![(Protocol::Tcp, 80)],
                },
                Enrolled {
                    spec: spec("b", 8),
                    ports: Vec::new(),
                },
            ],
            node_addresses: vec!["192.0.2.1".parse().unwrap()],
            ..Machine::default()
        };
        let model = build(&Config::default(), &Documents::default(), &machine);
        assert_eq!(model.workloads.len(), 2);
        let places: Vec<String> = model.endpoints.iter().map(|e| e.ip.to_string()).collect();
        assert_eq!(places, ["127.0.0.1", "::1", "192.0.2.1"]);
        assert!(model.endpoints.iter().all(|e| e.cgroup == Some(7)));
    }

    #[test]
    fn the_clusters_ranges_are_those_of_the_file_and_those_that_it_says_itself() {
        let config = Config {
            cluster_ranges: vec!["10.0.0.0/8".parse().unwrap()],
            ..Config::default()
        };
        let mut machine = Machine::default();
        machine.resolved.ranges = vec!["fd00::/64".parse().unwrap()];
        let model = build(&config, &Documents::default(), &machine);
        let expected = ["10.0.0.0/8", "fd00::/64"].map(|range| range.parse().unwrap());
        assert_eq!(model.cluster_ranges, expected);
    }

    #[test]
    fn an_address_without_its_owner_is_in_the_clusters_ranges() {
        let mut machine = Machine::default();
        machine.resolved.unowned = vec!["10.0.0.1".parse().unwrap()];
        let model = build(&Config::default(), &Documents::default(), &machine);
        assert_eq!(model.cluster_ranges, ["10.0.0.1/32".parse().unwrap()]);
        assert!(model.endpoints.is_empty());
    }
}
