//! One question, one answer: the precedence, written out.

use std::{cmp::Reverse, net::IpAddr};

use zt_agent::model::{
    Member, Mode, NodeModel, Policy, PolicyMode, Rule, RuleAction, RuleRef, SpiffeId, WorkloadSpec,
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
        match &self.far.peer {
            Peer::Service(service) if self.question.direction == Direction::Egress => {
                let outcome = self.weigh_all(local, service.members(), &counts);
                outcome.settle(&self.far.peer)
            }
            peer => {
                let outcome = self.weigh(local, peer, self.far.target, &counts);
                outcome.settle(peer)
            }
        }
    }

    /// What they say of a flow to a Service: everybody behind it who is not left to
    /// his own node must let it in, and somebody must.
    fn weigh_all(
        &self,
        local: &WorkloadSpec,
        members: &[Member],
        counts: impl Fn(&Policy) -> bool,
    ) -> Outcome {
        let weigh = |member: &Member| {
            let peer = Peer::from(&member.party);
            self.weigh(local, &peer, Some(member.port), &counts)
        };
        let others = members.iter().filter(|member| !member.is_governed);
        let others: Vec<Outcome> = others.map(weigh).collect();
        if others.is_empty() {
            most_lenient(members.iter().map(weigh).collect())
        } else {
            strictest(others)
        }
    }

    /// What the rules say of the flow if this peer is at the far end.
    fn weigh(
        &self,
        local: &WorkloadSpec,
        peer: &Peer,
        target: Option<u16>,
        counts: impl Fn(&Policy) -> bool,
    ) -> Outcome {
        let matching = self.matching_rules(local, peer, target, counts);
        // 3. Any deny.
        if let Some(rule) = deny(&matching) {
            return Outcome::Denied(rule);
        }
        // 4. Any allow or live grant.
        if let Some((deadline, rule)) = allow(&matching, self.question.now) {
            return Outcome::Allowed(deadline, rule);
        }
        // 5. The node's own processes, if they may reach its workloads.
        if self.host_may_reach && self.comes_from_host() {
            return Outcome::Host;
        }
        // 6. A grant that ran out.
        expired(&matching).map_or(Outcome::Silent, |(deadline, rule)| {
            Outcome::Expired(deadline, rule)
        })
    }

    fn is_quarantined(&self) -> bool {
        let peers = match &self.far.peer {
            Peer::Workload(id) => vec![id],
            Peer::Service(service) => service.identities().collect(),
            Peer::Reserved(_) | Peer::Address(_) => Vec::new(),
        };
        let local = self.local.map(|workload| &workload.identity);
        let mut ends = local.into_iter().chain(peers);
        ends.any(|id| self.question.quarantined.contains(id))
    }

    fn comes_from_host(&self) -> bool {
        self.question.direction == Direction::Ingress
            && self.far.peer == Peer::Reserved(identity::HOST)
    }

    fn matching_rules(
        &self,
        local: &WorkloadSpec,
        peer: &Peer,
        target: Option<u16>,
        counts: impl Fn(&Policy) -> bool,
    ) -> Vec<Matching> {
        let flow = Flow {
            local: &local.identity,
            peer,
            target,
            question: self.question,
        };
        let mut matching = Vec::new();
        for policy in &self.model.policies {
            for rule in policy.rules.iter() {
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
fn allow(matching: &[Matching], now: u64) -> Option<(Option<u64>, RuleRef)> {
    let permanent = allows(matching).filter(|m| m.expires.is_none());
    if let Some(rule) = permanent.map(|m| m.rule.clone()).min() {
        return Some((None, rule));
    }
    let live = allows(matching).filter(|m| m.expires.is_some_and(|deadline| deadline > now));
    latest(live)
}

/// The grant that ran out last. Asked only when none is alive.
fn expired(matching: &[Matching]) -> Option<(Option<u64>, RuleRef)> {
    latest(allows(matching))
}

fn allows(matching: &[Matching]) -> impl Iterator<Item = &Matching> {
    matching.iter().filter(|m| m.action == RuleAction::Allow)
}

/// The latest deadline; of several such, the first rule by policy and number.
fn latest<'a>(grants: impl Iterator<Item = &'a Matching>) -> Option<(Option<u64>, RuleRef)> {
    let first = grants.min_by_key(|m| (Reverse(m.expires), m.rule.clone()));
    first.map(|m| (m.expires, m.rule.clone()))
}

/// What the rules say.
enum Outcome {
    Denied(RuleRef),
    Silent,
    Host,
    /// With its end.
    Expired(Option<u64>, RuleRef),
    /// With its end; `None`: never.
    Allowed(Option<u64>, RuleRef),
}

impl Outcome {
    fn settle(self, peer: &Peer) -> (Reason, Option<RuleRef>) {
        match self {
            Self::Denied(rule) => (Reason::DeniedByRule, Some(rule)),
            Self::Allowed(None, rule) => (Reason::AllowedByRule, Some(rule)),
            Self::Allowed(Some(_), rule) => (Reason::LiveGrant, Some(rule)),
            Self::Host => (Reason::HostAllowed, None),
            Self::Expired(_, rule) => (Reason::GrantExpired, Some(rule)),
            // 7. A peer that cannot be named. 8. Default deny.
            Self::Silent => match peer {
                Peer::Reserved(identity::UNKNOWN_PEER) => (Reason::UnknownPeer, None),
                Peer::Reserved(identity::CONFLICT) => (Reason::Conflict, None),
                _ => (Reason::NoPolicy, None),
            },
        }
    }
}

/// Of those who are left to their own nodes: the permission that ends or ended last,
/// or else a deny, or else silence.
fn most_lenient(mut outcomes: Vec<Outcome>) -> Outcome {
    let order = |outcome: &Outcome| match outcome {
        Outcome::Allowed(None, _) => (4, None),
        Outcome::Allowed(Some(end), _) => (3, Some(*end)),
        Outcome::Expired(end, _) => (2, *end),
        Outcome::Denied(_) => (1, None),
        Outcome::Silent | Outcome::Host => (0, None),
    };
    outcomes.sort_by_key(order);
    outcomes.pop().unwrap_or(Outcome::Silent)
}

/// Of those that may be reached: a deny, then whom no rule mentions, then the
/// permission that ends or ended first.
fn strictest(outcomes: Vec<Outcome>) -> Outcome {
    let order = |outcome: &Outcome| match outcome {
        Outcome::Denied(_) => (0, None),
        Outcome::Silent | Outcome::Host => (1, None),
        Outcome::Expired(end, _) => (2, *end),
        Outcome::Allowed(Some(end), _) => (3, Some(*end)),
        Outcome::Allowed(None, _) => (4, None),
    };
    let first = outcomes.into_iter().min_by_key(order);
    first.unwrap_or(Outcome::Silent)
}
