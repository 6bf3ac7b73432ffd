//! What CIDRs and `world` match, and what they never match.

use zt_common::codes::Reason;

use crate::node::*;

/// Every kind of address in the cluster, and the metadata service beside it.
const NOT_WORLD: [&str; 7] = [
    "10.0.0.2",   // a workload of this node
    "10.0.0.5",   // a workload of another node
    "fd00::2",    // a workload, by IPv6
    "10.0.9.9",   // nobody, in the cluster's ranges
    "fd00::9",    // the same, by IPv6
    "172.16.0.1", // this node
    "169.254.169.254",
];

#[test]
fn allows_by_address_never_match_workloads_nodes_or_the_clusters_ranges() {
    let model = node(vec![allow(&["client"], &["0.0.0.0/0", "::/0", "world"])]);
    for remote in NOT_WORLD {
        assert!(!allows(&model, &egress(CLIENT, remote)), "{remote}");
    }
    assert!(allows(&model, &egress(CLIENT, "192.0.2.1")));
    assert!(allows(&model, &egress(CLIENT, "2001:db8::1")));
}

#[test]
fn not_even_an_exact_prefix_allows_a_workloads_address() {
    let model = node(vec![allow(&["client"], &["10.0.0.2/32", "10.0.9.9/32"])]);
    assert_eq!(
        reason(&model, &egress(CLIENT, "10.0.0.2")),
        Reason::NoPolicy
    );
    assert_eq!(
        reason(&model, &egress(CLIENT, "10.0.9.9")),
        Reason::UnknownPeer
    );
}

#[test]
fn link_local_is_allowed_only_by_a_prefix_that_lies_inside_its_range() {
    for (prefix, remote, meant) in [
        ("169.254.0.0/16", "169.254.169.254", true),
        ("169.254.169.254/32", "169.254.169.254", true),
        ("169.254.0.0/15", "169.254.169.254", false),
        ("0.0.0.0/0", "169.254.169.254", false),
        ("169.254.0.0/15", "169.255.0.1", true),
        ("fe80::/10", "fe80::1", true),
        ("fe80::/64", "fe80::1", true),
        ("fe80::/9", "fe80::1", false),
        ("::/0", "febf::1", false),
        ("fe80::/9", "fec0::1", true),
    ] {
        let model = node(vec![allow(&["client"], &[prefix])]);
        let question = egress(CLIENT, remote);
        assert_eq!(allows(&model, &question), meant, "{prefix} {remote}");
    }
}

#[test]
fn world_never_allows_link_local_but_denies_it() {
    for remote in ["169.254.169.254", "fe80::1"] {
        let model = node(vec![allow(&["client"], &["world"])]);
        assert_eq!(reason(&model, &egress(CLIENT, remote)), Reason::NoPolicy);

        let both: &[&str] = &["169.254.0.0/16", "fe80::/10"];
        let model = node(vec![
            allow(&["client"], both),
            deny(&["client"], &["world"]),
        ]);
        assert_eq!(
            reason(&model, &egress(CLIENT, remote)),
            Reason::DeniedByRule
        );
    }
}

#[test]
fn a_cidr_deny_matches_whoever_is_there() {
    let everywhere: &[&str] = &["0.0.0.0/0", "::/0"];
    let model = node(vec![
        allow(&["client"], &["spiffe://td/**", "host", "world"]),
        deny(&["client"], everywhere),
    ]);
    for remote in NOT_WORLD.into_iter().chain(["192.0.2.1", "2001:db8::1"]) {
        let found = reason(&model, &egress(CLIENT, remote));
        assert_eq!(found, Reason::DeniedByRule, "{remote}");
    }
}

#[test]
fn a_cidr_deny_cannot_be_dodged_by_an_ipv4_mapped_address() {
    let model = node(vec![
        allow(&["client"], &["server", "world"]),
        deny(&["client"], &["10.0.0.2/32", "192.0.2.0/24"]),
    ]);
    for remote in ["::ffff:10.0.0.2", "::ffff:192.0.2.1"] {
        let found = reason(&model, &egress(CLIENT, remote));
        assert_eq!(found, Reason::DeniedByRule, "{remote}");
    }
}

#[test]
fn a_world_deny_matches_only_world() {
    let model = node(vec![
        allow(&["client"], &["spiffe://td/**", "host"]),
        deny(&["client"], &["world"]),
    ]);
    assert!(allows(&model, &egress(CLIENT, "10.0.0.2")));
    assert!(allows(&model, &egress(CLIENT, "172.16.0.1")));
    assert_eq!(
        reason(&model, &egress(CLIENT, "10.0.9.9")),
        Reason::UnknownPeer
    );
    assert_eq!(
        reason(&model, &egress(CLIENT, "192.0.2.1")),
        Reason::DeniedByRule
    );
}

#[test]
fn a_longer_prefix_inherits_what_covers_it() {
    let model = node(vec![
        allow(&["client"], &["192.0.2.0/24"]).ports(&[(80, 80)]),
        allow(&["client"], &["192.0.2.1/32"]).ports(&[(443, 443)]),
    ]);
    let mut question = egress(CLIENT, "192.0.2.1");
    assert_eq!(rule(&model, &question), "p/rule-1");
    question.remote_port = 443;
    assert_eq!(rule(&model, &question), "p/rule-2");
    assert!(!allows(&model, &egress(CLIENT, "192.0.3.0")));
}

#[test]
fn a_cidr_is_the_far_ends_address_at_the_governed_end() {
    // Considered at the source's egress, not at the destination's ingress.
    let model = node(vec![
        deny(&["client"], &["10.0.0.2/32"]),
        allow(&["client"], &["server"]),
    ]);
    assert_eq!(
        reason(&model, &egress(CLIENT, "10.0.0.2")),
        Reason::DeniedByRule
    );
    assert_eq!(
        reason(&model, &ingress(SERVER, "10.0.0.1")),
        Reason::AllowedByRule
    );

    // And the other way round.
    let model = node(vec![
        deny(&["10.0.0.1/32"], &["server"]),
        allow(&["client"], &["server"]),
    ]);
    assert_eq!(
        reason(&model, &ingress(SERVER, "10.0.0.1")),
        Reason::DeniedByRule
    );
    assert_eq!(
        reason(&model, &egress(CLIENT, "10.0.0.2")),
        Reason::AllowedByRule
    );
}

#[test]
fn the_governed_end_is_never_a_cidr_or_a_reserved_identity() {
    let model = node(vec![
        allow(&["10.0.0.0/8"], &["server"]),
        allow(&["world", "host"], &["spiffe://td/**"]),
    ]);
    assert_eq!(
        reason(&model, &egress(CLIENT, "10.0.0.2")),
        Reason::NoPolicy
    );
    assert_eq!(
        reason(&model, &egress(SHARED, "10.0.0.2")),
        Reason::NoPolicy
    );
}

#[test]
fn world_may_come_in_where_a_rule_says_so() {
    let model = node(vec![allow(&["world"], &["server"]).ports(&[(80, 80)])]);
    assert!(allows(&model, &ingress(SERVER, "192.0.2.1")));
    assert!(!allows(&model, &ingress(CLIENT, "192.0.2.1")));
    assert!(!allows(&model, &ingress(SERVER, "10.0.9.9")));
}

#[test]
fn an_ipv6_prefix_never_matches_an_ipv4_address_nor_the_reverse() {
    let model = node(vec![allow(&["client"], &["::/0"])]);
    assert!(!allows(&model, &egress(CLIENT, "192.0.2.1")));
    assert!(!allows(&model, &egress(CLIENT, "::ffff:192.0.2.1")));
    let model = node(vec![allow(&["client"], &["0.0.0.0/0"])]);
    assert!(!allows(&model, &egress(CLIENT, "2001:db8::1")));
}
