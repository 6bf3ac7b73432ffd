//! Models of a size to measure with, and what the benchmarks share.

pub mod agent;
pub mod end_to_end;
mod idle;
pub mod machine;
pub mod micro;
pub mod output;
pub mod plot;
pub mod quiet;
pub mod statistics;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use zt_agent::model::{Endpoint, Mode, NodeModel, WorkloadSpec};
use zt_tests::node::{allow, boot_offset, identity, party, policies};

/// The ports that a pair may use: one row of the policy map each, for each
/// peer.
pub const PORTS: u16 = 8;
/// The first of them.
pub const FIRST_PORT: u16 = 8000;

/// The address of a peer, by its number.
#[must_use]
pub fn peer_address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a40_0000 + number).into()
}

/// A node with one workload, `client`, in `cgroup`, and `peers` elsewhere that
/// it may reach on [`PORTS`] ports by UDP.
pub fn model(cgroup: u64, peers: u32) -> Result<NodeModel> {
    let endpoints = (0..peers).map(peer);
    Ok(NodeModel {
        mode: Mode::Enforce,
        workloads: vec![WorkloadSpec {
            identity: identity("client").parse()?,
            cgroup,
            path: "client".into(),
            mode: Mode::Enforce,
            raw_sockets: false,
            netns: None,
        }],
        endpoints: endpoints.collect(),
        interfaces: Vec::new(),
        host_netns: None,
        departed: Vec::new(),
        node_addresses: Vec::new(),
        cluster_ranges: Vec::new(),
        policies: policies(&document(1))?,
        boot_offset: boot_offset(),
        set_back_from: 0,
    })
}

/// Who is at an address elsewhere.
#[must_use]
pub fn endpoint(ip: IpAddr, name: &str) -> Endpoint {
    Endpoint {
        ip,
        party: party(name),
        cgroup: None,
        ports: None,
        target: None,
    }
}

/// A peer, by its number, at its address.
#[must_use]
pub fn peer(number: u32) -> Endpoint {
    endpoint(peer_address(number), &format!("peer/{number}"))
}

/// A policy document with `rules` rules that all say the same.
#[must_use]
pub fn document(rules: usize) -> String {
    let rule = allow("client", "peer/*", &format!("{:?}", ports()), "UDP");
    policy(std::iter::repeat_n(rule, rules))
}

/// A policy document with these rules.
#[must_use]
pub fn policy(rules: impl IntoIterator<Item = String>) -> String {
    let mut text = "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\n\
        metadata: {name: bench}\nspec:\n  rules:\n"
        .to_owned();
    for rule in rules {
        text.push_str(&format!("    - {rule}\n"));
    }
    text
}

/// [`PORTS`] ports.
#[must_use]
pub fn ports() -> Vec<u16> {
    (0..PORTS).map(|nth| FIRST_PORT + nth * 10).collect()
}
