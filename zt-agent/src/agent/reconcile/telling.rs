//! Says what became of a step: on the board, and in the log once each.

use super::{Machine, Reconciler};
use crate::{
    audit::record::Time,
    document::render::{self, Style},
    kernel::store,
    model::{Mode, Problem},
    source::{documents::Documents, identity::ClusterPolicies, resources::Resources},
};

/// Warnings that are remembered.
const WARNED: usize = 1024;

/// What was warned of.
#[derive(Debug, Default)]
pub struct Warned(Vec<Problem>);

impl Warned {
    /// Those of these that are new.
    fn remember(&mut self, warnings: impl Iterator<Item = Problem>) -> Vec<Problem> {
        let new: Vec<Problem> = warnings.filter(|one| !self.0.contains(one)).collect();
        self.0.extend(new.iter().cloned());
        // Some name what is never the same again: the oldest go.
        self.0.drain(..self.0.len().saturating_sub(WARNED));
        new
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Reconciler {
    pub(super) fn tell(&self, applied: store::Applied, machine: &Machine) {
        let mut facts = self.board.facts();
        facts.generation = applied.generation;
        facts.workloads = machine.resolved.workloads.len() + machine.enrolled.len();
        let by_hand = machine.enrolled.iter().map(|one| &one.spec);
        let mut workloads = machine.resolved.workloads.iter().chain(by_hand);
        let is_audited = workloads.any(|workload| workload.mode == Mode::Audit);
        facts.audits = Some(self.config.mode == Mode::Audit || is_audited);
        if facts.waiting != machine.resolved.waiting {
            for waiting in &machine.resolved.waiting {
                tracing::warn!(spiffe_id = %waiting.spiffe_id, reason = %waiting.reason, "not enrolled");
            }
            facts.waiting.clone_from(&machine.resolved.waiting);
        }
        let resolved = &machine.resolved;
        for text in &resolved.complaints {
            if !facts.complaints.contains(text) {
                tracing::warn!("{text}");
            }
        }
        facts.complaints.clone_from(&resolved.complaints);
        if facts.outside != resolved.outside {
            if let Some(text) = &resolved.outside {
                tracing::error!("{text}");
            }
            facts.outside.clone_from(&resolved.outside);
        }
        if let Some(cluster) = &mut facts.cluster {
            cluster.complete = !resolved.unknown;
            cluster.attached = resolved.attached;
            for pod in &resolved.exposed {
                if !cluster.exposed.contains(pod) {
                    tracing::warn!(%pod, "it is enforced on a node that is not, and what it sent before it was found was not decided: it was made without the CNI plugin");
                }
            }
            cluster.exposed.clone_from(&resolved.exposed);
        }
        if applied.rows > 0 {
            facts.last_applied = Some(Time::now().to_string());
        }
    }

    /// Logs what loads and is probably not meant, once: an identity that comes
    /// and goes must not repeat it.
    pub(super) fn warn(&mut self, documents: &Documents, warnings: impl Iterator<Item = Problem>) {
        let warnings = documents.warnings().iter().cloned().chain(warnings);
        let new = self.warned.remember(warnings);
        if !new.is_empty() {
            let text = render::problems(&new, &documents.sources(), Style::Plain);
            tracing::warn!("the policy loads, and something in it is probably not meant:\n{text}");
        }
    }

    /// Puts errors on the board and into the log, once each.
    pub(super) fn report(&mut self) {
        let policy = self.errors.all();
        let mut facts = self.board.facts();
        if facts.policy_error != policy {
            match &policy {
                Some(error) => {
                    facts.policy_errors += 1;
                    tracing::error!("not everything is in force as it should be:\n{error}");
                }
                None => tracing::info!("the sources are in force again"),
            }
            facts.policy_error = policy;
        }
        if facts.quarantine_error != self.errors.quarantine {
            if let Some(error) = &self.errors.quarantine {
                tracing::error!(%error, "the quarantine file is not followed");
            }
            facts.quarantine_error.clone_from(&self.errors.quarantine);
        }
        drop(facts);
        self.report_cluster();
    }

    fn in_force_of_cluster(&self) -> Option<&Resources> {
        self.in_force.as_ref()?.documents.cluster.as_ref()
    }

    /// Says what becomes of the cluster's policies.
    fn report_cluster(&self) {
        let mut facts = self.board.facts();
        let Some(cluster) = &mut facts.cluster else {
            return;
        };
        let new = (self.refused.iter()).filter(|one| !cluster.refused.contains(one));
        let mut count = 0;
        for refused in new {
            count += 1;
            tracing::error!(resource = %refused.resource, "its latest version is refused, and what was accepted of it before stays in force: {}", refused.why());
        }
        cluster.refused.clone_from(&self.refused);
        cluster.policies = self.in_force_of_cluster().map_or(0, Resources::len);
        cluster.policies_unknown = unknown(&self.cluster);
        facts.policy_errors += count;
        drop(facts);
        self.publish_verdicts();
    }

    fn publish_verdicts(&self) {
        let Some(listing) = self.cluster.listing() else {
            return;
        };
        let errors = &self.errors;
        let error = errors.proposed.as_ref().or(errors.identities.as_ref());
        let error = error.map(String::as_str);
        let nothing = Resources::default();
        let in_force = self.in_force_of_cluster().unwrap_or(&nothing);
        let short = self.shortage.as_ref();
        let short = short.map(|short| (&short.policies, short.full.as_str()));
        let outside = self.board.facts().outside.clone();
        let unenforced = match self.config.mode {
            Mode::Audit => Some("the node is in audit mode"),
            Mode::Enforce => outside.as_deref(),
        };
        let verdicts = in_force.verdicts(listing, &self.refused, error, short, unenforced);
        self.board.verdicts.send_if_modified(|known| {
            let differ = **known != *verdicts;
            if differ {
                *known = verdicts.into();
            }
            differ
        });
    }
}

/// Why what is in force of the cluster's policies is not what it says now.
fn unknown(cluster: &ClusterPolicies) -> Option<String> {
    let ClusterPolicies::Unknown(absent) = cluster else {
        return None;
    };
    const STAY: &str = "those that were accepted last count";
    let names: Vec<&str> = absent.iter().map(|kind| kind.name()).collect();
    Some(match &names[..] {
        [] => format!("the API server has not listed the policies yet: {STAY}"),
        names => format!(
            "the API server does not know {}: apply the definitions, `zt-agent policy crd | kubectl apply -f -`; {STAY}",
            names.join(" and ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Position, Severity};

    fn warning(text: String) -> Problem {
        Problem {
            severity: Severity::Warning,
            at: Position {
                file: "identities".into(),
                line: 1,
                column: 1,
            },
            field: String::new(),
            message: text,
            hint: None,
        }
    }

    #[test]
    fn a_warning_is_told_once_and_not_all_are_remembered_for_ever() {
        let mut warned = Warned::default();
        let lasting = || warning("lasting".to_owned());
        for cgroup in 0..3 * WARNED {
            let passing = warning(format!("cgroup {cgroup}"));
            let new = warned.remember([lasting(), passing].into_iter());
            // Now and then the lasting one is told again.
            assert!((1..=2).contains(&new.len()));
        }
        assert_eq!(warned.0.len(), WARNED);
    }
}
