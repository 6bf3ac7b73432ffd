//! Whom a rule means, on which protocols and ports.

use zt_agent::model::Ports;
use zt_common::codes::{Protocol, Reason, Verdict};

use crate::node::*;

#[test]
fn a_rule_permits_the_sources_egress_and_the_destinations_ingress_together() {
    let model = node(vec![allow(&["client"], &["server"])]);
    for question in [egress(CLIENT, "10.0.0.2"), ingress(SERVER, "10.0.0.1")] {
        let answer = ask(&model, &question);
        assert_eq!(answer.verdict, Verdict::Allow);
        assert_eq!(answer.reason, Reason::AllowedByRule);
        assert_eq!(answer.rule.unwrap().to_string(), "p/rule-1");
    }
}

#[test]
fn a_rule_says_nothing_about_the_opposite_direction() {
    let model = node(vec![allow(&["client"], &["server"])]);
    assert_eq!(
        reason(&model, &egress(SERVER, "10.0.0.1")),
        Reason::NoPolicy
    );
    assert_eq!(
        reason(&model, &ingress(CLIENT, "10.0.0.2")),
        Reason::NoPolicy
    );
}

#[test]
fn a_workload_that_no_policy_names_is_denied_both_ways() {
    let model = node(vec![]);
    for question in [egress(CLIENT, "10.0.0.2"), ingress(CLIENT, "10.0.0.2")] {
        assert_eq!(verdict(&model, &question), Verdict::Deny);
        assert_eq!(reason(&model, &question), Reason::NoPolicy);
    }
}

#[test]
fn each_end_that_is_governed_must_allow_by_itself() {
    // The client's end cannot see the deny: it is about the client's address.
    let model = node(vec![
        allow(&["client"], &["server"]),
        deny(&["10.0.0.1/32"], &["server"]),
    ]);
    assert!(allows(&model, &egress(CLIENT, "10.0.0.2")));
    assert!(!allows(&model, &ingress(SERVER, "10.0.0.1")));
}

#[test]
fn the_protocol_must_be_listed() {
    let model = node(vec![
        allow(&["client"], &["server"]).protocols(&[Protocol::Udp]),
    ]);
    let tcp = egress(CLIENT, "10.0.0.2");
    let mut udp = tcp.clone();
    udp.protocol = Protocol::Udp;
    assert!(!allows(&model, &tcp));
    assert!(allows(&model, &udp));
}

#[test]
fn icmp_has_no_ports_but_must_be_listed() {
    let mut ping = egress(CLIENT, "10.0.0.2");
    ping.protocol = Protocol::Icmp;
    (ping.remote_port, ping.local_port) = (0, 0);

    let rule = allow(&["client"], &["server"]).ports(&[(443, 443)]);
    assert!(!allows(&node(vec![rule.clone()]), &ping));
    assert!(allows(
        &node(vec![rule.protocols(&[Protocol::Icmp])]),
        &ping
    ));
}

#[test]
fn ports_are_the_destinations() {
    let model = node(vec![allow(&["client"], &["server"]).ports(&[(80, 80)])]);
    assert!(allows(&model, &egress(CLIENT, "10.0.0.2")));
    assert!(allows(&model, &ingress(SERVER, "10.0.0.1")));

    let mut from_80 = egress(CLIENT, "10.0.0.2");
    (from_80.remote_port, from_80.local_port) = (40_000, 80);
    assert!(!allows(&model, &from_80));
}

#[test]
fn a_range_includes_both_its_ends_and_nothing_beside_them() {
    let model = node(vec![allow(&["client"], &["server"]).ports(&[
        (1, 1),
        (8000, 8999),
        (65_535, 65_535),
    ])]);
    let reaches = |port| {
        let mut question = egress(CLIENT, "10.0.0.2");
        question.remote_port = port;
        allows(&model, &question)
    };
    for port in [1, 8000, 8500, 8999, 65_535] {
        assert!(reaches(port), "{port}");
    }
    for port in [2, 7999, 9000, 65_534] {
        assert!(!reaches(port), "{port}");
    }
}

#[test]
fn any_port_is_1_to_65535() {
    let model = node(vec![allow(&["client"], &["server"])]);
    let reaches = |port| {
        let mut question = egress(CLIENT, "10.0.0.2");
        question.remote_port = port;
        allows(&model, &question)
    };
    assert!(reaches(1) && reaches(65_535));
    assert!(!reaches(0));
}

#[test]
fn a_star_is_exactly_one_segment_and_two_are_the_rest() {
    let to_server = egress(CLIENT, "10.0.0.2");
    for (pattern, meant) in [
        ("spiffe://td/c/ns/*", true),
        ("spiffe://td/*/ns/server", true),
        ("spiffe://td/*/*/*", true),
        ("spiffe://td/**", true),
        ("spiffe://td/c/ns/**", true),
        ("spiffe://td/c/*/**", true),
        ("spiffe://td/*", false),
        ("spiffe://td/c/ns/server/*", false),
        ("spiffe://td/c/ns/server/**", false),
        ("spiffe://td/*/*/*/**", false),
        ("spiffe://other/**", false),
    ] {
        let model = node(vec![allow(&["client"], &[pattern])]);
        assert_eq!(allows(&model, &to_server), meant, "{pattern}");
    }
}

#[test]
fn an_empty_list_selects_nobody() {
    let question = egress(CLIENT, "10.0.0.2");
    let everybody: &[&str] = &["spiffe://td/**"];
    let mut no_target = allow(everybody, everybody);
    no_target.to.clear();
    let mut no_range = allow(everybody, everybody);
    no_range.to[0].ports = Ports::Ranges(vec![]);
    for rule in [
        allow(&[], everybody),
        allow(everybody, &[]),
        allow(everybody, everybody).protocols(&[]),
        no_target,
        no_range,
    ] {
        assert_eq!(reason(&node(vec![rule]), &question), Reason::NoPolicy);
    }
    // Nor does an empty deny deny anybody.
    let model = node(vec![allow(everybody, everybody), deny(&[], everybody)]);
    assert!(allows(&model, &question));
}

#[test]
fn ends_and_targets_are_not_mixed_across_lists() {
    // 80 belongs to `remote` and 443 to `server`, not the other way round.
    let mut rule = allow(&["client"], &["remote"]).ports(&[(80, 80)]);
    rule.to
        .extend(allow(&[], &["server"]).ports(&[(443, 443)]).to);
    let model = node(vec![rule]);
    assert!(allows(&model, &egress(CLIENT, "10.0.0.5")));
    assert!(!allows(&model, &egress(CLIENT, "10.0.0.2")));
}

#[test]
fn rules_count_from_1_and_are_named_after_their_policy() {
    let model = node(vec![
        allow(&["remote"], &["server"]),
        allow(&["client"], &["server"]),
    ]);
    assert_eq!(rule(&model, &egress(CLIENT, "10.0.0.2")), "p/rule-2");
}
