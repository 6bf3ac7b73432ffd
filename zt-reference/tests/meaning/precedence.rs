//! Which of several matching rules decides.

use zt_agent::model::PolicyMode;
use zt_common::codes::{Reason, Verdict};
use zt_reference::evaluate;

use crate::node::*;

#[test]
fn quarantine_comes_before_everything() {
    let model = node(vec![
        allow(&["client"], &["server"]),
        deny(&["client"], &["server"]),
    ]);
    for end in ["client", "server"] {
        let mut question = egress(CLIENT, "10.0.0.2");
        question.quarantined = vec![id(end)];
        let answer = ask(&model, &question);
        assert_eq!(answer.verdict, Verdict::Deny, "{end}");
        assert_eq!(answer.reason, Reason::Quarantined);
        assert_eq!(answer.would, Reason::Quarantined);
        assert_eq!(answer.rule, None);
    }
}

#[test]
fn somebody_elses_quarantine_changes_nothing() {
    let model = node(vec![allow(&["client"], &["server"])]);
    let mut question = egress(CLIENT, "10.0.0.2");
    question.quarantined = vec![id("remote")];
    assert!(allows(&model, &question));
}

#[test]
fn any_deny_defeats_every_allow() {
    let model = node(vec![
        allow(&["client"], &["server"]).ports(&[(80, 80)]),
        deny(&["spiffe://td/**"], &["spiffe://td/**"]),
        allow(&["client"], &["server"]),
    ]);
    let question = egress(CLIENT, "10.0.0.2");
    assert_eq!(verdict(&model, &question), Verdict::Deny);
    assert_eq!(reason(&model, &question), Reason::DeniedByRule);
    assert_eq!(rule(&model, &question), "p/rule-2");
}

#[test]
fn no_rule_differs_from_a_deny() {
    let question = egress(CLIENT, "10.0.0.2");
    assert_eq!(reason(&node(vec![]), &question), Reason::NoPolicy);
    let model = node(vec![deny(&["client"], &["server"])]);
    assert_eq!(reason(&model, &question), Reason::DeniedByRule);
}

#[test]
fn a_grant_lives_until_its_deadline_and_not_at_it() {
    let question = egress(CLIENT, "10.0.0.2");
    for (deadline, expected) in [
        (NOW + 1, Reason::LiveGrant),
        (NOW, Reason::GrantExpired),
        (NOW - 1, Reason::GrantExpired),
        (1, Reason::GrantExpired),
    ] {
        let model = node(vec![allow(&["client"], &["server"]).until(deadline)]);
        let answer = ask(&model, &question);
        assert_eq!(answer.reason, expected, "{deadline}");
        assert_eq!(answer.verdict == Verdict::Allow, expected.is_allow());
        assert_eq!(answer.rule.unwrap().to_string(), "p/rule-1");
    }
}

#[test]
fn of_several_grants_the_latest_deadline_counts() {
    let rule_until = |deadline| allow(&["client"], &["server"]).until(deadline);
    let model = node(vec![
        rule_until(NOW - 5),
        rule_until(NOW + 1),
        rule_until(NOW + 9),
        rule_until(NOW + 5),
    ]);
    let mut question = egress(CLIENT, "10.0.0.2");
    assert_eq!(rule(&model, &question), "p/rule-3");
    question.now = NOW + 8;
    assert_eq!(reason(&model, &question), Reason::LiveGrant);
    question.now = NOW + 9;
    assert_eq!(reason(&model, &question), Reason::GrantExpired);
}

#[test]
fn a_permanent_allow_outlasts_every_deadline() {
    let model = node(vec![
        allow(&["client"], &["server"]).until(u64::MAX),
        allow(&["client"], &["server"]),
    ]);
    let question = egress(CLIENT, "10.0.0.2");
    assert_eq!(reason(&model, &question), Reason::AllowedByRule);
    assert_eq!(rule(&model, &question), "p/rule-2");
}

#[test]
fn a_live_grant_does_not_defeat_a_deny_nor_an_expired_one_become_one() {
    let grant = allow(&["client"], &["server"]).until(NOW + 1);
    let question = egress(CLIENT, "10.0.0.2");
    let model = node(vec![grant.clone(), deny(&["client"], &["server"])]);
    assert_eq!(reason(&model, &question), Reason::DeniedByRule);
    let model = node(vec![grant.until(NOW - 1), allow(&["client"], &["server"])]);
    assert_eq!(reason(&model, &question), Reason::AllowedByRule);
}

#[test]
fn of_equals_the_first_policy_by_name_and_then_the_first_rule_is_named() {
    let same = || allow(&["client"], &["server"]);
    let mut model = node(vec![]);
    let none = || deny(&[], &[]);
    let mut ten = vec![none(), same()];
    ten.extend((0..8).map(|_| none()));
    ten.push(same());
    model.policies = vec![
        policy("b", PolicyMode::Enforce, vec![same()]),
        policy("a", PolicyMode::Enforce, ten),
    ];
    assert_eq!(rule(&model, &egress(CLIENT, "10.0.0.2")), "a/rule-2");

    model.policies[0].rules = policy(
        "b",
        PolicyMode::Enforce,
        vec![
            none(),
            deny(&["client"], &["server"]),
            deny(&["client"], &["server"]),
        ],
    )
    .rules;
    assert_eq!(rule(&model, &egress(CLIENT, "10.0.0.2")), "b/rule-2");
}

#[test]
fn of_grants_with_one_deadline_the_first_policy_by_name_is_named() {
    let mut model = node(vec![]);
    for deadline in [NOW - 1, NOW + 1] {
        let same = || vec![allow(&["client"], &["server"]).until(deadline)];
        model.policies = vec![
            policy("b", PolicyMode::Enforce, same()),
            policy("a", PolicyMode::Enforce, same()),
        ];
        assert_eq!(rule(&model, &egress(CLIENT, "10.0.0.2")), "a/rule-1");
    }
}

#[test]
fn host_may_reach_its_workloads_unless_a_rule_denies_it() {
    let from_node = ingress(SHARED, "172.16.0.1");
    let answer = evaluate(&node(vec![]), &from_node, true);
    assert_eq!(answer.verdict, Verdict::Allow);
    assert_eq!(answer.reason, Reason::HostAllowed);
    assert_eq!(answer.rule, None);
    assert_eq!(reason(&node(vec![]), &from_node), Reason::NoPolicy);

    let denied = node(vec![deny(&["host"], &["shared"])]);
    let answer = evaluate(&denied, &from_node, true);
    assert_eq!(answer.reason, Reason::DeniedByRule);

    let allowed = node(vec![allow(&["host"], &["shared"])]);
    let answer = evaluate(&allowed, &from_node, true);
    assert_eq!(answer.reason, Reason::AllowedByRule);

    let lapsed = node(vec![allow(&["host"], &["shared"]).until(NOW)]);
    assert_eq!(
        evaluate(&lapsed, &from_node, true).reason,
        Reason::HostAllowed
    );
    assert_eq!(reason(&lapsed, &from_node), Reason::GrantExpired);
}

#[test]
fn a_workload_needs_a_rule_to_reach_host() {
    let to_node = egress(CLIENT, "172.16.0.1");
    assert_eq!(
        evaluate(&node(vec![]), &to_node, true).reason,
        Reason::NoPolicy
    );
    assert!(allows(&node(vec![allow(&["client"], &["host"])]), &to_node));
}
