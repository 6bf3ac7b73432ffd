//! Who is at an address.

use std::net::IpAddr;

use zt_agent::model::{Endpoint, NodeModel, Party};
use zt_common::{
    codes::{Protocol, Reason},
    identity,
};
use zt_reference::{Peer, Question};

use crate::node::*;

const CONFLICT: Peer = Peer::Reserved(identity::CONFLICT);
const UNKNOWN: Peer = Peer::Reserved(identity::UNKNOWN_PEER);

fn peer(model: &NodeModel, question: &Question) -> Peer {
    ask(model, question).peer
}

fn workload(name: &str) -> Peer {
    Peer::Workload(id(name))
}

/// `name`, here or elsewhere, has these ports of 10.0.0.7.
fn share(name: &str, cgroup: Option<u64>, ports: &[(Protocol, u16)]) -> Endpoint {
    Endpoint {
        ports: Some(ports.to_vec()),
        ..claim("10.0.0.7", name, cgroup)
    }
}

fn at_port(port: u16) -> Question {
    Question {
        remote_port: port,
        ..egress(CLIENT, "10.0.0.7")
    }
}

#[test]
fn a_claimed_address_is_its_party() {
    let model = node(vec![]);
    assert_eq!(
        peer(&model, &egress(CLIENT, "10.0.0.2")),
        workload("server")
    );
    assert_eq!(
        peer(&model, &ingress(CLIENT, "10.0.0.5")),
        workload("remote")
    );
}

#[test]
fn a_reserved_party_is_named_by_rules() {
    let mut model = node(vec![allow(&["client"], &["apiserver"])]);
    model.endpoints.push(Endpoint {
        party: Party::Reserved(identity::APISERVER),
        ..claim("192.0.2.10", "x", None)
    });
    assert!(allows(&model, &egress(CLIENT, "192.0.2.10")));
    assert!(!allows(&model, &egress(CLIENT, "192.0.2.11")));
}

#[test]
fn an_ipv4_mapped_address_is_the_ipv4_address() {
    let model = node(vec![allow(&["client"], &["server"])]);
    let mapped = egress(CLIENT, "::ffff:10.0.0.2");
    assert_eq!(peer(&model, &mapped), workload("server"));
    assert!(allows(&model, &mapped));
    let outside: IpAddr = "192.0.2.1".parse().unwrap();
    let mapped = egress(CLIENT, "::ffff:192.0.2.1");
    assert_eq!(peer(&model, &mapped), Peer::Address(outside));
}

#[test]
fn two_claims_by_the_same_party_and_cgroup_are_one() {
    let mut model = node(vec![]);
    model.endpoints.push(claim("10.0.0.2", "server", Some(102)));
    model.endpoints.push(claim("10.0.0.5", "remote", None));
    assert_eq!(
        peer(&model, &egress(CLIENT, "10.0.0.2")),
        workload("server")
    );
    assert_eq!(
        peer(&model, &egress(CLIENT, "10.0.0.5")),
        workload("remote")
    );
}

#[test]
fn two_different_claimants_are_a_conflict_and_denied() {
    let everybody = allow(&["spiffe://td/**"], &["spiffe://td/**", "0.0.0.0/0"]);
    for (name, cgroup) in [("remote", None), ("server", Some(999))] {
        let mut model = node(vec![everybody.clone()]);
        model.endpoints.push(claim("10.0.0.2", name, cgroup));
        let question = egress(CLIENT, "10.0.0.2");
        assert_eq!(peer(&model, &question), CONFLICT, "{name}");
        assert_eq!(reason(&model, &question), Reason::Conflict);
    }
}

#[test]
fn the_port_tells_apart_who_shares_an_address() {
    use Protocol::{Tcp, Udp};
    let mut model = node(vec![]);
    model.endpoints.extend([
        share("server", Some(102), &[(Tcp, 80), (Tcp, 81)]),
        share("remote", None, &[(Tcp, 443), (Udp, 80)]),
    ]);
    assert_eq!(peer(&model, &at_port(80)), workload("server"));
    assert_eq!(peer(&model, &at_port(81)), workload("server"));
    assert_eq!(peer(&model, &at_port(443)), workload("remote"));
    assert_eq!(peer(&model, &at_port(82)), UNKNOWN);
    let mut udp = at_port(80);
    udp.protocol = Udp;
    assert_eq!(peer(&model, &udp), workload("remote"));
    let mut icmp = at_port(0);
    icmp.protocol = Protocol::Icmp;
    assert_eq!(peer(&model, &icmp), UNKNOWN);
}

#[test]
fn one_port_claimed_by_two_is_a_conflict_on_that_port_only() {
    let mut model = node(vec![]);
    model.endpoints.extend([
        share(
            "server",
            Some(102),
            &[(Protocol::Tcp, 80), (Protocol::Tcp, 81)],
        ),
        share("remote", None, &[(Protocol::Tcp, 80)]),
    ]);
    assert_eq!(peer(&model, &at_port(80)), CONFLICT);
    assert_eq!(peer(&model, &at_port(81)), workload("server"));
}

#[test]
fn a_whole_claim_beside_declared_ports_is_a_conflict_on_the_others() {
    let mut model = node(vec![]);
    model.endpoints.extend([
        share("server", Some(102), &[(Protocol::Tcp, 80)]),
        claim("10.0.0.7", "remote", None),
    ]);
    assert_eq!(peer(&model, &at_port(80)), workload("server"));
    assert_eq!(peer(&model, &at_port(81)), CONFLICT);
}

#[test]
fn an_address_of_the_cluster_that_nobody_owns_is_unknown_and_denied() {
    let model = node(vec![allow(&["client"], &["world", "0.0.0.0/0", "::/0"])]);
    for remote in ["10.0.255.255", "fd00::ffff"] {
        let question = egress(CLIENT, remote);
        assert_eq!(peer(&model, &question), UNKNOWN);
        assert_eq!(reason(&model, &question), Reason::UnknownPeer);
    }
    assert!(allows(&model, &egress(CLIENT, "10.1.0.0")));
}

#[test]
fn what_is_neither_known_nor_in_the_cluster_is_world_and_never_host() {
    let model = node(vec![]);
    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(
        peer(&model, &ingress(SHARED, "192.0.2.1")),
        Peer::Address(ip)
    );
}

#[test]
fn a_nodes_address_is_host_on_the_way_out_and_masqueraded_on_the_way_in() {
    let model = node(vec![
        allow(&["client"], &["host"]),
        allow(&["host"], &["client"]).ports(&[(81, 81)]),
        allow(&["masqueraded"], &["server"]),
    ]);
    let masqueraded = Peer::Reserved(identity::MASQUERADED);
    assert_eq!(rule(&model, &egress(CLIENT, "172.16.0.1")), "p/rule-1");
    assert_eq!(peer(&model, &ingress(CLIENT, "172.16.0.1")), masqueraded);
    // The rule for host does not help; the one for masqueraded does.
    let mut probe = ingress(CLIENT, "172.16.0.1");
    probe.local_port = 81;
    assert_eq!(reason(&model, &probe), Reason::NoPolicy);
    assert_eq!(rule(&model, &ingress(SERVER, "172.16.0.1")), "p/rule-3");
}

#[test]
fn a_nodes_address_inside_the_clusters_ranges_is_the_node() {
    let mut model = node(vec![]);
    model.node_addresses.push("10.0.0.200".parse().unwrap());
    let host = Peer::Reserved(identity::HOST);
    assert_eq!(peer(&model, &egress(CLIENT, "10.0.0.200")), host);
    model
        .endpoints
        .push(claim("10.0.0.200", "shared", Some(103)));
    assert_eq!(
        peer(&model, &egress(CLIENT, "10.0.0.200")),
        workload("shared")
    );
}

#[test]
fn what_cannot_be_told_apart_can_never_be_allowed_by_name() {
    let names: &[&str] = &["unknown-peer", "conflict", "unenrolled"];
    let mut model = node(vec![allow(&["client"], names)]);
    model.endpoints.push(claim("10.0.0.2", "remote", None));
    assert_eq!(
        reason(&model, &egress(CLIENT, "10.0.0.2")),
        Reason::Conflict
    );
    assert_eq!(
        reason(&model, &egress(CLIENT, "10.0.9.9")),
        Reason::UnknownPeer
    );
}
