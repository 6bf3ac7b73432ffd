//! Models of a size to measure with, and what the benchmarks share.

pub mod agent;
pub mod end_to_end;
pub mod micro;
pub mod plot;
pub mod statistics;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use zt_agent::model::{Endpoint, Mode, NodeModel, WorkloadSpec};
use zt_tests::node::{boot_offset, identity, party, policies};

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
    let endpoints = (0..peers).map(|number| Endpoint {
        ip: peer_address(number),
        party: party(&format!("peer/{number}")),
        cgroup: None,
        ports: None,
        target: None,
    });
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

/// A policy document with `rules` rules that all say the same.
#[must_use]
pub fn document(rules: usize) -> String {
    let ports: Vec<u16> = (0..PORTS).map(|n| FIRST_PORT + n * 10).collect();
    let rule = format!(
        "    - from: {{spiffe: \"{}\"}}\n      to: [{{spiffe: \"{}\", ports: {ports:?}, protocol: UDP}}]\n",
        identity("client"),
        identity("peer/*"),
    );
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: bench}}\nspec:\n  rules:\n{}",
        rule.repeat(rules)
    )
}
