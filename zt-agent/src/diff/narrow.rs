//! Whether a change may take something away.
//!
//! A change that does makes the kernel decide every cached allow again. That
//! costs time and is never wrong, so whatever is not surely harmless narrows.

use zt_common::{
    codes::Action,
    policy::{Entry, Side},
};

use super::{Change, TablesDiff};

/// Whether cached allows have to be decided again after this change.
///
/// `false` is a promise: whatever was allowed stays allowed for at least as
/// long, between the same identities. It is given only if
///
/// 1. no address, prefix, or enrolled cgroup means somebody else,
/// 2. no policy or range row disappears,
/// 3. every one that appears or changes can only add an allow.
#[must_use]
pub fn narrows(diff: &TablesDiff) -> bool {
    let attributes = !diff.address.is_empty()
        || !diff.cidr.is_empty()
        || !diff.workload.changed.is_empty()
        || !diff.workload.removed.is_empty();
    attributes || !widens(&diff.policy) || !widens(&diff.range)
}

fn widens<K>(change: &Change<K, Entry>) -> bool {
    let mut changed = change.changed.values();
    change.removed.is_empty()
        && change.added.values().all(adds)
        && changed.all(|row| extends(&row.was, &row.becomes))
}

/// A row that was not there may hide one that answered before: the one with
/// port 0 or a wider block. Only a permanent allow is as good as whatever that
/// said, and only a default with a pointer to the blocks is as little as the
/// missing row with port 0 said.
fn adds(new: &Entry) -> bool {
    points(new) || new.ranges == 0 && permanent(&new.now) && permanent(&new.would)
}

/// A row that answered before answers no less.
fn extends(old: &Entry, new: &Entry) -> bool {
    let sides = lasts(&old.now, &new.now) && lasts(&old.would, &new.would);
    match (old.ranges != 0, new.ranges != 0) {
        (false, false) => sides && is(&new.now, Action::Allow),
        // The blocks are no longer asked: it must allow what they allowed.
        (true, false) => permanent(&new.now) && permanent(&new.would),
        // The blocks answer first now, with an allow or a denial of their own.
        (false, true) => points(new) && !is(&old.now, Action::Allow) && !is(&old.would, Action::Allow),
        (true, true) => sides,
    }
}

/// Only says that the blocks are to be asked.
fn points(entry: &Entry) -> bool {
    entry.ranges != 0 && entry.now == Side::default() && entry.would == Side::default()
}

/// Whether `new` denies nothing that `old` did not, and allows for as long.
fn lasts(old: &Side, new: &Side) -> bool {
    if is(new, Action::Deny) {
        return is(old, Action::Deny);
    }
    !is(old, Action::Allow)
        || is(new, Action::Allow)
            && (new.deadline == 0 || old.deadline != 0 && old.deadline <= new.deadline)
}

fn permanent(side: &Side) -> bool {
    is(side, Action::Allow) && side.deadline == 0
}

fn is(side: &Side, action: Action) -> bool {
    side.action == action as u8
}
