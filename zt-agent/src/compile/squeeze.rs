//! Which rows of the policy tables count when not all fit into the maps.
//!
//! What takes something away comes first, and what is new comes last, so that
//! whoever fills a map keeps only himself from more:
//!
//! 1. Denies of addresses and reserved identities: they are asked beside the pair
//!    itself, and without them it could be allowed.
//! 2. Pairs of which the kernel has rows already, if they need no more of them.
//! 3. Those that need more of them and lose something.
//! 4. Pairs that only gain, or are new, of the smallest policy first.
//!
//! A pair that finds no room keeps its rows if it would only gain, and otherwise
//! is denied. Where one of the first finds none, its SPIFFE ID is shut: it may do
//! nothing, and needs no rows, which makes room for the next time.

use std::{collections::BTreeSet, rc::Rc};

use zt_common::{
    identity::{FIRST_CLASS, FIRST_SPIFFE, Number},
    policy::{PolicyKey, RangeKey},
};

use super::{limits::Room, pairs::Rows, ports::Plan};
use crate::diff::{Change, TablesDiff, narrows};

/// What the rules say of a pair and protocol; of thousands of them the same.
#[derive(Debug)]
pub struct Said {
    pub plan: Plan,
    /// Some rule denies, not only on trial.
    pub denies: bool,
    /// Places of the policies that allow something.
    pub allowing: BTreeSet<usize>,
    /// Pairs of the smallest of them.
    pub size: usize,
}

/// A pair and protocol, with port 0.
pub type Group = (PolicyKey, Rc<Said>);

/// Whether a number stands for neither a range of addresses nor a reserved
/// identity.
pub const fn is_spiffe(number: Number) -> bool {
    FIRST_SPIFFE <= number && number < FIRST_CLASS
}

/// What found no room.
#[derive(Debug, Default)]
pub struct Squeezed {
    /// Places of the policies of which not all is allowed.
    pub cut: BTreeSet<usize>,
    /// Whose denies are not all among the rows.
    pub shut: BTreeSet<Number>,
}

/// The rows that count.
pub fn squeeze(groups: &[Group], room: &Room<'_>) -> (Rows, Squeezed) {
    let kept = Kept::of(room);
    let mut cases: Vec<Case<'_>> = groups.iter().map(|group| kept.case(group)).collect();
    cases.sort_unstable_by_key(|case| (case.class, case.said.size, case.pair));
    let mut free = room.free();
    let (mut rows, mut out) = (Rows::default(), Squeezed::default());
    for case in cases {
        let (policy, range) = case.cost;
        if policy <= free.policy && range <= free.range {
            free.policy -= policy;
            free.range -= range;
            case.said.plan.emit(case.pair, &mut rows.0, &mut rows.1);
            continue;
        }
        out.cut.extend(&case.said.allowing);
        if case.class == Class::Deny {
            let ends = [case.pair.source, case.pair.destination];
            out.shut
                .extend(ends.into_iter().filter(|end| is_spiffe(*end)));
        } else if case.class == Class::Gaining {
            let old = kept.rows(case.pair);
            rows.0.extend(old.0);
            rows.1.extend(old.1);
        }
    }
    let is_shut =
        |pair: &PolicyKey| out.shut.contains(&pair.source) || out.shut.contains(&pair.destination);
    rows.0.retain(|key, _| !is_shut(key));
    rows.1.retain(|key, _| !is_shut(&pair_of(key)));
    let without = groups.iter().filter(|(pair, _)| is_shut(pair));
    out.cut.extend(without.flat_map(|(_, said)| &said.allowing));
    (rows, out)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Deny,
    Kept,
    Losing,
    Gaining,
}

struct Case<'a> {
    pair: &'a PolicyKey,
    said: &'a Said,
    class: Class,
    /// Rows that are not there yet.
    cost: (usize, usize),
}

/// What the kernel has.
struct Kept<'a> {
    room: &'a Room<'a>,
    /// By pair: the keys of the trie begin with their length.
    ranges: Vec<(PolicyKey, RangeKey)>,
}

impl<'a> Kept<'a> {
    fn of(room: &'a Room<'a>) -> Self {
        let keys = room.current.range.keys();
        let mut ranges: Vec<_> = keys.map(|key| (pair_of(key), *key)).collect();
        ranges.sort_unstable();
        Self { room, ranges }
    }

    fn case<'g>(&self, (pair, said): &'g Group) -> Case<'g> {
        let old = self.rows(pair);
        let is_new = old.0.is_empty();
        let (cost, loses) = if is_new {
            ((said.plan.exact.len(), said.plan.blocks.len()), false)
        } else {
            compare(&old, pair, said)
        };
        let class = if said.denies && !(is_spiffe(pair.source) && is_spiffe(pair.destination)) {
            Class::Deny
        } else if cost == (0, 0) {
            Class::Kept
        } else if loses {
            Class::Losing
        } else {
            Class::Gaining
        };
        Case {
            pair,
            said,
            class,
            cost,
        }
    }

    fn rows(&self, pair: &PolicyKey) -> Rows {
        let current = self.room.current;
        let last = PolicyKey {
            port: u16::MAX,
            protocol: u8::MAX,
            ..*pair
        };
        let first = PolicyKey {
            protocol: 0,
            ..*pair
        };
        let policy = current.policy.range(first..=last);
        let policy = policy.filter(|(key, _)| key.protocol == pair.protocol);
        let start = self.ranges.partition_point(|(of, _)| of < pair);
        let blocks = self.ranges[start..].iter().take_while(|(of, _)| of == pair);
        let block = |key: &RangeKey| Some((*key, *current.range.get(key)?));
        Rows(
            policy.map(|(key, entry)| (*key, *entry)).collect(),
            blocks.filter_map(|(_, key)| block(key)).collect(),
        )
    }
}

/// Rows that a pair needs more, and whether it loses something.
fn compare(old: &Rows, pair: &PolicyKey, said: &Said) -> ((usize, usize), bool) {
    let mut new = Rows::default();
    said.plan.emit(pair, &mut new.0, &mut new.1);
    let change = TablesDiff {
        policy: Change::between(&old.0, &new.0),
        range: Change::between(&old.1, &new.1),
        ..TablesDiff::default()
    };
    let cost = (change.policy.added.len(), change.range.added.len());
    (cost, narrows(&change, false))
}

fn pair_of(key: &RangeKey) -> PolicyKey {
    PolicyKey {
        source: Number::from_be_bytes(key.source),
        destination: Number::from_be_bytes(key.destination),
        port: 0,
        protocol: key.protocol,
        zero: 0,
    }
}

#[cfg(test)]
mod tests {
    use zt_common::codes::Reason;

    use crate::{
        compile::{Limits, samples::*},
        model::{NodeModel, Policy, RuleAction},
    };

    /// a and b (cgroups 1 and 2) are here, c, d and e elsewhere.
    fn with(policies: Vec<Policy>) -> NodeModel {
        let mut model = model();
        model.workloads = vec![workload("a", 1), workload("b", 2)];
        let far = [("c", 3), ("d", 4), ("e", 5)];
        model.endpoints = far
            .iter()
            .map(|(name, last)| endpoint(&format!("10.0.0.{last}"), name, 0))
            .collect();
        model.policies = policies;
        model
    }

    fn node_of(policy: usize, range: usize) -> Node {
        Node::new(Limits {
            policy,
            range,
            ..limits(100)
        })
    }

    /// Also the names of the policies that are not whole.
    fn apply(node: &mut Node, model: &NodeModel) -> (Built, Vec<String>) {
        let (built, shortage) = node.apply(model);
        let names = shortage.policies.iter().map(ToString::to_string);
        (built, names.collect())
    }

    const C: &str = "10.0.0.3";
    const D: &str = "10.0.0.4";
    const E: &str = "10.0.0.5";
    const ALLOWED: Reason = Reason::AllowedByRule;
    const DENIED: Reason = Reason::NoPolicy;

    fn ports(count: u16) -> Vec<(u16, u16)> {
        (0..count).map(|n| (1000 + 2 * n, 1000 + 2 * n)).collect()
    }

    #[test]
    fn what_goes_goes_though_what_comes_does_not_fit() {
        let mut node = node_of(4, 4);
        let one = policy("p1", vec![allow(1, "a", "c")]);
        let two = policy("p2", vec![allow(1, "a", "d")]);
        let (_, cut) = apply(&mut node, &with(vec![one.clone(), two]));
        assert!(cut.is_empty());
        // p2 goes; one that is too large and one that is not come.
        let big = policy("big", vec![allow(1, "a", "e").ports(&ports(9))]);
        let small = policy("small", vec![allow(1, "b", "e")]);
        let (built, cut) = apply(&mut node, &with(vec![one, big, small]));
        assert_eq!(cut, ["big"]);
        assert_eq!(built.egress("a", C, 80), ALLOWED);
        assert_eq!(built.egress("a", D, 80), DENIED);
        assert_eq!(built.egress("a", E, 1000), DENIED);
        assert_eq!(built.egress("b", E, 80), ALLOWED, "the smallest first");
    }

    #[test]
    fn who_fills_the_table_keeps_only_himself_from_more() {
        let mut node = node_of(10, 4);
        let tenant = policy("tenant", vec![allow(1, "t/*", "t/*")]);
        let other = policy("other", vec![allow(1, "a", "c")]);
        let mut model = with(vec![tenant, other]);
        let grow = |model: &mut NodeModel, count: u8| {
            model.workloads.truncate(2);
            let cgroups = (0..count).map(|n| workload(&format!("t/{n}"), 100 + u64::from(n)));
            model.workloads.extend(cgroups);
        };
        grow(&mut model, 3);
        let (before, cut) = apply(&mut node, &model);
        assert!(cut.is_empty() && before.tables().policy.len() == 10);
        grow(&mut model, 60);
        let (after, cut) = apply(&mut node, &model);
        assert_eq!(cut, ["tenant"]);
        assert_eq!(after.tables().policy, before.tables().policy);
        // And what goes makes room.
        model.policies.remove(1);
        let (after, _) = apply(&mut node, &model);
        assert_eq!(after.egress("a", C, 80), DENIED);
        let (after, _) = apply(&mut node, &model);
        assert_eq!(after.tables().policy.len(), 10);
    }

    #[test]
    fn a_pair_that_gains_too_much_keeps_what_it_has_and_one_that_also_loses_is_denied() {
        let small =
            |ports: &[(u16, u16)]| with(vec![policy("p", vec![allow(1, "a", "c").ports(ports)])]);
        let mut node = node_of(4, 4);
        let first = [(80, 80)];
        apply(&mut node, &small(&first));
        let more: Vec<_> = first.into_iter().chain(ports(9)).collect();
        let (built, cut) = apply(&mut node, &small(&more));
        assert_eq!(cut, ["p"]);
        assert_eq!(built.egress("a", C, 80), ALLOWED);
        assert_eq!(built.egress("a", C, 1000), DENIED);
        let (built, cut) = apply(&mut node, &small(&ports(9)));
        assert_eq!(cut, ["p"]);
        assert_eq!(built.egress("a", C, 80), DENIED);
        assert_eq!(built.egress("a", C, 1000), DENIED);
        // Of ranges the same.
        let wide: Vec<(u16, u16)> = (0..9).map(|n| (1001 + 100 * n, 1050 + 100 * n)).collect();
        let mut node = node_of(4, 4);
        apply(&mut node, &small(&[(1001, 1002)]));
        let (built, _) = apply(&mut node, &small(&wide));
        assert_eq!(built.egress("a", C, 1040), DENIED);
    }

    #[test]
    fn a_deny_counts_in_a_full_table() {
        let allows = policy(
            "p",
            vec![allow(1, "a", "c"), allow(2, "a", "d"), allow(3, "b", "c")],
        );
        // Of the second one the kernel asks beside the pair.
        let denies = [
            (deny(1, "a", "c").ports(&[(22, 22)]), DENIED),
            (
                rule(1, RuleAction::Deny, &["a"], &["10.0.0.0/30"]),
                Reason::DeniedByRule,
            ),
        ];
        for (deny, then) in denies {
            let mut node = node_of(3, 4);
            let (_, cut) = apply(&mut node, &with(vec![allows.clone()]));
            assert!(cut.is_empty());
            let both = with(vec![allows.clone(), policy("q", vec![deny])]);
            let (built, cut) = apply(&mut node, &both);
            assert_eq!(cut, ["p"]);
            assert_ne!(built.egress("a", C, 22), ALLOWED);
            assert_eq!(built.egress("b", C, 22), ALLOWED, "nobody else pays");
            // That has made room for the deny, and not for both.
            let (built, _) = apply(&mut node, &both);
            assert_eq!(built.egress("a", C, 22), then);
            assert_eq!(built.egress("b", C, 22), ALLOWED);
        }
    }

    /// The pair that allows comes first, and what denies beside it finds no room.
    #[test]
    fn who_is_denied_more_than_there_is_room_for_is_allowed_nothing() {
        let ssh = deny(2, "a", "8.8.0.0/16").ports(&[(22, 22)]);
        let web = policy("web", vec![allow(1, "a", "8.8.0.0/16"), ssh]);
        let mut node = node_of(2, 4);
        let (built, cut) = apply(&mut node, &with(vec![web.clone()]));
        assert!(cut.is_empty());
        assert_eq!(built.egress("a", "8.8.8.8", 443), ALLOWED);
        let both = with(vec![web, policy("shut", vec![deny(1, "a", "@world")])]);
        for _ in 0..3 {
            let (built, _) = apply(&mut node, &both);
            assert_ne!(built.egress("a", "8.8.8.8", 443), ALLOWED);
        }
    }

    /// The node needs no row to reach whom it runs.
    #[test]
    fn the_node_does_not_reach_whom_another_deny_finds_no_room_for() {
        let shut = policy("shut", vec![deny(1, "@host", "b")]);
        let mut first = with(vec![shut.clone()]);
        first.node_addresses = vec![ip("10.0.0.9")];
        let mut node = node_of(1, 4);
        let (built, _) = apply(&mut node, &first);
        assert_eq!(built.ingress("b", "10.0.0.9", 80), Reason::DeniedByRule);
        let mut both = first.clone();
        let mixed = vec![
            allow(1, "@nodes", "b"),
            deny(2, "@nodes", "b").ports(&[(22, 22)]),
        ];
        both.policies = vec![shut, policy("mixed", mixed)];
        for _ in 0..3 {
            let (built, _) = apply(&mut node, &both);
            assert!(!built.ingress("b", "10.0.0.9", 80).is_allow());
        }
    }
}
