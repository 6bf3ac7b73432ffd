//! A node, what is on it and what is around it.

use std::net::IpAddr;

use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::{select, subsequence},
};
use zt_agent::model::{Endpoint, Member, Mode, NodeModel, Party, Service, WorkloadSpec};
use zt_common::{codes::Protocol, identity};

use super::{policies::policies, pool};
use crate::Question;

/// When the node booted, and about when every question is asked: wall-clock
/// nanoseconds since the Unix epoch.
pub const BOOT_OFFSET: u64 = 1_795_000_000_000_000_000;
pub const NOW: u64 = BOOT_OFFSET + 5_000_000_000;

/// A node and the state that is not part of its model.
#[derive(Clone, Debug)]
pub struct World {
    pub model: NodeModel,
    pub quarantined: Vec<zt_agent::model::SpiffeId>,
    pub host_may_reach: bool,
}

impl World {
    /// The reference's answer to a question about this world.
    #[must_use]
    pub fn answer(&self, question: &Question) -> crate::Answer {
        crate::evaluate(&self.model, question, self.host_may_reach)
    }
}

/// Any world.
pub fn world() -> impl Strategy<Value = World> {
    workloads().prop_flat_map(|workloads| {
        let endpoints = endpoints(&workloads);
        let around = (
            mode(),
            endpoints,
            subsequence(pool::addresses(pool::NODE_ADDRESSES), 1..4),
            subsequence(pool::prefixes(pool::CLUSTER_RANGES), 0..4),
            policies(),
            quarantined(),
            any::<bool>(),
        );
        around.prop_map(
            move |(mode, endpoints, nodes, ranges, policies, quarantined, host)| World {
                model: NodeModel {
                    mode,
                    workloads: workloads.clone(),
                    endpoints,
                    interfaces: Vec::new(),
                    host_netns: None,
                    departed: Vec::new(),
                    node_addresses: nodes,
                    cluster_ranges: ranges,
                    policies,
                    boot_offset: BOOT_OFFSET,
                    set_back_from: 0,
                },
                quarantined,
                host_may_reach: host,
            },
        )
    })
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![2 => Just(Mode::Enforce), 1 => Just(Mode::Audit)]
}

/// Several may have the same identity, as replicas do.
fn workloads() -> impl Strategy<Value = Vec<WorkloadSpec>> {
    let each = (
        select(pool::LOCAL_IDS),
        mode(),
        any::<bool>(),
        any::<bool>(),
    );
    vec(each, 2..6).prop_map(|drawn| {
        let numbered = drawn.into_iter().zip(1_u64..);
        numbered
            .map(|((id, mode, raw_sockets, own_netns), n)| WorkloadSpec {
                identity: pool::id(id),
                cgroup: 100 + n,
                path: format!("/managed/w{n}").into(),
                mode,
                raw_sockets,
                netns: own_netns.then_some(900 + n),
            })
            .collect()
    })
}

fn quarantined() -> impl Strategy<Value = Vec<zt_agent::model::SpiffeId>> {
    let ids: Vec<&str> = [pool::LOCAL_IDS, pool::REMOTE_IDS].concat();
    option::weighted(0.25, select(ids)).prop_map(|id| id.into_iter().map(pool::id).collect())
}

fn endpoints(workloads: &[WorkloadSpec]) -> impl Strategy<Value = Vec<Endpoint>> + use<> {
    let each = (
        select(pool::addresses(pool::ADDRESSES)),
        party(workloads),
        option::weighted(0.35, declared_ports()),
        option::weighted(0.4, select(pool::DECLARED_PORTS)),
    );
    (vec(each, 2..12), vec(service(), 0..3)).prop_map(|(drawn, services)| {
        let claims = drawn.into_iter();
        let claims = claims.map(|(ip, (party, cgroup), ports, target)| Endpoint {
            // Only a Service's address, which is nobody's own, has one.
            target: target.filter(|_| cgroup.is_none() && ports.is_some()),
            ip,
            party,
            cgroup,
            ports,
        });
        claims.chain(services.into_iter().flatten()).collect()
    })
}

/// A port of an address with several parties behind it. `None`: they are one.
fn service() -> impl Strategy<Value = Option<Endpoint>> {
    let ids: Vec<&str> = [pool::LOCAL_IDS, pool::REMOTE_IDS].concat();
    let party = prop_oneof![
        8 => select(ids).prop_map(|id| Party::Workload(pool::id(id))),
        1 => Just(Party::Reserved(identity::APISERVER)),
    ];
    let port = select(pool::DECLARED_PORTS);
    let member = (party, port, any::<bool>()).prop_map(|(party, port, is_governed)| Member {
        party,
        port,
        is_governed,
    });
    let members = btree_set(member, 2..4);
    let place = (select(pool::addresses(pool::ADDRESSES)), declared_ports());
    (members, place).prop_map(|(members, (ip, ports))| {
        Some(Endpoint {
            ip,
            party: Party::Service(Service::new("ns/service", members)?.into()),
            cgroup: None,
            ports: Some(ports),
            target: None,
        })
    })
}

/// A workload of this node, one of another node, or a reserved identity.
fn party(workloads: &[WorkloadSpec]) -> impl Strategy<Value = (Party, Option<u64>)> + use<> {
    let local: Vec<(Party, Option<u64>)> = workloads
        .iter()
        .map(|w| (Party::Workload(w.identity.clone()), Some(w.cgroup)))
        .collect();
    let elsewhere: Vec<&str> = [pool::LOCAL_IDS, pool::REMOTE_IDS].concat();
    let reserved = select(vec![identity::HOST, identity::NODES, identity::APISERVER]);
    prop_oneof![
        6 => select(local),
        2 => select(elsewhere).prop_map(|id| (Party::Workload(pool::id(id)), None)),
        1 => reserved.prop_map(|number| (Party::Reserved(number), None)),
    ]
}

fn declared_ports() -> impl Strategy<Value = Vec<(Protocol, u16)>> {
    let port = (
        select(vec![Protocol::Tcp, Protocol::Udp]),
        select(pool::DECLARED_PORTS),
    );
    btree_set(port, 1..3).prop_map(|ports| ports.into_iter().collect())
}

/// Every address in this world that is worth asking about.
pub fn claimed_addresses(world: &World) -> Vec<IpAddr> {
    let claims = world.model.endpoints.iter();
    claims.map(|claim| claim.ip).collect()
}
