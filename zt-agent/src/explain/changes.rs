//! What changes for whom between two states of the maps, in the terms of
//! policies and not of rows.

use std::{collections::BTreeSet, ops::RangeInclusive};

use zt_common::{
    codes::Action,
    policy::{Entry, Side},
};

use super::{
    names::Words,
    said::{self, Pair, at, pieces, starts},
};
use crate::compile::Tables;

/// Deadlines this near are one: the offset between the two clocks is measured
/// anew each time, and the wall clock is slewed.
const SAME_DEADLINE: u64 = 5_000_000_000;

/// One thing that is said of a pair and some ports, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub pair: Pair,
    pub ports: RangeInclusive<u16>,
    pub before: Side,
    pub after: Side,
    /// It changes no verdict: it is only what the policies in audit mode add.
    pub audit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Added,
    Removed,
    Changed,
}

/// Every change, by pair and port.
#[must_use]
pub fn between(current: &Tables, wanted: &Tables) -> Vec<Line> {
    let mut all = starts(current);
    for (pair, pieces) in starts(wanted) {
        all.entry(pair).or_default().extend(pieces);
    }
    let lines = |(pair, starts): (&Pair, &BTreeSet<u16>)| of_pair(current, wanted, *pair, starts);
    all.iter().flat_map(lines).collect()
}

fn of_pair(current: &Tables, wanted: &Tables, pair: Pair, starts: &BTreeSet<u16>) -> Vec<Line> {
    let sides = |port| {
        let (before, after) = (at(current, &pair, port), at(wanted, &pair, port));
        difference(&before, &after)
    };
    (pieces(starts, sides).into_iter())
        .filter_map(|(ports, difference)| {
            let (before, after, audit) = difference?;
            Some(Line {
                pair,
                ports,
                before,
                after,
                audit,
            })
        })
        .collect()
}

fn difference(before: &Entry, after: &Entry) -> Option<(Side, Side, bool)> {
    if !same(&before.now, &after.now) {
        return Some((before.now, after.now, false));
    }
    (!same(&before.would, &after.would)).then_some((before.would, after.would, true))
}

/// Whether two entries say the same.
#[must_use]
pub fn agree(one: &Entry, other: &Entry) -> bool {
    difference(one, other).is_none()
}

fn same(one: &Side, other: &Side) -> bool {
    let deadline = match (one.deadline, other.deadline) {
        (0, 0) => true,
        (0, _) | (_, 0) => false,
        (one, other) => one.abs_diff(other) < SAME_DEADLINE,
    };
    (one.action, one.rule) == (other.action, other.rule) && deadline
}

impl Line {
    #[must_use]
    pub fn kind(&self) -> Kind {
        let silent = |side: &Side| side.action == Action::None as u8;
        match (silent(&self.before), silent(&self.after)) {
            (true, _) => Kind::Added,
            (_, true) => Kind::Removed,
            _ => Kind::Changed,
        }
    }

    /// `allow gateway → postgres 5432/tcp (hanzo-core-policy/rule-2)`
    #[must_use]
    pub fn text(&self, words: &Words) -> String {
        let shown = match self.kind() {
            Kind::Removed => &self.before,
            _ => &self.after,
        };
        let audit = if self.audit { "audit only: " } else { "" };
        let said = format!(
            "{audit}{} {} → {} {}",
            action(shown),
            words.identity(self.pair.source),
            words.identity(self.pair.destination),
            said::ports(&self.ports, self.pair.protocol)
        );
        let rule = |side: &Side| words.rule(side.rule).unwrap_or_else(|| "no rule".into());
        match self.kind() {
            Kind::Changed => format!("{said} ({})", self.change(&rule)),
            _ => format!("{said} ({})", rule(shown)),
        }
    }

    fn change(&self, rule: &impl Fn(&Side) -> String) -> String {
        let (was, is) = (rule(&self.before), rule(&self.after));
        if self.before.action != self.after.action {
            return format!("{is}; was {} by {was}", action(&self.before));
        }
        if was != is {
            return format!("{is}; was {was}");
        }
        format!("{is}; another deadline")
    }
}

/// `allow`, `allow until …` is told elsewhere, `deny`.
#[must_use]
pub fn action(side: &Side) -> &'static str {
    Action::from_code(side.action).map_or("unknown action", Action::name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::samples::{allow, built, deny, endpoint, model, policy, workload},
        model::{PolicyMode, Rule},
    };

    fn tables(rules: Vec<Rule>, mode: PolicyMode) -> (Tables, Words) {
        let mut world = model();
        world.workloads = vec![workload("a", 10), workload("b", 11)];
        world.endpoints = vec![endpoint("10.0.0.1", "a", 10), endpoint("10.0.0.2", "b", 11)];
        let mut one = policy("p", rules);
        one.mode = mode;
        world.policies = vec![one];
        let built = built(&world);
        let words = Words::new(&built.numbers, false);
        (built.compiled.tables, words)
    }

    fn told(before: Vec<Rule>, after: Vec<Rule>) -> Vec<String> {
        let (before, mut words) = tables(before, PolicyMode::Enforce);
        let (after, later) = tables(after, PolicyMode::Enforce);
        if !after.policy.is_empty() {
            words = later;
        }
        let lines = between(&before, &after);
        lines
            .iter()
            .map(|line| format!("{:?} {}", line.kind(), line.text(&words)))
            .collect()
    }

    #[test]
    fn what_is_new_and_what_goes_is_told_by_pair_and_port() {
        let one = || vec![allow(1, "a", "b").ports(&[(80, 81)])];
        assert_eq!(
            told(vec![], one()),
            ["Added allow a → b 80-81/tcp (p/rule-1)"]
        );
        assert_eq!(
            told(one(), vec![]),
            ["Removed allow a → b 80-81/tcp (p/rule-1)"]
        );
        assert_eq!(told(one(), one()), [""; 0]);
    }

    #[test]
    fn only_the_ports_that_differ_are_told() {
        let before = vec![allow(1, "a", "b").ports(&[(80, 89)])];
        let after = vec![
            allow(1, "a", "b").ports(&[(80, 89)]),
            deny(2, "a", "b").ports(&[(85, 85)]),
        ];
        assert_eq!(
            told(before, after),
            ["Changed deny a → b 85/tcp (p/rule-2; was allow by p/rule-1)"]
        );
    }

    #[test]
    fn a_policy_in_audit_mode_says_so() {
        let (nothing, _) = tables(vec![], PolicyMode::Audit);
        let (after, words) = tables(vec![allow(1, "a", "b")], PolicyMode::Audit);
        let lines = between(&nothing, &after);
        assert_eq!(lines.len(), 1);
        assert_eq!(
            lines[0].text(&words),
            "audit only: allow a → b any/tcp (p/rule-1)"
        );
    }

    #[test]
    fn a_slewed_clock_is_no_change_and_a_new_deadline_is() {
        let side = |deadline| Side {
            deadline,
            rule: 1,
            action: 1,
            zero: [0; 3],
        };
        assert!(same(&side(100_000_000_000), &side(100_000_001_000)));
        assert!(!same(&side(100_000_000_000), &side(200_000_000_000)));
        assert!(!same(&side(0), &side(1)));
    }
}
