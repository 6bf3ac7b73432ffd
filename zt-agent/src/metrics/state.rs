//! What the agent knows of itself.

use std::{collections::BTreeSet, sync::Arc};

use prometheus::{
    core::{Collector, Desc},
    proto::MetricFamily,
};
use zt_common::codes::Reason;

use super::family::Spec;
use crate::{
    agent::board::{Board, Facts, InterfaceFact},
    audit::Cause,
    kernel::{links::POINTS, repair::What},
};

macro_rules! specs {
    ($($constant:ident = $name:literal, $help:literal $(, $label:literal)*;)+) => {
        $(const $constant: Spec = Spec { name: $name, help: $help, labels: &[$($label),*] };)+
        pub(super) const ALL: &[Spec] = &[$($constant),+];
    };
}

specs! {
    DURATION = "zt_evaluation_duration_seconds", "Time of a decision in the kernel; quantiles of the last one to two minutes.";
    RECORDS = "zt_audit_records_total", "Decisions in the audit trail, since the maps were made.";
    LOST = "zt_audit_lost_total", "Decisions without an audit record, by cause, since the maps were made.", "cause";
    IN_FLIGHT = "zt_audit_in_flight", "Decisions on their way into the audit trail.";
    GENERATION = "zt_generation", "Policy generation in force; 0: none.";
    POLICY_ERRORS = "zt_policy_errors", "Changes that were refused since the agent started.";
    POLICY_FAILED = "zt_policy_failed", "1: the last change, or one of a policy of the cluster, is not in force.";
    RESTORED = "zt_rows_restored_total", "Rows of the maps that somebody altered and the agent restored, since it started.";
    REPAIRS = "zt_repairs_total", "What somebody altered in the kernel and the agent put right, since it started.", "what";
    DAMAGE = "zt_damage", "What somebody altered in the kernel and the agent cannot put right.";
    CUT = "zt_connections_cut_total", "Connections that were ended because they are no longer allowed, by the reason of the denial, since the agent started.", "cause";
    STRANGERS = "zt_strangers", "Programs that are not ours on the managed root, by hook.", "hook";
    MISSING = "zt_links_missing", "Hooks to which nothing of ours is attached.";
    INTERFACES = "zt_interfaces", "Interfaces at which frames are decided.";
    INTERFACES_FAILED = "zt_interfaces_failed", "Interfaces at which they should be and are not, or at which something else decides first.";
    UNCOVERED = "zt_workloads_uncovered", "Workloads whose frames pass no interface that can be governed.";
    DROPPED = "zt_default_drop_packets", "Packets from managed interfaces that the default drop dropped, by nftables family, since it was put in place.", "family";
    WORKLOADS = "zt_workloads", "Workloads that are enrolled.";
    WAITING = "zt_workloads_waiting", "Workloads that are declared and not enrolled.";
    QUARANTINED = "zt_quarantined", "Identities of this node that are quarantined.";
    CLUSTER_STALE = "zt_cluster_stale_seconds", "Time since which the cluster's API server is not followed; 0: it is.";
    CLUSTER_PODS = "zt_cluster_pods", "Pods of the cluster that are known.";
    CLUSTER_POLICIES = "zt_cluster_policies", "Policies of the cluster that are in force.";
    REFUSED = "zt_policy_refused", "1: the latest version of this resource of the cluster is not accepted; a version before it may be in force.", "resource", "field";
    COMPLAINTS = "zt_claims_refused", "Claims of the cluster's objects that are not believed; counted up to 64.";
    READY = "zt_ready", "1: everything that the sources say is in force and watched.";
}

/// Reads the board at every scrape.
#[derive(Debug)]
pub struct State {
    board: Arc<Board>,
    descriptions: Vec<Desc>,
}

impl State {
    #[must_use]
    pub fn new(board: Arc<Board>) -> Self {
        Self {
            board,
            descriptions: ALL.iter().map(Spec::desc).collect(),
        }
    }
}

impl Collector for State {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let facts = self.board.facts().clone();
        let mut families = audit(&facts);
        families.extend([
            DURATION.summary(facts.latency.summary()),
            GENERATION.gauge(facts.generation.into()),
            POLICY_ERRORS.counter(facts.policy_errors),
            POLICY_FAILED.gauge(policy_failed(&facts).into()),
            RESTORED.counter(facts.restored),
            REPAIRS.counters(repairs(&facts)),
            DAMAGE.gauge(damage(&facts)),
            CUT.counters(cut(&facts)),
            STRANGERS.gauges(strangers(&facts)),
            MISSING.gauge(facts.missing_links.len() as u64),
            INTERFACES.gauge(facts.interfaces.len() as u64),
            INTERFACES_FAILED.gauge(failed_interfaces(&facts)),
            UNCOVERED.gauge(uncovered_workloads(&facts)),
            DROPPED.gauges(dropped(&facts)),
            WORKLOADS.gauge(facts.workloads as u64),
            WAITING.gauge(facts.waiting.len() as u64),
            QUARANTINED.gauge(facts.quarantined as u64),
            CLUSTER_STALE.gauge(facts.cluster.as_ref().map_or(0, |c| c.stale_seconds)),
            CLUSTER_PODS.gauge(facts.cluster.as_ref().map_or(0, |c| c.pods as u64)),
            CLUSTER_POLICIES.gauge(facts.cluster.as_ref().map_or(0, |c| c.policies as u64)),
            REFUSED.gauges(refused(&facts)),
            COMPLAINTS.gauge(facts.complaints.len() as u64),
            READY.gauge(facts.not_ready().is_empty().into()),
        ]);
        families
    }
}

fn audit(facts: &Facts) -> Vec<MetricFamily> {
    let trail = facts.trail.clone().unwrap_or_default();
    let lost = Cause::ALL.map(|cause| (vec![cause.name().to_owned()], trail.lost.of(cause)));
    let in_flight = trail.pending + trail.unwritten + facts.in_ring;
    vec![
        RECORDS.counter(trail.recorded),
        LOST.counters(lost),
        IN_FLIGHT.gauge(in_flight),
    ]
}

fn policy_failed(facts: &Facts) -> bool {
    let refused = facts.cluster.iter().any(|one| !one.refused.is_empty());
    facts.policy_error.is_some() || refused
}

fn refused(facts: &Facts) -> impl Iterator<Item = (Vec<String>, u64)> {
    let refused = facts.cluster.iter().flat_map(|cluster| &cluster.refused);
    refused.map(|one| (vec![one.resource.clone(), one.field.clone()], 1))
}

/// Every kind, so that an alert sees a 0 become a 1.
fn repairs(facts: &Facts) -> Vec<(Vec<String>, u64)> {
    let count = |what: &str| facts.repairs.get(what).copied().unwrap_or(0);
    let kinds = What::ALL.map(What::name);
    kinds
        .map(|what| (vec![what.to_owned()], count(what)))
        .into()
}

fn damage(facts: &Facts) -> u64 {
    let errors = [&facts.links_error, &facts.maps_error, &facts.taint];
    (errors.into_iter().flatten().count() + facts.damage.len()) as u64
}

/// The reasons for which a flow can be denied later, 0 too.
fn cut(facts: &Facts) -> Vec<(Vec<String>, u64)> {
    const CAUSES: [Reason; 8] = [
        Reason::NoPolicy,
        Reason::DeniedByRule,
        Reason::Unenrolled,
        Reason::Quarantined,
        Reason::GrantExpired,
        Reason::UnknownPeer,
        Reason::Conflict,
        Reason::NoRoom,
    ];
    let count = |cause: &str| facts.cut.get(cause).copied().unwrap_or(0);
    let causes = CAUSES.map(Reason::name);
    causes
        .map(|cause| (vec![cause.to_owned()], count(cause)))
        .into()
}

fn failed_interfaces(facts: &Facts) -> u64 {
    let failed = |one: &&InterfaceFact| one.error.is_some() || !one.before.is_empty();
    facts.interfaces.iter().filter(failed).count() as u64
}

/// One may have several links.
fn uncovered_workloads(facts: &Facts) -> u64 {
    let ids: BTreeSet<&str> = facts.uncovered.iter().map(|one| &*one.spiffe_id).collect();
    ids.len() as u64
}

fn dropped(facts: &Facts) -> impl Iterator<Item = (Vec<String>, u64)> {
    let families = facts.dropped.iter();
    families.map(|(family, packets)| (vec![(*family).to_owned()], *packets))
}

/// Every hook, so that an alert sees a 0 become a 1.
fn strangers(facts: &Facts) -> Vec<(Vec<String>, u64)> {
    let count = |hook| {
        let found = facts.strangers.iter().find(|(name, _)| *name == hook);
        found.map_or(0, |(_, count)| *count as u64)
    };
    let hooks = POINTS.iter().map(|point| point.hook);
    hooks
        .map(|hook| (vec![hook.to_owned()], count(hook)))
        .collect()
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;

    #[test]
    fn the_text_has_every_family_with_a_summary_among_them() {
        let board = Arc::new(Board::new(0));
        board.facts().generation = 7;
        board.facts().latency.record(2000);
        board.facts().strangers = vec![("cgroup/connect4", 2)];
        board.facts().dropped = vec![("bridge", 5)];
        board.facts().cluster = Some(crate::agent::board::ClusterFact {
            refused: vec![crate::source::resources::Refused {
                resource: "serviceaccesspolicy/p".to_owned(),
                field: "spec.mode".to_owned(),
                message: "wrong".to_owned(),
            }],
            ..Default::default()
        });
        let registry = Registry::new();
        registry.register(Box::new(State::new(board))).unwrap();
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for line in [
            "# TYPE zt_evaluation_duration_seconds summary",
            "zt_evaluation_duration_seconds_count 1",
            "zt_generation 7",
            "zt_audit_lost_total{cause=\"ring-full\"} 0",
            "zt_strangers{hook=\"cgroup/connect4\"} 2",
            "zt_strangers{hook=\"cgroup/bind6\"} 0",
            "zt_default_drop_packets{family=\"bridge\"} 5",
            "zt_policy_failed 1",
            "zt_policy_refused{resource=\"serviceaccesspolicy/p\",field=\"spec.mode\"} 1",
            "zt_ready 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        for spec in ALL {
            assert!(
                text.contains(&format!("# HELP {} ", spec.name)),
                "{}",
                spec.name
            );
        }
        assert!(text.contains("zt_evaluation_duration_seconds{quantile=\"0.99\"} 0.000002"));
    }
}
