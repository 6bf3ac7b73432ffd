//! Policies that the document parser could have produced.

use std::{ops::RangeInclusive, sync::Arc};

use proptest::{
    collection::vec,
    prelude::*,
    sample::{select, subsequence},
};
use zt_agent::model::{Policy, PolicyMode, Ports, Position, Rule, RuleAction, Selector, Target};
use zt_common::{codes::Protocol, identity};

use super::{
    pool,
    worlds::{BOOT_OFFSET, NOW},
};

/// Names whose order is easy to get wrong.
const NAMES: &[&str] = &["B", "a", "a.b", "aa", "b"];
const RESERVED: &[identity::Number] = &[
    identity::HOST,
    identity::NODES,
    identity::APISERVER,
    identity::WORLD,
    identity::WORLD,
    identity::MASQUERADED,
];

pub fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let names = Just(NAMES.to_vec()).prop_shuffle();
    (names, vec(unnamed(), 1..=NAMES.len())).prop_map(|(names, policies)| {
        let named = names.into_iter().zip(policies);
        named
            .map(|(name, policy)| Policy {
                name: name.into(),
                ..policy
            })
            .collect()
    })
}

fn unnamed() -> impl Strategy<Value = Policy> {
    let mode = prop_oneof![
        2 => Just(PolicyMode::Enforce),
        1 => Just(PolicyMode::Audit),
    ];
    // More than nine rules, because 10 follows 9 and not 1.
    let rules = prop_oneof![15 => vec(rule(), 1..4), 1 => vec(rule(), 10..12)];
    (mode, rules).prop_map(|(mode, rules)| Policy {
        name: "".into(),
        mode,
        rules: rules
            .into_iter()
            .zip(1..)
            .map(|(rule, number)| Rule { number, ..rule })
            .collect::<Vec<_>>()
            .into(),
        at: position(),
    })
}

/// At most one end of a rule may be a CIDR.
fn rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        rule_with_cidr_at(false, false),
        rule_with_cidr_at(true, false),
        rule_with_cidr_at(false, true),
    ]
}

fn rule_with_cidr_at(from: bool, to: bool) -> impl Strategy<Value = Rule> {
    let ends = (selectors(from), few(target(to)));
    (action_and_deadline(), ends).prop_map(|((action, expires), (from, to))| Rule {
        number: 0,
        action,
        from,
        to,
        expires,
        at: position(),
    })
}

/// A list that is rarely empty: that selects nobody, and most rules should
/// select somebody.
fn few<T: Clone + std::fmt::Debug>(
    element: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![1 => Just(Vec::new()), 20 => vec(element, 1..3)]
}

fn action_and_deadline() -> impl Strategy<Value = (RuleAction, Option<u64>)> {
    prop_oneof![
        4 => Just((RuleAction::Allow, None)),
        4 => deadline().prop_map(|deadline| (RuleAction::Allow, Some(deadline))),
        2 => Just((RuleAction::Deny, None)),
    ]
}

/// Around now, around boot, and at both ends of time.
fn deadline() -> impl Strategy<Value = u64> {
    select(vec![
        1,
        BOOT_OFFSET - 1,
        BOOT_OFFSET,
        BOOT_OFFSET + 1,
        NOW - 1,
        NOW,
        NOW + 1,
        NOW + 2,
        NOW + 3_600_000_000_000,
        u64::MAX,
    ])
}

fn selectors(with_cidr: bool) -> impl Strategy<Value = Vec<Selector>> {
    few(selector(with_cidr))
}

fn selector(with_cidr: bool) -> impl Strategy<Value = Selector> {
    let exact: Vec<&str> = [pool::LOCAL_IDS, pool::REMOTE_IDS].concat();
    let cidr = select(pool::prefixes(pool::PREFIXES)).prop_map(Selector::Cidr);
    prop_oneof![
        3 => select(exact).prop_map(|text| Selector::Spiffe(pool::pattern(text))),
        5 => select(pool::PATTERNS).prop_map(|text| Selector::Spiffe(pool::pattern(text))),
        2 => select(RESERVED).prop_map(Selector::Reserved),
        if with_cidr { 15 } else { 0 } => cidr,
    ]
}

fn target(with_cidr: bool) -> impl Strategy<Value = Target> {
    let protocols = prop_oneof![
        2 => Just(vec![Protocol::Tcp]),
        1 => subsequence(Protocol::ALL, 1..=Protocol::ALL.len()),
        1 => Just(Protocol::ALL.to_vec()),
    ];
    (selectors(with_cidr), protocols, ports()).prop_map(|(selectors, protocols, ports)| Target {
        selectors,
        protocols,
        ports,
        at: position(),
    })
}

fn ports() -> impl Strategy<Value = Ports> {
    let ranges = vec(select(pool::RANGES), 1..4).prop_map(|ranges| Ports::Ranges(disjoint(ranges)));
    prop_oneof![2 => Just(Ports::Any), 5 => ranges]
}

/// Sorted, and overlapping ranges made one.
fn disjoint(mut ranges: Vec<(u16, u16)>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_unstable();
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= *before.end() => {
                *before = *before.start()..=last.max(*before.end());
            }
            _ => merged.push(first..=last),
        }
    }
    merged
}

fn position() -> Position {
    Position {
        file: Arc::from("generated.yaml"),
        line: 1,
        column: 1,
    }
}
