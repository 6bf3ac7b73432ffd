//! Audit mode: of an end, and of a policy.

use zt_agent::model::{Mode, PolicyMode};
use zt_common::codes::{Reason, Verdict};

use crate::node::*;

#[test]
fn a_denial_at_an_end_in_audit_mode_is_only_recorded() {
    let model = node(vec![]);
    for question in [egress(WATCHED, "10.0.0.5"), ingress(WATCHED, "192.0.2.1")] {
        assert_eq!(verdict(&model, &question), Verdict::WouldDeny);
        assert_eq!(reason(&model, &question), Reason::NoPolicy);
    }
    let model = node(vec![deny(&["watched"], &["remote"])]);
    let question = egress(WATCHED, "10.0.0.5");
    assert_eq!(verdict(&model, &question), Verdict::WouldDeny);
    assert_eq!(reason(&model, &question), Reason::DeniedByRule);
}

#[test]
fn a_denial_is_real_if_either_local_end_enforces() {
    let model = node(vec![]);
    // `server` is here and enforces; `remote` is not here.
    assert_eq!(verdict(&model, &egress(WATCHED, "10.0.0.2")), Verdict::Deny);
    assert_eq!(
        verdict(&model, &ingress(WATCHED, "10.0.0.2")),
        Verdict::Deny
    );
    assert_eq!(verdict(&model, &egress(SERVER, "10.0.0.4")), Verdict::Deny);
    assert_eq!(
        verdict(&model, &egress(WATCHED, "10.0.0.5")),
        Verdict::WouldDeny
    );
}

#[test]
fn a_claim_whose_cgroup_is_not_enrolled_is_no_local_end() {
    let mut model = node(vec![]);
    model.endpoints.push(claim("10.0.0.8", "server", Some(999)));
    assert_eq!(
        verdict(&model, &egress(WATCHED, "10.0.0.8")),
        Verdict::WouldDeny
    );
}

#[test]
fn the_mode_of_the_node_does_not_override_that_of_its_workloads() {
    let mut model = node(vec![]);
    model.mode = Mode::Audit;
    assert_eq!(verdict(&model, &egress(CLIENT, "10.0.0.5")), Verdict::Deny);
    model.mode = Mode::Enforce;
    assert_eq!(
        verdict(&model, &egress(WATCHED, "10.0.0.5")),
        Verdict::WouldDeny
    );
}

#[test]
fn an_unenrolled_end_is_denied_in_the_nodes_mode_whatever_the_rules() {
    let everybody: &[&str] = &["spiffe://td/**", "world", "host", "0.0.0.0/0"];
    let mut model = node(vec![allow(everybody, &["spiffe://td/**"])]);
    let mut question = egress(CLIENT, "10.0.0.5");
    question.local = None;
    let answer = ask(&model, &question);
    assert_eq!(answer.verdict, Verdict::Deny);
    assert_eq!(answer.reason, Reason::Unenrolled);
    assert_eq!(answer.would, Reason::Unenrolled);

    model.mode = Mode::Audit;
    assert_eq!(verdict(&model, &question), Verdict::WouldDeny);
    question.remote = "10.0.0.2".parse().unwrap();
    assert_eq!(verdict(&model, &question), Verdict::Deny);
}

#[test]
fn quarantine_is_real_in_audit_mode() {
    let mut model = node(vec![allow(&["watched"], &["remote"])]);
    model.mode = Mode::Audit;
    let mut question = egress(WATCHED, "10.0.0.5");
    question.quarantined = vec![id("remote")];
    assert_eq!(verdict(&model, &question), Verdict::Deny);
    question.local = None;
    assert_eq!(reason(&model, &question), Reason::Quarantined);
    assert_eq!(verdict(&model, &question), Verdict::Deny);
}

#[test]
fn a_policy_in_audit_mode_changes_no_verdict_and_says_what_it_would_do() {
    let mut model = node(vec![]);
    let question = egress(CLIENT, "10.0.0.2");
    let tried = |rule| policy("tried", PolicyMode::Audit, vec![rule]);

    model.policies.push(tried(allow(&["client"], &["server"])));
    let answer = ask(&model, &question);
    assert_eq!(answer.verdict, Verdict::Deny);
    assert_eq!(answer.reason, Reason::NoPolicy);
    assert_eq!(answer.rule, None);
    assert_eq!(answer.would, Reason::AllowedByRule);

    let mut model = node(vec![allow(&["client"], &["server"])]);
    model.policies.push(tried(deny(&["client"], &["server"])));
    let answer = ask(&model, &question);
    assert_eq!(answer.verdict, Verdict::Allow);
    assert_eq!(answer.rule.unwrap().to_string(), "p/rule-1");
    assert_eq!(answer.would, Reason::DeniedByRule);
}

#[test]
fn without_audit_policies_what_would_be_is_what_is() {
    let model = node(vec![allow(&["client"], &["server"])]);
    for remote in ["10.0.0.2", "10.0.0.5", "10.0.9.9", "192.0.2.1"] {
        let answer = ask(&model, &egress(CLIENT, remote));
        assert_eq!(answer.would, answer.reason, "{remote}");
    }
}
