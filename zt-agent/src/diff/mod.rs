//! What has to be written so that the maps hold what the compiler wants.

mod narrow;

use std::collections::BTreeMap;

use zt_common::{
    address::{AddressKey, CidrKey, Interface, Peer, Workload},
    policy::{Entry, PolicyKey, RangeKey},
};

use crate::compile::Tables;

pub use narrow::narrows;

/// A value that is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced<T> {
    pub was: T,
    pub becomes: T,
}

/// What has to happen to one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K, T> {
    pub added: BTreeMap<K, T>,
    pub changed: BTreeMap<K, Replaced<T>>,
    /// With the values that go.
    pub removed: BTreeMap<K, T>,
}

impl<K, T> Default for Change<K, T> {
    fn default() -> Self {
        Self {
            added: BTreeMap::new(),
            changed: BTreeMap::new(),
            removed: BTreeMap::new(),
        }
    }
}

impl<K: Copy + Ord, T: Copy + PartialEq> Change<K, T> {
    /// What turns `current` into `wanted`.
    #[must_use]
    pub fn between(current: &BTreeMap<K, T>, wanted: &BTreeMap<K, T>) -> Self {
        let mut change = Self::default();
        // Both are in the order of their keys, and most of both is the same: one walk
        // side by side, and no lookup for each key.
        let (mut current, mut wanted) = (current.iter(), wanted.iter());
        let (mut before, mut after) = (current.next(), wanted.next());
        loop {
            match (before, after) {
                (Some((key, was)), Some((other, becomes))) if key == other => {
                    if was != becomes {
                        let (was, becomes) = (*was, *becomes);
                        change.changed.insert(*key, Replaced { was, becomes });
                    }
                    (before, after) = (current.next(), wanted.next());
                }
                (Some((gone, was)), Some((other, _))) if gone < other => {
                    change.removed.insert(*gone, *was);
                    before = current.next();
                }
                (_, Some((key, becomes))) => {
                    change.added.insert(*key, *becomes);
                    after = wanted.next();
                }
                (Some((gone, was)), None) => {
                    change.removed.insert(*gone, *was);
                    before = current.next();
                }
                (None, None) => return change,
            }
        }
    }

    /// Does to `table` what is to be done to the map.
    pub fn apply(&self, table: &mut BTreeMap<K, T>) {
        table.retain(|key, _| !self.removed.contains_key(key));
        let changed = self
            .changed
            .iter()
            .map(|(key, value)| (*key, value.becomes));
        table.extend(
            self.added
                .iter()
                .map(|(key, value)| (*key, *value))
                .chain(changed),
        );
    }
}

impl<K, T> Change<K, T> {
    /// Number of rows that are touched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.added.len() + self.changed.len() + self.removed.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What has to happen to all tables, at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablesDiff {
    pub policy: Change<PolicyKey, Entry>,
    pub range: Change<RangeKey, Entry>,
    pub address: Change<AddressKey, Peer>,
    pub cidr: Change<CidrKey, Peer>,
    pub workload: Change<u64, Workload>,
    pub interface: Change<u32, Interface>,
}

impl TablesDiff {
    /// What turns `current` (the maps at the active generation) into `wanted`.
    #[must_use]
    pub fn between(current: &Tables, wanted: &Tables) -> Self {
        Self {
            policy: Change::between(&current.policy, &wanted.policy),
            range: Change::between(&current.range, &wanted.range),
            address: Change::between(&current.address, &wanted.address),
            cidr: Change::between(&current.cidr, &wanted.cidr),
            workload: Change::between(&current.workload, &wanted.workload),
            interface: Change::between(&current.interface, &wanted.interface),
        }
    }

    /// Does to `tables` what is to be done to the maps.
    pub fn apply(&self, tables: &mut Tables) {
        self.policy.apply(&mut tables.policy);
        self.range.apply(&mut tables.range);
        self.address.apply(&mut tables.address);
        self.cidr.apply(&mut tables.cidr);
        self.workload.apply(&mut tables.workload);
        self.interface.apply(&mut tables.interface);
    }

    /// Number of rows that are touched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.policy.len()
            + self.range.len()
            + self.address.len()
            + self.cidr.len()
            + self.workload.len()
            + self.interface.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> impl Strategy<Value = BTreeMap<u8, u8>> {
        prop::collection::btree_map(0_u8..12, 0_u8..3, 0..12)
    }

    proptest! {
        #[test]
        fn a_change_names_every_row_that_differs_once_with_what_it_was(
            current in table(),
            wanted in table(),
        ) {
            let change = Change::between(&current, &wanted);
            for key in 0..12 {
                let (was, becomes) = (current.get(&key).copied(), wanted.get(&key).copied());
                let changed = was.zip(becomes).filter(|(was, becomes)| was != becomes);
                let changed = changed.map(|(was, becomes)| Replaced { was, becomes });
                prop_assert_eq!(change.changed.get(&key).copied(), changed);
                let added = becomes.filter(|_| was.is_none());
                prop_assert_eq!(change.added.get(&key).copied(), added);
                let removed = was.filter(|_| becomes.is_none());
                prop_assert_eq!(change.removed.get(&key).copied(), removed);
            }
            let mut table = current;
            change.apply(&mut table);
            prop_assert_eq!(table, wanted);
        }
    }
}
