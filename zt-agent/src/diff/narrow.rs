//! Whether a change may take something away.
//!
//! A change that does makes the kernel decide every cached allow again. That
//! costs time and is never wrong, so whatever is not surely harmless narrows.

use zt_common::{
    codes::Action,
    policy::{Entry, PolicyKey, RangeKey, Side},
};

use super::{Change, TablesDiff};

/// Whether cached allows have to be decided again after this change.
///
/// `false` is a promise: whatever was allowed stays allowed for at least as
/// long, between the same identities. It is given only if
///
/// 1. no address, prefix, or cgroup means somebody else; one that is enrolled
///    may take its sockets from somebody who was allowed (`takes_over`: see
///    [`Compiled`](crate::compile::Compiled)),
/// 2. no policy or range row disappears,
/// 3. every one that appears or changes can only add an allow.
///
/// Interfaces do not matter: what is cached is cached for the workload, and
/// whose an interface is, is looked up for every frame.
#[must_use]
pub fn narrows(diff: &TablesDiff, takes_over: bool) -> bool {
    let attributes = !diff.address.is_empty()
        || !diff.cidr.is_empty()
        || !diff.workload.changed.is_empty()
        || !diff.workload.removed.is_empty()
        || takes_over && !diff.workload.added.is_empty();
    let policy = |key: &PolicyKey, new: &Entry| allows(new) || key.port == 0 && points(new);
    let range = |_: &RangeKey, new: &Entry| allows(new);
    attributes || !widens(&diff.policy, policy) || !widens(&diff.range, range)
}

fn widens<K>(change: &Change<K, Entry>, adds: impl Fn(&K, &Entry) -> bool) -> bool {
    let mut changed = change.changed.values();
    change.removed.is_empty()
        && change.added.iter().all(|(key, new)| adds(key, new))
        && changed.all(|row| extends(&row.was, &row.becomes))
}

/// A row that was not there may hide one that answered before: the one with
/// port 0. Only a permanent allow is as good as whatever that one said.
fn allows(new: &Entry) -> bool {
    permanent(&new.now) && permanent(&new.would)
}

/// Only says that the blocks are to be asked: as little as no row at all.
fn points(new: &Entry) -> bool {
    new.ranges != 0 && new.now == Side::default() && new.would == Side::default()
}

/// A row that answered before answers no less.
fn extends(old: &Entry, new: &Entry) -> bool {
    match (old.ranges != 0, new.ranges != 0) {
        // The blocks are no longer asked: it must allow what they allowed.
        (true, false) => allows(new),
        // The blocks answer first now; they may not take its place.
        (false, true) => {
            points(new) && !is(&old.now, Action::Allow) && !is(&old.would, Action::Allow)
        }
        _ => lasts(&old.now, &new.now) && lasts(&old.would, &new.would),
    }
}

/// Whether `new` denies nothing that `old` did not, and allows for as long.
/// What is allowed for good keeps its rule, because cached allows name it.
fn lasts(old: &Side, new: &Side) -> bool {
    if is(new, Action::Deny) {
        return is(old, Action::Deny);
    }
    if !is(old, Action::Allow) {
        return true;
    }
    if permanent(old) {
        return permanent(new) && new.rule == old.rule;
    }
    permanent(new) || is(new, Action::Allow) && old.deadline <= new.deadline
}

fn permanent(side: &Side) -> bool {
    is(side, Action::Allow) && side.deadline == 0
}

fn is(side: &Side, action: Action) -> bool {
    side.action == action as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zt_common::{
        address::{AddressKey, Peer, Workload},
        policy::RANGE_PREFIX,
    };

    use super::*;
    use crate::compile::{Tables, lookup};

    const TCP: u8 = 6;

    fn key(port: u16) -> PolicyKey {
        PolicyKey {
            source: 300,
            destination: 301,
            port,
            protocol: TCP,
            zero: 0,
        }
    }

    fn side(action: Action, deadline: u64) -> Side {
        Side {
            deadline,
            rule: 1,
            action: action as u8,
            zero: [0; 3],
        }
    }

    fn entry(action: Action, deadline: u64) -> Entry {
        Entry {
            now: side(action, deadline),
            would: side(action, deadline),
            ..Entry::default()
        }
    }

    fn policy(rows: &[(u16, Entry)]) -> Tables {
        Tables {
            policy: rows
                .iter()
                .map(|(port, entry)| (key(*port), *entry))
                .collect(),
            ..Tables::default()
        }
    }

    fn between(old: &Tables, new: &Tables) -> bool {
        narrows(&TablesDiff::between(old, new), false)
    }

    #[test]
    fn a_new_permanent_allow_widens_and_its_removal_narrows() {
        let (nothing, allowed) = (policy(&[]), policy(&[(80, entry(Action::Allow, 0))]));
        assert!(!between(&nothing, &allowed));
        assert!(between(&allowed, &nothing));
        assert!(!between(&allowed, &allowed));
    }

    #[test]
    fn a_deny_narrows_whether_it_is_new_or_only_audited() {
        let allow = entry(Action::Allow, 0);
        let audited = Entry {
            would: side(Action::Deny, 0),
            ..allow
        };
        for new in [entry(Action::Deny, 0), audited] {
            assert!(between(&policy(&[]), &policy(&[(80, new)])));
            assert!(between(&policy(&[(80, allow)]), &policy(&[(80, new)])));
        }
    }

    #[test]
    fn a_grant_may_be_prolonged_and_not_shortened() {
        let row = |deadline| policy(&[(80, entry(Action::Allow, deadline))]);
        assert!(!between(&row(10), &row(20)));
        assert!(!between(&row(10), &row(0)));
        assert!(between(&row(20), &row(10)));
        assert!(between(&row(0), &row(20)));
        // It could hide a permanent allow of all ports.
        assert!(between(&policy(&[]), &row(20)));
    }

    #[test]
    fn what_is_allowed_for_good_keeps_its_rule() {
        let mut other = entry(Action::Allow, 0);
        other.now.rule = 2;
        other.would.rule = 2;
        let old = policy(&[(80, entry(Action::Allow, 0))]);
        assert!(between(&old, &policy(&[(80, other)])));
    }

    #[test]
    fn asking_the_blocks_narrows_only_where_there_was_an_allow() {
        let pointer = Entry {
            ranges: 1,
            ..Entry::default()
        };
        let (pointer, rest) = (
            policy(&[(0, pointer)]),
            policy(&[(0, entry(Action::Allow, 0))]),
        );
        assert!(!between(&policy(&[]), &pointer));
        assert!(!between(&policy(&[(0, entry(Action::Deny, 0))]), &pointer));
        assert!(between(&rest, &pointer));
        assert!(!between(&pointer, &rest));
    }

    #[test]
    fn a_grant_is_no_substitute_for_the_blocks() {
        let pointer = Entry {
            ranges: 1,
            ..Entry::default()
        };
        let grant = policy(&[(0, entry(Action::Allow, 20))]);
        assert!(between(&policy(&[(0, pointer)]), &grant));
    }

    #[test]
    fn an_enrolled_cgroup_widens_and_anything_about_addresses_narrows() {
        let mut enrolled = Tables::default();
        enrolled.workload.insert(7, Workload::default());
        assert!(!between(&Tables::default(), &enrolled));
        assert!(between(&enrolled, &Tables::default()));
        // It takes its sockets from somebody, and their caches.
        let change = TablesDiff::between(&Tables::default(), &enrolled);
        assert!(narrows(&change, true));
        assert!(!narrows(&TablesDiff::default(), true));

        let mut addressed = Tables::default();
        addressed
            .address
            .insert(AddressKey::default(), Peer::default());
        assert!(between(&Tables::default(), &addressed));
    }

    fn sides() -> impl Strategy<Value = Entry> {
        let side = prop_oneof![
            1 => Just(Side::default()),
            1 => Just(side(Action::Deny, 0)),
            3 => (0_u64..3).prop_map(|deadline| side(Action::Allow, deadline)),
        ];
        (side.clone(), side, any::<bool>()).prop_map(|(now, other, same)| Entry {
            now,
            would: if same { now } else { other },
            ..Entry::default()
        })
    }

    /// Rows for one pair: two single ports, the rest, and two blocks that are
    /// there only if the rest points to them.
    fn tables() -> impl Strategy<Value = Tables> {
        let row = || prop::option::weighted(0.6, sides());
        (row(), row(), row(), row(), any::<bool>(), row()).prop_map(|(a, b, c, d, ranged, rest)| {
            let rest = if ranged {
                let pointer = Entry {
                    ranges: 1,
                    ..Entry::default()
                };
                Some(pointer)
            } else {
                rest
            };
            let rows = [(8, a), (9, b), (0, rest)];
            let present = rows
                .into_iter()
                .filter_map(|(port, entry)| Some((port, entry?)));
            let mut tables = policy(&present.collect::<Vec<_>>());
            for (port, entry) in [(8_u16, c), (12, d)].into_iter().filter(|_| ranged) {
                let block = RangeKey {
                    prefix_len: RANGE_PREFIX + 14,
                    port: port.to_be_bytes(),
                    ..RangeKey::lookup(&key(0))
                };
                tables.range.extend(entry.map(|entry| (block, entry)));
            }
            tables
        })
    }

    /// The old tables with the new rows over them: what a real change is like.
    fn overlay(old: &Tables, new: &Tables) -> Tables {
        let mut both = old.clone();
        both.policy.extend(new.policy.clone());
        both.range.extend(new.range.clone());
        if both.policy.get(&key(0)).is_none_or(|rest| rest.ranges == 0) {
            both.range.clear();
        }
        both
    }

    fn allowed(tables: &Tables, port: u16, now: u64) -> (bool, bool) {
        let entry = lookup::entry(tables, 300, 301, TCP, port);
        let allows = |side: Side| {
            side.action == Action::Allow as u8 && (side.deadline == 0 || now < side.deadline)
        };
        (allows(entry.now), allows(entry.would))
    }

    fn denied(tables: &Tables, port: u16) -> bool {
        lookup::entry(tables, 300, 301, TCP, port).now.action == Action::Deny as u8
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn applying_a_difference_gives_what_is_wanted(old in tables(), new in tables()) {
            let diff = TablesDiff::between(&old, &new);
            let mut applied = old.clone();
            diff.apply(&mut applied);
            prop_assert_eq!(&applied, &new);
            prop_assert_eq!(diff.is_empty(), old == new);
            prop_assert!(TablesDiff::between(&applied, &new).is_empty());
        }

        #[test]
        fn what_does_not_narrow_takes_nothing_away(old in tables(), steps in prop::collection::vec(tables(), 16)) {
            let overlaid = steps.iter().map(|step| overlay(&old, step));
            for new in overlaid.chain(steps.clone()).filter(|new| !between(&old, new)) {
                for (port, now) in (7..17).flat_map(|port| (0..3).map(move |now| (port, now))) {
                    let (before, after) = (allowed(&old, port, now), allowed(&new, port, now));
                    prop_assert!(before.0 <= after.0 && before.1 <= after.1, "port {port} at {now}");
                    prop_assert!(denied(&old, port) || !denied(&new, port), "port {port}");
                }
            }
        }
    }
}
