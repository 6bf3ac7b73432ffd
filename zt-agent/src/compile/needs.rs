//! What must have a number before a model can be compiled.

use std::{collections::BTreeSet, sync::Arc};

use super::territory::Territory;
use crate::model::{Name, NodeModel, Party, RuleRef, Service, SpiffeId};

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
    let services = services(model).into_iter().cloned().map(Name::Service);
    let rules = model
        .policies
        .iter()
        .flat_map(|policy| policy.rules.iter().map(|rule| policy.rule_ref(rule)));
    let mut rules: Vec<RuleRef> = rules.collect();
    // In order already, but for the policies.
    rules.sort();
    rules.dedup();
    Needs {
        names: spiffe.chain(classes).chain(services).collect(),
        rules,
    }
}

/// The SPIFFE IDs among which a pattern selects: of workloads and endpoints.
pub fn identities(model: &NodeModel) -> BTreeSet<&SpiffeId> {
    let remote = model.endpoints.iter().flat_map(|e| e.party.identities());
    model
        .workloads
        .iter()
        .map(|w| &w.identity)
        .chain(remote)
        .collect()
}

/// Ports of Services' addresses behind which there are several parties.
pub fn services(model: &NodeModel) -> BTreeSet<&Arc<Service>> {
    let parties = model.endpoints.iter().map(|e| &e.party);
    let services = parties.filter_map(|party| match party {
        Party::Service(service) => Some(service),
        Party::Workload(_) | Party::Reserved(_) => None,
    });
    services.collect()
}
