//! Why a model cannot be compiled.

use zt_common::identity::Number;

use crate::model::{Name, RuleRef, SpiffeId};

/// The model contradicts itself, or was not prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{0} has no number: give one to everything that `compile::names` lists, then compile")]
    UnnumberedName(Name),
    #[error(
        "rule {0} has no number: give one to everything that `compile::names` lists, then compile"
    )]
    UnnumberedRule(RuleRef),
    #[error("two rules are called {0}: give one of the policies another name")]
    DuplicateRule(RuleRef),
    #[error(
        "cgroup {cgroup} ({path}) is both {first} and {second}: remove one of the two workloads, or give it a cgroup of its own"
    )]
    TwoIdentities {
        cgroup: u64,
        path: String,
        first: SpiffeId,
        second: SpiffeId,
    },
    #[error(
        "the workload {0} has the cgroup id 0, which stands for unenrolled cgroups: enroll a real cgroup"
    )]
    CgroupZero(SpiffeId),
    #[error(
        "the reserved identity {0} cannot be named: only host, nodes, apiserver, world and masqueraded can"
    )]
    Unnameable(Number),
}
