//! Whether the tables fit into the maps.

use super::Tables;

/// How many rows each map takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub policy: usize,
    pub range: usize,
    pub address: usize,
    pub cidr: usize,
    pub workload: usize,
    pub interface: usize,
}

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

/// Checks every table against its map.
///
/// # Errors
/// The first table that does not fit.
pub fn check_limits(tables: &Tables, limits: &Limits) -> Result<(), TableFull> {
    let sizes = [
        (
            "policy",
            tables.policy.len(),
            limits.policy,
            "limits.policyEntries",
        ),
        (
            "range",
            tables.range.len(),
            limits.range,
            "limits.policyEntries",
        ),
        (
            "address",
            tables.address.len(),
            limits.address,
            "limits.addresses",
        ),
        ("cidr", tables.cidr.len(), limits.cidr, "limits.cidrs"),
        (
            "workload",
            tables.workload.len(),
            limits.workload,
            "limits.workloads",
        ),
        (
            "interface",
            tables.interface.len(),
            limits.interface,
            "limits.workloads",
        ),
    ];
    match sizes
        .into_iter()
        .find(|(_, wanted, limit, _)| wanted > limit)
    {
        None => Ok(()),
        Some((table, wanted, limit, field)) => Err(TableFull {
            table,
            wanted,
            limit,
            field,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zt_common::address::Workload;

    #[test]
    fn a_table_that_does_not_fit_is_named_with_the_field_to_raise() {
        let mut tables = Tables::default();
        let limits = Limits {
            policy: 0,
            range: 0,
            address: 0,
            cidr: 0,
            workload: 1,
            interface: 0,
        };
        tables.workload.insert(0, Workload::default());
        assert_eq!(check_limits(&tables, &limits), Ok(()));
        tables.workload.insert(1, Workload::default());
        let error = check_limits(&tables, &limits).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the workload table needs 2 rows and its map takes 1: raise `limits.workloads` to at least 2; a map keeps its size while it is pinned, so run `zt-agent cleanup` before starting again"
        );
    }
}
