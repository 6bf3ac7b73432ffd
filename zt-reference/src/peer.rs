//! Who is at the far end.

use std::{net::IpAddr, sync::Arc};

use zt_agent::model::{Endpoint, NodeModel, Party, Service, SpiffeId};
use zt_common::{
    codes::{Direction, Protocol},
    identity::{self, Number},
};

use crate::Question;

/// The far end of a flow, as the governed end may know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Workload(SpiffeId),
    /// A reserved identity other than `world`.
    Reserved(Number),
    /// An address of `world`, IPv4-mapped ones in their IPv4 form.
    Address(IpAddr),
    /// One of several behind a Service's port, and nobody knows which.
    Service(Arc<Service>),
}

impl From<&Party> for Peer {
    fn from(party: &Party) -> Self {
        match party {
            Party::Workload(id) => Self::Workload(id.clone()),
            Party::Reserved(number) => Self::Reserved(*number),
            Party::Service(service) => Self::Service(service.clone()),
        }
    }
}

/// A peer, and the cgroup on this node that was claimed to be behind it.
pub(crate) struct FarEnd {
    pub peer: Peer,
    pub cgroup: Option<u64>,
    /// Where it gets what is sent to the port of the question.
    pub target: Option<u16>,
}

impl FarEnd {
    fn reserved(number: Number) -> Self {
        Self {
            peer: Peer::Reserved(number),
            cgroup: None,
            target: None,
        }
    }
}

/// Who is at the question's remote address and port.
pub(crate) fn far_end(model: &NodeModel, question: &Question) -> FarEnd {
    let ip = question.remote.to_canonical();
    let claims: Vec<&Endpoint> = model
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.ip.to_canonical() == ip)
        .collect();
    if claims.is_empty() {
        unclaimed(model, question, ip)
    } else {
        claimed(&claims, question)
    }
}

fn claimed(claims: &[&Endpoint], question: &Question) -> FarEnd {
    let (whole, with_ports): (Vec<&Endpoint>, Vec<&Endpoint>) =
        claims.iter().partition(|claim| claim.ports.is_none());
    let of_this_port: Vec<&Endpoint> = with_ports
        .iter()
        .copied()
        .filter(|claim| declares_the_port(claim, question))
        .collect();

    if !of_this_port.is_empty() {
        agreed(&of_this_port)
    } else if with_ports.is_empty() {
        agreed(&whole)
    } else if whole.is_empty() {
        FarEnd::reserved(identity::UNKNOWN_PEER)
    } else {
        FarEnd::reserved(identity::CONFLICT)
    }
}

fn declares_the_port(claim: &Endpoint, question: &Question) -> bool {
    // ICMP has no ports, so nobody can have declared this one.
    question.protocol != Protocol::Icmp
        && claim
            .ports
            .iter()
            .flatten()
            .any(|port| *port == (question.protocol, question.remote_port))
}

/// The one party that all these claims name; otherwise they are in conflict.
fn agreed(claims: &[&Endpoint]) -> FarEnd {
    let first = claims[0];
    let all = |claim: &Endpoint| (claim.party.clone(), claim.cgroup, claim.target);
    let same = |claim: &&Endpoint| all(claim) == all(first);
    if !claims.iter().all(same) {
        return FarEnd::reserved(identity::CONFLICT);
    }
    FarEnd {
        peer: Peer::from(&first.party),
        cgroup: first.cgroup,
        target: first.target,
    }
}

fn unclaimed(model: &NodeModel, question: &Question, ip: IpAddr) -> FarEnd {
    let is_node = model
        .node_addresses
        .iter()
        .any(|address| address.to_canonical() == ip);
    if is_node {
        FarEnd::reserved(behind_a_node_address(model, question))
    } else if model.cluster_ranges.iter().any(|net| net.contains(&ip)) {
        FarEnd::reserved(identity::UNKNOWN_PEER)
    } else {
        FarEnd {
            peer: Peer::Address(ip),
            cgroup: None,
            target: None,
        }
    }
}

/// A packet that enters a workload's own namespace was forwarded: the address
/// on it no longer shows which socket sent it.
fn behind_a_node_address(model: &NodeModel, question: &Question) -> Number {
    let has_own_netns = question
        .local
        .is_some_and(|index| model.workloads[index].netns.is_some());
    if question.direction == Direction::Ingress && has_own_netns {
        identity::MASQUERADED
    } else {
        identity::HOST
    }
}
