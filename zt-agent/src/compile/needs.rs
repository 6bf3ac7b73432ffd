//! What must have a number before a model can be compiled.

use std::collections::BTreeSet;

use super::territory::Territory;
use crate::model::{Name, NodeModel, Party, RuleRef, SpiffeId};

/// Everything that needs a number, sorted, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub names: Vec<Name>,
    pub rules: Vec<RuleRef>,
}

/// Lists what [`super::compile`] will want a number for.
#[must_use]
pub fn names(model: &NodeModel) -> Needs {
    let spiffe = identities(model).into_iter().cloned().map(Name::Spiffe);
    let territory = Territory::survey(model);
    let classes = territory.classes().iter().copied().map(Name::Class);
    let rules = model
        .policies
        .iter()
        .flat_map(|policy| policy.rules.iter().map(|rule| policy.rule_ref(rule)));
    Needs {
        names: spiffe.chain(classes).collect(),
        rules: rules.collect::<BTreeSet<_>>().into_iter().collect(),
    }
}

/// The SPIFFE IDs among which a pattern selects: of workloads and endpoints.
pub fn identities(model: &NodeModel) -> BTreeSet<&SpiffeId> {
    let remote = model.endpoints.iter().filter_map(|e| match &e.party {
        Party::Workload(id) => Some(id),
        Party::Reserved(_) => None,
    });
    model
        .workloads
        .iter()
        .map(|w| &w.identity)
        .chain(remote)
        .collect()
}
