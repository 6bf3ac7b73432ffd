//! Which workload a cgroup is: the rows of `zt_workload_v1`.

use std::collections::{BTreeMap, BTreeSet};

use zt_common::{
    address::{Workload, workload_flags},
    identity,
};

use super::{CompileError, selection::Selection};
use crate::model::{Mode, NodeModel, WorkloadSpec};

/// Key of the row for every cgroup that nobody enrolled.
pub const UNENROLLED_CGROUP: u64 = 0;

/// # Errors
/// When a cgroup has two identities, or is no cgroup.
pub fn rows(
    model: &NodeModel,
    selection: &Selection<'_>,
) -> Result<BTreeMap<u64, Workload>, CompileError> {
    let unenrolled = Workload {
        netns: 0,
        identity: identity::UNENROLLED,
        flags: mode_flag(model.mode),
    };
    let mut rows = BTreeMap::from([(UNENROLLED_CGROUP, unenrolled)]);
    for specs in by_cgroup(model)?.values() {
        let first = specs[0];
        let row = Workload {
            netns: own_netns(model, first.cgroup, specs),
            identity: selection.identity(&first.identity)?,
            flags: flags(specs),
        };
        rows.insert(first.cgroup, row);
    }
    Ok(rows)
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
    let Some(cookie) = specs[0].netns else { return 0 };
    let agreed = specs.iter().all(|s| s.netns == Some(cookie));
    let shared = |w: &WorkloadSpec| w.cgroup != cgroup && w.netns == Some(cookie);
    if agreed && !model.workloads.iter().any(shared) { cookie } else { 0 }
}
