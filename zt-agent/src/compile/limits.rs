//! Whether the tables fit into the maps.

use std::collections::BTreeMap;

use super::Tables;

/// How many rows each map takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub policy: usize,
    pub range: usize,
    pub address: usize,
    pub cidr: usize,
    pub workload: usize,
    pub interface: usize,
    /// Pairs are gathered before they are rows; no more of them than this, to
    /// bound the memory.
    pub links: usize,
}

/// Several rules may speak about one pair: so many for each row that a map takes,
/// and never fewer than [`LINKS`].
const LINKS_PER_ROW: usize = 16;
const LINKS: usize = 1 << 20;

/// How many pairs are gathered for a policy map of this size.
#[must_use]
pub fn links(policy: usize) -> usize {
    LINKS.max(policy.saturating_mul(LINKS_PER_ROW))
}

/// The maps as they are now. A row that goes makes room only when those that
/// come were written: all of them are there at once.
#[derive(Clone, Copy, Debug)]
pub struct Room<'a> {
    pub current: &'a Tables,
    pub limits: &'a Limits,
}

/// Before Linux 6.13 a full trie cannot even replace a row, and so nothing in
/// it could be ended: one row stays free.
pub const SPARE_IN_TRIE: usize = 1;

/// A table is larger than its map. Nothing of it may be applied: half a
/// policy is worse than the previous one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {table} table needs {wanted} rows and its map takes {limit}: raise `{field}` to at least {wanted}; a map keeps its size while it is pinned, so run `zt-agent cleanup` before starting again"
)]
pub struct TableFull {
    pub table: &'static str,
    pub wanted: usize,
    pub limit: usize,
    /// The configuration field to raise.
    pub field: &'static str,
}

impl TableFull {
    pub const fn policy(wanted: usize, limit: usize) -> Self {
        Self {
            table: "policy",
            wanted,
            limit,
            field: "limits.policyEntries",
        }
    }

    /// Of Services: see [`super::share`].
    pub const fn address(wanted: usize, limit: usize) -> Self {
        Self {
            table: "address",
            wanted,
            limit,
            field: "limits.addresses",
        }
    }

    pub const fn range(wanted: usize, limit: usize) -> Self {
        Self {
            table: "range",
            ..Self::policy(wanted, limit)
        }
    }
}

impl Room<'_> {
    /// Rows that can still be added.
    #[must_use]
    pub fn free(&self) -> Limits {
        let (current, limits) = (self.current, self.limits);
        Limits {
            policy: limits.policy.saturating_sub(current.policy.len()),
            range: limits
                .range
                .saturating_sub(current.range.len() + SPARE_IN_TRIE),
            address: limits.address.saturating_sub(current.address.len()),
            cidr: limits
                .cidr
                .saturating_sub(current.cidr.len() + SPARE_IN_TRIE),
            workload: limits.workload.saturating_sub(current.workload.len()),
            interface: limits.interface.saturating_sub(current.interface.len()),
            links: limits.links,
        }
    }

    /// Checks every table against its map.
    ///
    /// # Errors
    /// The first table that does not fit.
    pub fn check(&self, wanted: &Tables) -> Result<(), TableFull> {
        let (current, limits, free) = (self.current, self.limits, self.free());
        let policies = "limits.policyEntries";
        let workloads = "limits.workloads";
        macro_rules! check {
            ($table:ident, $spare:expr, $field:expr) => {
                if let Some(rows) = needs(&current.$table, &wanted.$table, free.$table) {
                    return Err(TableFull {
                        table: stringify!($table),
                        wanted: rows + $spare,
                        limit: limits.$table,
                        field: $field,
                    });
                }
            };
        }
        check!(policy, 0, policies);
        check!(range, SPARE_IN_TRIE, policies);
        check!(address, 0, "limits.addresses");
        check!(cidr, SPARE_IN_TRIE, "limits.cidrs");
        check!(workload, 0, workloads);
        check!(interface, 0, workloads);
        Ok(())
    }
}

/// How many rows it takes if not all that are new find room.
fn needs<K: Ord, T>(
    current: &BTreeMap<K, T>,
    wanted: &BTreeMap<K, T>,
    free: usize,
) -> Option<usize> {
    if wanted.len() <= free {
        return None;
    }
    let new = wanted
        .keys()
        .filter(|key| !current.contains_key(key))
        .count();
    (new > free).then(|| wanted.len().max(current.len() + new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zt_common::address::{CidrKey, Peer, Workload};

    const LIMITS: Limits = Limits {
        policy: 0,
        range: 0,
        address: 0,
        cidr: 2,
        workload: 2,
        interface: 0,
        links: 0,
    };

    fn workloads(cgroups: &[u64]) -> Tables {
        let mut tables = Tables::default();
        let rows = cgroups.iter().map(|cgroup| (*cgroup, Workload::default()));
        tables.workload = rows.collect();
        tables
    }

    fn check(current: &Tables, wanted: &Tables) -> Result<(), TableFull> {
        let limits = &LIMITS;
        Room { current, limits }.check(wanted)
    }

    #[test]
    fn a_table_that_does_not_fit_is_named_with_the_field_to_raise() {
        let empty = Tables::default();
        assert_eq!(check(&empty, &workloads(&[0, 1])), Ok(()));
        let error = check(&empty, &workloads(&[0, 1, 2])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the workload table needs 3 rows and its map takes 2: raise `limits.workloads` to at least 3; a map keeps its size while it is pinned, so run `zt-agent cleanup` before starting again"
        );
    }

    #[test]
    fn what_goes_and_what_comes_are_there_at_once() {
        let current = workloads(&[0, 1]);
        assert_eq!(check(&current, &workloads(&[1])), Ok(()));
        assert_eq!(check(&current, &workloads(&[0, 2])).unwrap_err().wanted, 3);
    }

    #[test]
    fn a_trie_is_never_quite_full() {
        let mut wanted = Tables::default();
        for prefix_len in 0..2 {
            assert_eq!(check(&Tables::default(), &wanted), Ok(()));
            let key = CidrKey {
                prefix_len,
                ..CidrKey::default()
            };
            wanted.cidr.insert(key, Peer::default());
        }
        assert!(check(&Tables::default(), &wanted).is_err());
    }
}
