//! Cases that policy engines have got wrong.

use zt_common::codes::{Protocol, Reason};
use zt_reference::Peer;

use crate::node::*;

#[test]
fn a_narrow_allow_inside_a_broad_deny_stays_denied() {
    let model = node(vec![
        allow(&["client"], &["192.0.2.1/32"]).ports(&[(80, 80)]),
        deny(&["client"], &["192.0.2.0/24"]),
    ]);
    let question = egress(CLIENT, "192.0.2.1");
    assert_eq!(reason(&model, &question), Reason::DeniedByRule);
    assert_eq!(rule(&model, &question), "p/rule-2");
}

#[test]
fn a_narrow_deny_on_one_port_leaves_the_broad_allow_on_the_others() {
    let model = node(vec![
        allow(&["client"], &["192.0.2.0/24"]),
        deny(&["client"], &["192.0.2.1/32"]).ports(&[(80, 80)]),
    ]);
    let mut question = egress(CLIENT, "192.0.2.1");
    assert_eq!(reason(&model, &question), Reason::DeniedByRule);
    question.remote_port = 81;
    assert_eq!(reason(&model, &question), Reason::AllowedByRule);
    question.protocol = Protocol::Udp;
    assert_eq!(reason(&model, &question), Reason::NoPolicy);
}

#[test]
fn overlapping_port_ranges_are_all_looked_at() {
    let between = || allow(&["client"], &["server"]);
    let model = node(vec![
        between().ports(&[(1, 1000)]),
        deny(&["client"], &["server"]).ports(&[(500, 600)]),
        between().ports(&[(550, 2000)]).until(NOW + 1),
    ]);
    for (port, expected) in [
        (499, Reason::AllowedByRule),
        (500, Reason::DeniedByRule),
        (550, Reason::DeniedByRule),
        (600, Reason::DeniedByRule),
        (601, Reason::AllowedByRule),
        (1000, Reason::AllowedByRule),
        (1001, Reason::LiveGrant),
        (2000, Reason::LiveGrant),
        (2001, Reason::NoPolicy),
    ] {
        let mut question = egress(CLIENT, "10.0.0.2");
        question.remote_port = port;
        assert_eq!(reason(&model, &question), expected, "{port}");
    }
}

#[test]
fn a_dot_in_a_service_account_is_a_dot() {
    let mut model = node(vec![allow(&["client"], &["spiffe://td/c/ns/a.b"])]);
    model.endpoints.push(claim("10.0.0.20", "a.b", None));
    model.endpoints.push(claim("10.0.0.21", "axb", None));
    assert!(allows(&model, &egress(CLIENT, "10.0.0.20")));
    assert!(!allows(&model, &egress(CLIENT, "10.0.0.21")));
}

#[test]
fn an_identity_is_not_the_prefix_of_another() {
    let mut model = node(vec![allow(&["client"], &["spiffe://td/c/ns/a"])]);
    model.endpoints.push(claim("10.0.0.20", "ab", None));
    model.endpoints.push(claim("10.0.0.21", "a/b", None));
    assert!(!allows(&model, &egress(CLIENT, "10.0.0.20")));
    assert!(!allows(&model, &egress(CLIENT, "10.0.0.21")));
}

#[test]
fn an_unknown_ipv6_address_is_not_waved_through() {
    let model = node(vec![allow(&["client"], &["spiffe://td/**", "0.0.0.0/0"])]);
    let in_the_cluster = egress(CLIENT, "fd00::dead");
    assert_eq!(reason(&model, &in_the_cluster), Reason::UnknownPeer);
    let outside = egress(CLIENT, "2001:db8::dead");
    assert_eq!(reason(&model, &outside), Reason::NoPolicy);
    assert!(matches!(ask(&model, &outside).peer, Peer::Address(_)));
}

#[test]
fn everybody_by_pattern_does_not_include_those_without_an_identity() {
    let model = node(vec![allow(&["spiffe://td/**"], &["spiffe://td/**"])]);
    for remote in ["172.16.0.1", "192.0.2.1", "169.254.169.254", "10.0.9.9"] {
        assert!(!allows(&model, &egress(CLIENT, remote)), "{remote}");
        assert!(!allows(&model, &ingress(SERVER, remote)), "{remote}");
    }
}

#[test]
fn an_expired_grant_beside_a_live_one_on_another_port_gives_nothing() {
    let model = node(vec![
        allow(&["client"], &["server"])
            .ports(&[(80, 80)])
            .until(NOW),
        allow(&["client"], &["server"])
            .ports(&[(81, 81)])
            .until(NOW + 1),
    ]);
    let question = egress(CLIENT, "10.0.0.2");
    assert_eq!(reason(&model, &question), Reason::GrantExpired);
}
