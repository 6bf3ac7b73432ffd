//! Which workload a cgroup is: the rows of `zt_workload_v1`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use zt_common::{
    address::{Workload, workload_flags},
    identity::{self, Number},
};

use super::{CompileError, selection::Selection};
use crate::model::{Mode, NodeModel, WorkloadSpec};

/// Key of the row for every cgroup that nobody enrolled.
pub const UNENROLLED_CGROUP: u64 = 0;

/// The rows; those of the identities in `shut` may do nothing.
///
/// # Errors
/// When a cgroup has two identities, or is no cgroup.
pub fn rows(
    model: &NodeModel,
    selection: &Selection<'_>,
    shut: &BTreeSet<Number>,
) -> Result<BTreeMap<u64, Workload>, CompileError> {
    let unenrolled = Workload {
        netns: model.host_netns.unwrap_or_default(),
        identity: identity::UNENROLLED,
        flags: mode_flag(model.mode),
    };
    let mut rows = BTreeMap::from([(UNENROLLED_CGROUP, unenrolled)]);
    for specs in by_cgroup(model)?.values() {
        let first = specs[0];
        let identity = selection.identity(&first.identity)?;
        let is_shut = shut.contains(&identity);
        let row = Workload {
            netns: own_netns(model, first.cgroup, specs),
            identity,
            flags: flags(specs) | if is_shut { workload_flags::SHUT } else { 0 },
        };
        rows.insert(first.cgroup, row);
    }
    for cgroup in &model.departed {
        rows.entry(*cgroup).or_insert(Workload {
            netns: 0,
            ..unenrolled
        });
    }
    Ok(rows)
}

/// Whether a cgroup that is enrolled may have been somebody else before: part of
/// the node, or of the cgroup around it.
pub fn takes_over(model: &NodeModel) -> bool {
    model.host_netns.is_some() || nested(model)
}

fn nested(model: &NodeModel) -> bool {
    let paths: BTreeSet<&Path> = (model.workloads.iter())
        .map(|workload| Path::new(&*workload.path))
        .collect();
    let inside = |path: &&Path| path.ancestors().skip(1).any(|above| paths.contains(above));
    paths.iter().any(inside)
}

/// The cgroups of this node whose workload is in enforce mode.
pub fn enforcing(model: &NodeModel) -> BTreeSet<u64> {
    let enforced = model.workloads.iter().filter(|w| w.mode == Mode::Enforce);
    enforced.map(|w| w.cgroup).collect()
}

fn by_cgroup(model: &NodeModel) -> Result<BTreeMap<u64, Vec<&WorkloadSpec>>, CompileError> {
    let mut specs: BTreeMap<u64, Vec<&WorkloadSpec>> = BTreeMap::new();
    for spec in &model.workloads {
        if spec.cgroup == UNENROLLED_CGROUP {
            return Err(CompileError::CgroupZero(spec.identity.clone()));
        }
        let same = specs.entry(spec.cgroup).or_default();
        if let Some(other) = same.iter().find(|other| other.identity != spec.identity) {
            return Err(contradiction(spec, other));
        }
        same.push(spec);
    }
    Ok(specs)
}

fn contradiction(one: &WorkloadSpec, other: &WorkloadSpec) -> CompileError {
    let first = one.identity.clone().min(other.identity.clone());
    let second = one.identity.clone().max(other.identity.clone());
    CompileError::TwoIdentities {
        cgroup: one.cgroup,
        path: one.path.clone().min(other.path.clone()).to_string(),
        first,
        second,
    }
}

/// Of several specs for one cgroup the stricter word counts.
fn flags(specs: &[&WorkloadSpec]) -> u32 {
    let mode = if specs.iter().any(|s| s.mode == Mode::Enforce) {
        Mode::Enforce
    } else {
        Mode::Audit
    };
    let raw = specs.iter().all(|s| s.raw_sockets);
    mode_flag(mode) | if raw { workload_flags::RAW } else { 0 }
}

const fn mode_flag(mode: Mode) -> u32 {
    match mode {
        Mode::Enforce => workload_flags::ENFORCE,
        Mode::Audit => 0,
    }
}

/// The cookie of the namespace that this cgroup has for itself, else 0.
fn own_netns(model: &NodeModel, cgroup: u64, specs: &[&WorkloadSpec]) -> u64 {
    let Some(cookie) = specs[0].netns else {
        return 0;
    };
    let agreed = specs.iter().all(|s| s.netns == Some(cookie));
    let shared = |w: &WorkloadSpec| w.cgroup != cgroup && w.netns == Some(cookie);
    if agreed && !model.workloads.iter().any(shared) {
        cookie
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{compile, samples::*};

    #[test]
    fn the_row_for_everybody_else_has_the_mode_of_the_node() {
        let mut model = model();
        model.workloads = vec![workload("a", 7)];
        let rows = &built(&model).compiled.tables.workload;
        assert_eq!(rows.keys().copied().collect::<Vec<_>>(), [0, 7]);
        let unenrolled = rows[&UNENROLLED_CGROUP];
        assert_eq!(unenrolled.identity, identity::UNENROLLED);
        assert_eq!(unenrolled.flags, workload_flags::ENFORCE);

        model.mode = Mode::Audit;
        let rows = &built(&model).compiled.tables.workload;
        assert_eq!(rows[&UNENROLLED_CGROUP].flags, 0);
        assert_eq!(rows[&7].flags, workload_flags::ENFORCE);
    }

    #[test]
    fn who_is_not_enrolled_is_host_in_the_nodes_namespace_alone() {
        use zt_common::flow::Owner;

        let mut model = model();
        model.workloads = vec![workload("a", 7)];
        let who = |model: &NodeModel, leaf, netns| {
            let built = built(model);
            let owner = Owner {
                leaf,
                netns,
                ..Owner::default()
            };
            let (_, row) = crate::compile::lookup::local(built.tables(), &owner);
            (row.identity, row.netns)
        };
        assert_eq!(who(&model, 9, 50), (identity::UNENROLLED, 0));
        model.host_netns = Some(50);
        assert_eq!(who(&model, 9, 50), (identity::HOST, 0));
        for netns in [0, 51] {
            assert_eq!(who(&model, 9, netns), (identity::UNENROLLED, 0));
        }
        assert!(who(&model, 7, 50).0 >= identity::FIRST_SPIFFE);
        // Whoever was governed does not become the node by being deleted.
        model.departed = vec![9, 7];
        assert_eq!(who(&model, 9, 50), (identity::UNENROLLED, 0));
        assert!(who(&model, 7, 50).0 >= identity::FIRST_SPIFFE);
    }

    #[test]
    fn a_workload_may_be_in_audit_mode_and_may_have_raw_sockets() {
        let mut model = model();
        let mut spec = workload("a", 7);
        spec.mode = Mode::Audit;
        spec.raw_sockets = true;
        model.workloads = vec![spec];
        assert_eq!(
            built(&model).tables().workload[&7].flags,
            workload_flags::RAW
        );
    }

    #[test]
    fn on_a_node_with_a_namespace_of_its_own_whoever_is_enrolled_was_the_node() {
        let mut model = model();
        model.workloads = vec![workload("a", 7)];
        assert!(!built(&model).compiled.takes_over);
        model.host_netns = Some(50);
        assert!(built(&model).compiled.takes_over);
    }

    #[test]
    fn a_cgroup_inside_another_is_nested_and_a_namesake_is_not() {
        let mut model = model();
        let at = |path: &str, cgroup| WorkloadSpec {
            path: path.into(),
            ..workload(path, cgroup)
        };
        model.workloads = vec![at("zt/a", 7), at("zt/ab", 8), at("zt/b/a", 9)];
        assert!(!built(&model).compiled.takes_over);
        model.workloads.push(at("zt/a/x/y", 10));
        assert!(built(&model).compiled.takes_over);
    }

    #[test]
    fn a_namespace_that_two_share_is_nobodys_own() {
        let mut model = model();
        let in_netns = |name, cgroup, cookie| WorkloadSpec {
            netns: cookie,
            ..workload(name, cgroup)
        };
        model.workloads = vec![
            in_netns("a", 7, Some(50)),
            in_netns("a", 8, Some(50)),
            in_netns("b", 9, Some(51)),
            in_netns("c", 10, None),
        ];
        let built = built(&model);
        let cookies: Vec<_> = built.tables().workload.values().map(|w| w.netns).collect();
        assert_eq!(cookies, [0, 0, 0, 51, 0]);
    }

    #[test]
    fn a_cgroup_has_one_identity() {
        let mut model = model();
        model.workloads = vec![workload("b", 7), workload("a", 7)];
        let error = compile(&model, &numbers(&model)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cgroup 7 (/a) is both spiffe://td/a and spiffe://td/b: remove one of the two workloads, or give it a cgroup of its own"
        );
    }

    #[test]
    fn of_two_specs_for_one_cgroup_the_stricter_word_counts() {
        let mut model = model();
        let mut lax = workload("a", 7);
        lax.mode = Mode::Audit;
        lax.raw_sockets = true;
        model.workloads = vec![lax, workload("a", 7)];
        assert_eq!(
            built(&model).tables().workload[&7].flags,
            workload_flags::ENFORCE
        );
    }

    #[test]
    fn cgroup_zero_is_no_workload() {
        let mut model = model();
        model.workloads = vec![workload("a", 0)];
        let error = compile(&model, &numbers(&model)).unwrap_err();
        assert_eq!(error, CompileError::CgroupZero(id("a")));
    }
}
