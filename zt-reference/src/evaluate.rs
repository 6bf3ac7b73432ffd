//! One question, one answer: the precedence, written out.

use std::{cmp::Reverse, net::IpAddr};

use zt_agent::model::{
    Mode, NodeModel, Policy, PolicyMode, Rule, RuleAction, RuleRef, SpiffeId, WorkloadSpec,
};
use zt_common::{
    codes::{Direction, Protocol, Reason, Verdict},
    identity,
};

use crate::{
    matching::Flow,
    peer::{FarEnd, Peer, far_end},
};

/// The first packet of a flow, seen at one governed end. Never loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Index into the model's workloads; `None`: a cgroup that nobody enrolled.
    pub local: Option<usize>,
    pub direction: Direction,
    pub remote: IpAddr,
    /// Host byte order, not 0; ignored for ICMP. So is `local_port`.
    pub remote_port: u16,
    pub local_port: u16,
    pub protocol: Protocol,
    /// Wall-clock time, nanoseconds since the Unix epoch.
    pub now: u64,
    pub quarantined: Vec<SpiffeId>,
}

/// What should become of the packet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub verdict: Verdict,
    pub reason: Reason,
    /// The rule that decided, or the grant that ran out.
    pub rule: Option<RuleRef>,
    /// The reason, were every policy in audit mode enforced.
    pub would: Reason,
    pub peer: Peer,
}

/// Answers `question` by walking every rule of every policy.
///
/// `host_may_reach`: whether the node's own processes may reach its workloads
/// without a rule.
///
/// # Panics
/// When `question.local` is no index into the model's workloads.
#[must_use]
pub fn evaluate(model: &NodeModel, question: &Question, host_may_reach: bool) -> Answer {
    let case = Case {
        model,
        question,
        local: question.local.map(|index| &model.workloads[index]),
        far: far_end(model, question),
        host_may_reach,
    };
    let (reason, rule) = case.decide(|policy| policy.mode == PolicyMode::Enforce);
    let (would, _) = case.decide(|_| true);
    Answer {
        verdict: case.verdict(reason),
        reason,
        rule,
        would,
        peer: case.far.peer,
    }
}

/// A question with its ends looked up.
struct Case<'a> {
    model: &'a NodeModel,
    question: &'a Question,
    local: Option<&'a WorkloadSpec>,
    far: FarEnd,
    host_may_reach: bool,
}

impl Case<'_> {
    /// The first of these that holds.
    fn decide(&self, counts: impl Fn(&Policy) -> bool) -> (Reason, Option<RuleRef>) {
        // 1. Quarantine of either end.
        if self.is_quarantined() {
            return (Reason::Quarantined, None);
        }
        // 2. An end that nobody enrolled: no rule can name it.
        let Some(local) = self.local else {
            return (Reason::Unenrolled, None);
        };
        let matching = self.matching_rules(local, counts);
        // 3. Any deny.
        if let Some(rule) = deny(&matching) {
            return (Reason::DeniedByRule, Some(rule));
        }
        // 4. Any allow or live grant.
        if let Some((reason, rule)) = allow(&matching, self.question.now) {
            return (reason, Some(rule));
        }
        // 5. The node's own processes, if they may reach its workloads.
        if self.host_may_reach && self.comes_from_host() {
            return (Reason::HostAllowed, None);
        }
        // 6. A grant that ran out.
        if let Some(rule) = expired(&matching) {
            return (Reason::GrantExpired, Some(rule));
        }
        // 7. A peer that cannot be named. 8. Default deny.
        match self.far.peer {
            Peer::Reserved(identity::UNKNOWN_PEER) => (Reason::UnknownPeer, None),
            Peer::Reserved(identity::CONFLICT) => (Reason::Conflict, None),
            _ => (Reason::NoPolicy, None),
        }
    }

    fn is_quarantined(&self) -> bool {
        let peer = match &self.far.peer {
            Peer::Workload(id) => Some(id),
            Peer::Reserved(_) | Peer::Address(_) => None,
        };
        let local = self.local.map(|workload| &workload.identity);
        let mut ends = local.into_iter().chain(peer);
        ends.any(|id| self.question.quarantined.contains(id))
    }

    fn comes_from_host(&self) -> bool {
        self.question.direction == Direction::Ingress
            && self.far.peer == Peer::Reserved(identity::HOST)
    }

    fn matching_rules(
        &self,
        local: &WorkloadSpec,
        counts: impl Fn(&Policy) -> bool,
    ) -> Vec<Matching> {
        let flow = Flow {
            local: &local.identity,
            peer: &self.far.peer,
            target: self.far.target,
            question: self.question,
        };
        let mut matching = Vec::new();
        for policy in &self.model.policies {
            for rule in &policy.rules {
                if counts(policy) && flow.is_meant_by(rule) {
                    matching.push(Matching::new(policy, rule));
                }
            }
        }
        matching
    }

    /// A denial is real if either local end enforces; a quarantine always is.
    fn verdict(&self, reason: Reason) -> Verdict {
        let own = self.local.map_or(self.model.mode, |local| local.mode);
        let enforced = own == Mode::Enforce || self.peer_enforces();
        if reason.is_allow() {
            Verdict::Allow
        } else if reason == Reason::Quarantined || enforced {
            Verdict::Deny
        } else {
            Verdict::WouldDeny
        }
    }

    /// Whether the peer is a workload of this node in enforce mode.
    fn peer_enforces(&self) -> bool {
        let mut workloads = self.model.workloads.iter();
        workloads.any(|peer| Some(peer.cgroup) == self.far.cgroup && peer.mode == Mode::Enforce)
    }
}

/// What matters of a rule that matches.
struct Matching {
    rule: RuleRef,
    action: RuleAction,
    expires: Option<u64>,
}

impl Matching {
    fn new(policy: &Policy, rule: &Rule) -> Self {
        Self {
            rule: policy.rule_ref(rule),
            action: rule.action,
            expires: rule.expires,
        }
    }
}

fn deny(matching: &[Matching]) -> Option<RuleRef> {
    let denies = matching.iter().filter(|m| m.action == RuleAction::Deny);
    denies.map(|m| m.rule.clone()).min()
}

/// A permanent allow, else the live grant with the latest deadline.
fn allow(matching: &[Matching], now: u64) -> Option<(Reason, RuleRef)> {
    let permanent = allows(matching).filter(|m| m.expires.is_none());
    if let Some(rule) = permanent.map(|m| m.rule.clone()).min() {
        return Some((Reason::AllowedByRule, rule));
    }
    let live = allows(matching).filter(|m| m.expires.is_some_and(|deadline| deadline > now));
    latest(live).map(|rule| (Reason::LiveGrant, rule))
}

/// The grant that ran out last. Asked only when none is alive.
fn expired(matching: &[Matching]) -> Option<RuleRef> {
    latest(allows(matching))
}

fn allows(matching: &[Matching]) -> impl Iterator<Item = &Matching> {
    matching.iter().filter(|m| m.action == RuleAction::Allow)
}

/// The latest deadline; of several such, the first rule by policy and number.
fn latest<'a>(grants: impl Iterator<Item = &'a Matching>) -> Option<RuleRef> {
    let first = grants.min_by_key(|m| (Reverse(m.expires), m.rule.clone()));
    first.map(|m| m.rule.clone())
}
