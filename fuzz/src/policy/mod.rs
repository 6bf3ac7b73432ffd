//! The policy document, and what becomes of it.

mod node;
mod written;

use std::{collections::BTreeSet, slice, sync::Arc};

use zt_agent::{
    document::{SourceFile, policy},
    model::{Policy, Ports, Position, Rule, RuleAction, Selector},
};
use zt_common::codes::Protocol;

use crate::document;

/// Reads `bytes` as a file of policies and checks what comes of it.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    let Some(file) = document::open(bytes) else {
        return;
    };
    let read = policy::parse(slice::from_ref(&file));
    let again = policy::parse(slice::from_ref(&file));
    assert_eq!(read, again, "read in two ways");
    match read {
        Ok(policies) => check_policies(&policies),
        Err(problems) => document::check_refusal(&file, &problems),
    }
}

fn check_policies(policies: &[Policy]) {
    let mut names = BTreeSet::new();
    for policy in policies {
        assert!(names.insert(&policy.name), "{} twice", policy.name);
        for (number, rule) in (1..).zip(policy.rules.iter()) {
            assert_eq!(rule.number, number, "{}", policy.name);
            check_rule(rule);
        }
    }
    check_written(policies);
    node::check(policies);
}

fn check_rule(rule: &Rule) {
    let is_cidr = |selector: &Selector| matches!(selector, Selector::Cidr(_));
    if rule.action == RuleAction::Deny {
        assert_eq!(rule.expires, None, "a deny that opens by itself");
    }
    let to_cidr = (rule.to.iter()).any(|target| target.selectors.iter().any(is_cidr));
    assert!(
        !(to_cidr && rule.from.iter().any(is_cidr)),
        "addresses on both ends"
    );
    for target in &rule.to {
        assert!(!target.protocols.is_empty(), "a target without protocol");
        check_ports(&target.ports);
        if target.protocols.contains(&Protocol::Icmp) {
            assert_eq!(target.ports, Ports::Any, "ICMP with ports");
        }
    }
}

/// Sorted, disjoint, and none is port 0.
fn check_ports(ports: &Ports) {
    let Ports::Ranges(ranges) = ports else { return };
    let mut last = 0;
    assert!(!ranges.is_empty(), "no ports at all");
    for range in ranges {
        assert!(*range.start() > last, "ports out of order: {ranges:?}");
        assert!(range.start() <= range.end(), "ports reversed: {ranges:?}");
        last = *range.end();
    }
}

/// Written again, it means the same: nothing empty turns into everything.
fn check_written(policies: &[Policy]) {
    let text = written::document(policies);
    let file = SourceFile::new("written.yaml", text);
    let read = policy::parse(slice::from_ref(&file))
        .unwrap_or_else(|problems| panic!("refused: {problems:#?}\n{}", file.text));
    assert_eq!(
        without_places(&read),
        without_places(policies),
        "it changed when it was written:\n{}",
        file.text
    );
}

fn without_places(policies: &[Policy]) -> Vec<Policy> {
    let nowhere = Position {
        file: "".into(),
        line: 0,
        column: 0,
    };
    let mut policies = policies.to_vec();
    for policy in &mut policies {
        policy.at = nowhere.clone();
        for rule in Arc::make_mut(&mut policy.rules) {
            rule.at = nowhere.clone();
            for target in &mut rule.to {
                target.at = nowhere.clone();
            }
        }
    }
    policies
}
