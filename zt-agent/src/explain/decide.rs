//! The verdict at every end that this node governs, made as the kernel makes
//! it: the same facts, the same [`judge`].

use zt_common::{
    address::{Peer, peer_flags},
    codes::{Direction, Protocol, Reason},
    identity::{self, Number},
    policy::Entry,
    state::control_flags,
    verdict::{Facts, Judgement, judge},
};

use super::{
    World,
    behind::{Behind, behind},
    changes,
    ends::{End, EndError, Local, Resolved, resolve},
    place::{self, Place},
    said::{self, Pair},
};
use crate::compile::Tables;

/// May `from` open a flow to `to`?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub from: End,
    pub to: End,
    pub protocol: Protocol,
    /// Destination port; ignored for ICMP.
    pub port: u16,
}

/// What one governed end decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub direction: Direction,
    pub local: Local,
    pub peer: Peer,
    /// As it is looked up.
    pub pair: Pair,
    /// This end or the other one, on this node, enforces.
    pub enforce: bool,
    pub judgement: Judgement,
    /// The row that decides, and whether it is there.
    pub place: (Place, bool),
    /// What else policy files may say: see [`Decision::in_sync`].
    port: u16,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub source: Number,
    pub destination: Number,
    /// Empty: neither end is governed by this node. The strictest of each
    /// end's comes first.
    pub decisions: Vec<Decision>,
    /// The kernel would ask the socket at one end, which maps do not hold.
    pub asks_socket: bool,
    /// Everybody to whom it may be led, if the destination is a Service with
    /// several parties behind it.
    pub behind: Vec<Behind>,
    /// Both ends are one workload inside its own network namespace, where the
    /// kernel decides nothing.
    pub exempt: bool,
}

/// Answers.
///
/// # Errors
/// When an end is unknown here.
pub fn answer(question: &Question, world: &World<'_>) -> Result<Answer, EndError> {
    let protocol = question.protocol as u8;
    let source = resolve(&question.from, world, None, protocol)?;
    let destination = resolve(&question.to, world, Some(question.port), protocol)?;
    if is_within(world.tables, source.identity, destination.identity) {
        return Ok(Answer {
            source: source.identity,
            destination: destination.identity,
            decisions: Vec::new(),
            asks_socket: false,
            behind: Vec::new(),
            exempt: true,
        });
    }
    let egress = at_end(Direction::Egress, &source, &destination, question, world);
    let ingress = at_end(Direction::Ingress, &destination, &source, question, world);
    let (from, to) = (source.identity, destination.identity);
    let shared = |end: &Resolved| end.peers.iter().any(is_shared);
    Ok(Answer {
        source: source.identity,
        destination: destination.identity,
        decisions: egress.into_iter().chain(ingress).collect(),
        asks_socket: shared(&source) || shared(&destination),
        behind: behind(from, to, question.protocol, world),
        exempt: false,
    })
}

/// Whether both are the only cgroup of an identity that has a network
/// namespace for itself.
fn is_within(tables: &Tables, source: Number, destination: Number) -> bool {
    let rows: Vec<_> = (tables.workload.iter())
        .filter(|(cgroup, row)| **cgroup != 0 && row.identity == source)
        .collect();
    source == destination && matches!(rows[..], [(_, only)] if only.netns != 0)
}

fn is_shared(peer: &Peer) -> bool {
    peer.flags & peer_flags::SHARED != 0
}

fn at_end(
    direction: Direction,
    local: &Resolved,
    far: &Resolved,
    question: &Question,
    world: &World<'_>,
) -> Vec<Decision> {
    let mut decisions: Vec<Decision> = (local.locals.iter())
        .flat_map(|local| far.peers.iter().map(move |peer| (local, peer)))
        .map(|(local, peer)| {
            let Question { protocol, port, .. } = *question;
            decide(direction, local, peer, protocol, port, world)
        })
        .collect();
    decisions.sort_by_key(|decision| decision.judgement.reason.is_allow());
    // Addresses that differ only in what does not matter here.
    decisions.dedup_by(|a, b| a.judgement == b.judgement && a.local == b.local);
    decisions
}

/// What `local` decides of a flow that goes in `direction` to or from `peer`.
/// `port` is the destination's; ignored for ICMP.
#[must_use]
pub fn decide(
    direction: Direction,
    local: &Local,
    peer: &Peer,
    protocol: Protocol,
    port: u16,
    world: &World<'_>,
) -> Decision {
    let facts = facts(direction, local, peer, world);
    let pair = pair(direction, local.identity, peer.identity, protocol);
    let class = pair_of_class(direction, local, peer, protocol);
    // A CIDR means what this end sees.
    let (seen, port) = (port, rule_port(direction, peer, port));
    let entry = said::at(world.tables, &pair, port);
    let class_entry =
        class.map_or_else(Entry::default, |class| said::at(world.tables, &class, seen));
    let judgement = if world.generation == 0 {
        Judgement::denied(Reason::NotReady, true)
    } else {
        judge(&facts, &entry, &class_entry)
    };
    let by_class = class.filter(|_| judgement.rule != 0 && judgement.rule == class_entry.now.rule);
    let asked = by_class.unwrap_or(pair);
    let port = if by_class.is_some() { seen } else { port };
    Decision {
        direction,
        local: *local,
        peer: *peer,
        pair: asked,
        enforce: facts.enforce,
        judgement,
        place: deciding(&judgement, local, peer, &asked, port, world),
        port,
    }
}

/// The port by which rules know the destination: behind a Service's address
/// it is not the one that packets to it bear.
fn rule_port(direction: Direction, peer: &Peer, port: u16) -> u16 {
    if direction == Direction::Egress && peer.port != 0 {
        peer.port
    } else {
        port
    }
}

fn facts(direction: Direction, local: &Local, peer: &Peer, world: &World<'_>) -> Facts {
    let quarantined = |number| world.quarantined.contains(&number);
    Facts {
        quarantined: quarantined(local.identity) || quarantined(peer.identity),
        host: local.identity == identity::HOST,
        unenrolled: local.identity == identity::UNENROLLED,
        shut: local.shut,
        peer: peer.identity,
        host_may_reach: world.control.flags & control_flags::HOST_MAY_REACH != 0
            && peer.identity == identity::HOST
            && direction == Direction::Ingress,
        enforce: local.enforce || peer.flags & peer_flags::ENFORCE != 0,
        now: world.now,
    }
}

fn pair(direction: Direction, local: Number, far: Number, protocol: Protocol) -> Pair {
    let (source, destination) = match direction {
        Direction::Egress => (local, far),
        Direction::Ingress => (far, local),
    };
    Pair {
        source,
        destination,
        protocol: protocol as u8,
    }
}

fn pair_of_class(
    direction: Direction,
    local: &Local,
    peer: &Peer,
    protocol: Protocol,
) -> Option<Pair> {
    (peer.class != 0).then(|| pair(direction, local.identity, peer.class, protocol))
}

fn deciding(
    judgement: &Judgement,
    local: &Local,
    peer: &Peer,
    pair: &Pair,
    port: u16,
    world: &World<'_>,
) -> (Place, bool) {
    match judgement.reason {
        Reason::NotReady | Reason::HostAllowed => (Place::Control, true),
        Reason::Unenrolled => (Place::Workload(0), true),
        Reason::NoRoom => (Place::Workload(local.cgroup), true),
        Reason::Quarantined => {
            let own = world.quarantined.contains(&local.identity);
            let who = if own { local.identity } else { peer.identity };
            (Place::Trust(who), true)
        }
        _ => place::of_port(world.tables, pair, port),
    }
}

impl Decision {
    /// Whether `wanted` says the same as `world` of what this decision asked.
    #[must_use]
    pub fn in_sync(&self, world: &World<'_>, wanted: &Tables) -> bool {
        let same = |pair: &Pair| {
            let here = said::at(world.tables, pair, self.port);
            changes::agree(&here, &said::at(wanted, pair, self.port))
        };
        let protocol = Protocol::from_code(self.pair.protocol).unwrap_or(Protocol::Tcp);
        let plain = pair(
            self.direction,
            self.local.identity,
            self.peer.identity,
            protocol,
        );
        let class = pair_of_class(self.direction, &self.local, &self.peer, protocol);
        same(&plain) && class.is_none_or(|class| same(&class))
    }

    /// What `wanted` says at the pair that decides.
    #[must_use]
    pub fn wanted(&self, wanted: &Tables) -> Entry {
        said::at(wanted, &self.pair, self.port)
    }
}

impl Answer {
    /// Whether every governed end lets it pass.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.decisions.iter().all(|d| d.judgement.passes())
    }

    /// The decision that settles it: the first real denial, then the first
    /// that would be one, then the first.
    #[must_use]
    pub fn settling(&self) -> Option<&Decision> {
        let real = self.decisions.iter().find(|d| !d.judgement.passes());
        let would = || {
            let denied = |d: &&Decision| !d.judgement.reason.is_allow();
            self.decisions.iter().find(denied)
        };
        real.or_else(would).or_else(|| self.decisions.first())
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeSet;

    use zt_common::{codes::Verdict, state::Control};

    use super::*;
    use crate::{
        compile::samples::{Built, NOW, allow, built, deny, endpoint, model, policy, workload},
        model::{Mode, NodeModel},
    };

    pub fn node() -> NodeModel {
        let mut node = model();
        node.workloads = vec![workload("a", 10), workload("b", 11), workload("c", 12)];
        node.workloads[2].mode = Mode::Audit;
        node.endpoints = vec![
            endpoint("10.0.0.1", "a", 10),
            endpoint("10.0.0.2", "b", 11),
            endpoint("10.0.0.3", "c", 12),
            endpoint("10.9.0.9", "far", 0),
        ];
        node.policies = vec![policy(
            "p",
            vec![
                allow(1, "a", "b").ports(&[(80, 80)]),
                allow(2, "a", "far"),
                deny(3, "a", "10.9.0.0/16").ports(&[(22, 22)]),
            ],
        )];
        node
    }

    pub fn question(from: &str, to: &str, port: u16) -> Question {
        let end = |text: &str| text.parse().unwrap();
        Question {
            from: end(from),
            to: end(to),
            protocol: Protocol::Tcp,
            port,
        }
    }

    pub fn ask(built: &Built, quarantined: &[&str], question: &Question) -> Answer {
        let quarantined: BTreeSet<Number> = quarantined.iter().map(|n| built.number(n)).collect();
        let control = Control {
            flags: control_flags::HOST_MAY_REACH,
            ..Control::default()
        };
        let world = World {
            tables: built.tables(),
            numbers: &built.numbers,
            quarantined: &quarantined,
            generation: 1,
            control: &control,
            now: NOW,
        };
        answer(question, &world).unwrap()
    }

    fn reasons(answer: &Answer) -> Vec<(Direction, Verdict, Reason)> {
        (answer.decisions.iter())
            .map(|d| (d.direction, d.judgement.verdict, d.judgement.reason))
            .collect()
    }

    #[test]
    fn both_governed_ends_decide() {
        use Direction::{Egress, Ingress};
        let built = built(&node());
        let answer = ask(&built, &[], &question("a", "b", 80));
        assert!(answer.passes());
        assert_eq!(
            reasons(&answer),
            [
                (Egress, Verdict::Allow, Reason::AllowedByRule),
                (Ingress, Verdict::Allow, Reason::AllowedByRule)
            ]
        );
        let answer = ask(&built, &[], &question("a", "b", 81));
        assert!(!answer.passes());
        assert_eq!(
            answer.settling().unwrap().judgement.reason,
            Reason::NoPolicy
        );
    }

    #[test]
    fn an_end_elsewhere_is_not_asked() {
        let built = built(&node());
        let answer = ask(&built, &[], &question("a", "far", 443));
        assert_eq!(answer.decisions.len(), 1);
        let answer = ask(&built, &[], &question("far", "world", 443));
        assert!(answer.decisions.is_empty() && answer.passes());
    }

    #[test]
    fn an_address_and_its_identity_get_one_answer() {
        let built = built(&node());
        let by_id = ask(&built, &[], &question("a", "far", 22));
        let by_ip = ask(&built, &[], &question("10.0.0.1", "10.9.0.9", 22));
        assert_eq!(reasons(&by_id), reasons(&by_ip));
        let decision = by_id.settling().unwrap();
        assert_eq!(decision.judgement.reason, Reason::DeniedByRule);
        assert_eq!(decision.pair.destination, built.class("10.9.0.0/16"));
        assert!(matches!(decision.place, (Place::Policy(_), true)));
    }

    #[test]
    fn audit_mode_passes_unless_the_other_end_enforces() {
        let built = built(&node());
        let alone = ask(&built, &[], &question("c", "world", 80));
        assert!(alone.passes());
        assert_eq!(
            alone.settling().unwrap().judgement.verdict,
            Verdict::WouldDeny
        );
        assert!(!ask(&built, &[], &question("c", "b", 80)).passes());
    }

    #[test]
    fn inside_its_own_namespace_a_workload_is_not_governed() {
        let mut node = node();
        node.workloads[0].netns = Some(5);
        let built = built(&node);
        let own = ask(&built, &[], &question("a", "10.0.0.1", 80));
        assert!(own.exempt && own.passes() && own.decisions.is_empty());
        let shared = ask(&built, &[], &question("b", "b", 80));
        assert!(!shared.exempt && !shared.passes());
    }

    #[test]
    fn of_several_addresses_the_strictest_answer_comes_first() {
        let mut node = node();
        node.endpoints.push(endpoint("172.16.0.9", "far", 0));
        let built = built(&node);
        let answer = ask(&built, &[], &question("a", "far", 22));
        let got: Vec<Reason> = answer
            .decisions
            .iter()
            .map(|d| d.judgement.reason)
            .collect();
        assert_eq!(got, [Reason::DeniedByRule, Reason::AllowedByRule]);
    }

    #[test]
    fn a_denial_that_would_be_real_settles_before_an_allow() {
        let mut node = node();
        node.workloads.push(workload("d", 13));
        node.workloads[3].mode = Mode::Audit;
        node.endpoints.push(endpoint("10.0.0.4", "d", 13));
        let rules = vec![allow(1, "c", "d"), deny(2, "10.0.0.3/32", "d")];
        node.policies = vec![policy("p", rules)];
        let answer = ask(&built(&node), &[], &question("c", "d", 80));
        assert!(answer.passes());
        assert!(answer.decisions[0].judgement.reason.is_allow());
        let settling = answer.settling().unwrap().judgement;
        assert_eq!(settling.verdict, Verdict::WouldDeny);
    }

    #[test]
    fn quarantine_names_its_row() {
        let built = built(&node());
        let answer = ask(&built, &["b"], &question("a", "b", 80));
        let decision = answer.settling().unwrap();
        assert_eq!(decision.judgement.reason, Reason::Quarantined);
        assert_eq!(decision.place.0, Place::Trust(built.number("b")));
    }

    #[test]
    fn an_unknown_identity_is_an_error_that_helps() {
        let built = built(&node());
        let (quarantined, control) = (BTreeSet::new(), Control::default());
        let world = World {
            tables: built.tables(),
            numbers: &built.numbers,
            quarantined: &quarantined,
            generation: 1,
            control: &control,
            now: NOW,
        };
        let error = answer(&question("fer", "b", 80), &world).unwrap_err();
        assert_eq!(
            error.to_string(),
            "fer is unknown on this node: no workload has it and no endpoint names it; did you mean spiffe://td/far?"
        );
    }

    #[test]
    fn an_ending_that_only_one_identity_has_is_enough() {
        let mut node = node();
        node.workloads.push(workload("ns/one", 13));
        node.workloads.push(workload("other/one", 14));
        let built = built(&node);
        let by_ending = |text: &str| Question {
            from: End::Ending(text.into()),
            ..question("a", "b", 80)
        };
        assert!(ask(&built, &[], &by_ending("a")).passes());
        assert!(!ask(&built, &[], &by_ending("ns/one")).passes());
        let (quarantined, control) = (BTreeSet::new(), Control::default());
        let world = World {
            tables: built.tables(),
            numbers: &built.numbers,
            quarantined: &quarantined,
            generation: 1,
            control: &control,
            now: NOW,
        };
        assert_eq!(
            answer(&by_ending("one"), &world).unwrap_err().to_string(),
            "one is not one identity but spiffe://td/ns/one, spiffe://td/other/one; write which"
        );
        assert!(matches!(
            answer(&by_ending("ne"), &world),
            Err(EndError::Unknown { .. })
        ));
    }

    #[test]
    fn a_kernel_row_that_the_files_do_not_want_shows() {
        let wanted = built(&node());
        let mut altered = built(&node());
        let question = question("a", "b", 80);
        for entry in altered.compiled.tables.policy.values_mut() {
            entry.now.action = 2;
        }
        let (quarantined, control) = (BTreeSet::new(), Control::default());
        let world = World {
            tables: altered.tables(),
            numbers: &altered.numbers,
            quarantined: &quarantined,
            generation: 1,
            control: &control,
            now: NOW,
        };
        let answer = answer(&question, &world).unwrap();
        let decision = answer.settling().unwrap();
        assert!(!decision.in_sync(&world, wanted.tables()));
        assert!(decision.in_sync(&world, altered.tables()));
        assert_eq!(decision.wanted(wanted.tables()).now.action, 1);
    }

    #[test]
    fn before_the_first_generation_nothing_passes() {
        let built = built(&node());
        let (quarantined, control) = (BTreeSet::new(), Control::default());
        let world = World {
            tables: built.tables(),
            numbers: &built.numbers,
            quarantined: &quarantined,
            generation: 0,
            control: &control,
            now: NOW,
        };
        let answer = answer(&question("a", "b", 80), &world).unwrap();
        assert_eq!(
            answer.settling().unwrap().judgement.reason,
            Reason::NotReady
        );
    }
}
