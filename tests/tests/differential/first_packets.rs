//! The first packet of a flow, against the reference evaluator.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use zt_agent::model::{Endpoint, Name, Party, RuleRef};
use zt_common::{
    codes::{Direction, Protocol, Reason, Verdict},
    event::Event,
    identity,
};
use zt_reference::{
    Answer, Peer, Question,
    generate::{self, World},
};

use zt_tests::patience::fewer;

use crate::rig::{self, Draw, Rig, at_least};

const WORLDS: usize = 150;
const QUESTIONS: usize = 24;

/// What the kernel should do with a question's packet.
pub enum Expected {
    /// A decision, as the reference makes it of this world.
    Decision(Box<World>),
    /// The written meaning can be read in two ways.
    Undecided,
}

#[test]
fn the_programs_and_the_reference_give_the_same_answer() {
    let seed = rig::seed();
    let mut draw = Draw::new(seed);
    let started = Instant::now();
    let mut rig = Rig::new();
    let mut tally = Tally::default();
    let mut problems = Vec::new();
    for number in 0..fewer(WORLDS) {
        let (world, questions) = draw.one(&generate::case_of(QUESTIONS));
        let world = rig.adapt(&world);
        rig.enter(&world);
        for question in questions {
            let question = rig.now(&question);
            if let Err(problem) = ask(&mut rig, &world, &question, &mut tally) {
                problems.push(format!("world {number}: {problem}"));
            }
        }
    }
    println!("seed {seed}, {:?}: {tally:?}", started.elapsed());
    assert!(
        problems.is_empty(),
        "ZT_SEED={seed}: {} of {} disagree; the first:\n{}",
        problems.len(),
        tally.asked,
        problems[..problems.len().min(5)].join("\n\n")
    );
    assert!(tally.asked >= at_least(3_000), "{tally:?}");
    assert!(tally.undecided * 100 < tally.asked * 15, "{tally:?}");
}

/// How many questions there were, of which kind, and with which answer.
#[derive(Debug, Default)]
struct Tally {
    asked: usize,
    undecided: usize,
    reasons: BTreeMap<&'static str, usize>,
}

fn ask(rig: &mut Rig, world: &World, question: &Question, tally: &mut Tally) -> Result<(), String> {
    tally.asked += 1;
    let question = &numbered(question, tally.asked);
    rig.forget(question);
    let context = |text: String| format!("{text}\n{question:#?}\n{:#?}", world.model);
    match expected(world, question) {
        Expected::Undecided => {
            tally.undecided += 1;
            Ok(())
        }
        Expected::Decision(seen) => {
            let answer = seen.answer(question);
            *tally.reasons.entry(answer.reason.name()).or_default() += 1;
            let (ran, events) = rig.send(question, rig::opening(question.protocol));
            let [event] = events[..] else {
                return Err(context(format!("not one event: {events:?}")));
            };
            let agreed = agree(rig, &seen, question, &answer, &event)
                .and_then(|()| same("return value", &ran.returned, &returned(&answer)));
            agreed.map_err(|text| context(format!("{text}\n{answer:#?}\n{event:#?}")))
        }
    }
}

fn returned(answer: &Answer) -> u32 {
    u32::from(answer.verdict != Verdict::Deny)
}

/// An echo's identifier is its ports; all others are as they were asked.
pub fn numbered(question: &Question, number: usize) -> Question {
    let mut question = question.clone();
    if question.protocol == Protocol::Icmp {
        let identifier = u16::try_from(number % 60_000).unwrap() + 1;
        question.local_port = identifier;
        question.remote_port = identifier;
    }
    question
}

/// What is at an address, as far as the question's port is concerned. A
/// packet that names a shared address and no declared port is for the socket
/// that is there, and here is none: then its end is nobody's.
pub fn expected(world: &World, question: &Question) -> Expected {
    let model = &world.model;
    let ip = question.remote.to_canonical();
    let claims: Vec<&Endpoint> = model.endpoints.iter().filter(|e| e.ip == ip).collect();
    let is_node = model.node_addresses.contains(&ip);
    let has_whole = claims.iter().any(|claim| claim.ports.is_none());
    let has_ports = claims.iter().any(|claim| claim.ports.is_some());
    let one_claimant = claims
        .iter()
        .all(|claim| (&claim.party, claim.cgroup) == (&claims[0].party, claims[0].cgroup));
    let asked = (question.protocol, question.remote_port);
    let declared = claims
        .iter()
        .any(|claim| claim.ports.iter().flatten().any(|port| *port == asked));
    let itself = question.local.is_some_and(|at| {
        let local = &model.workloads[at];
        local.netns.is_some()
            && claims
                .iter()
                .all(|claim| claim.cgroup == Some(local.cgroup))
    });
    let mut seen = world.clone();
    if has_whole && one_claimant && !is_node && itself {
        // The test's socket shows no namespace, and no socket is behind the
        // address that would show that a workload talks to itself.
        for claim in &mut seen.model.endpoints {
            if claim.ip == ip {
                claim.ports = Some(Vec::new());
            }
        }
        return Expected::Decision(Box::new(seen));
    }
    if declared || !(has_ports || is_node) {
        return Expected::Decision(Box::new(seen));
    }
    // The two readings that `compile_agrees` of the reference tells of.
    if !claims.is_empty() && (is_node || has_whole && one_claimant) {
        return Expected::Undecided;
    }
    if is_node {
        if let (Some(at), Direction::Ingress) = (question.local, question.direction) {
            // Nothing shows that the node sent it.
            seen.model.workloads[at].netns.get_or_insert(1);
        }
    } else {
        seen.model
            .endpoints
            .retain(|claim| claim.ip != ip || claim.ports.is_some());
    }
    Expected::Decision(Box::new(seen))
}

fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    kernel: &T,
    reference: &T,
) -> Result<(), String> {
    if kernel == reference {
        Ok(())
    } else {
        Err(format!(
            "{what}: kernel {kernel:?}, reference {reference:?}"
        ))
    }
}

fn agree(
    rig: &Rig,
    world: &World,
    question: &Question,
    answer: &Answer,
    event: &Event,
) -> Result<(), String> {
    let verdict = Verdict::from_code(event.verdict);
    same("verdict", &verdict, &Some(answer.verdict))?;
    let reason = Reason::from_code(event.reason);
    same("reason", &reason, &Some(answer.reason))?;
    let would = match (answer.reason.is_allow(), answer.would.is_allow()) {
        (true, false) => Verdict::Deny as u8,
        (false, true) => Verdict::Allow as u8,
        _ => 0,
    };
    same("would verdict", &event.would_verdict, &would)?;
    let mut rules = rig.node.numbers.rules();
    let rule = rules.find(|(_, number)| *number == event.rule);
    rule_agrees(world, question, answer, rule.map(|(rule, _)| rule).as_ref())?;
    same("cgroup", &event.cgroup, &rig.cgroup(question))?;
    same("direction", &event.direction, &(question.direction as u8))?;
    same("port", &event.remote_port, &question.remote_port)?;
    peer_agrees(rig, question, answer, event)
}

fn peer_agrees(
    rig: &Rig,
    question: &Question,
    answer: &Answer,
    event: &Event,
) -> Result<(), String> {
    let number = match question.direction {
        Direction::Egress => event.destination,
        Direction::Ingress => event.source,
    };
    match &answer.peer {
        Peer::Workload(id) => {
            let known = rig.node.numbers.get(&Name::Spiffe(id.clone()));
            same("peer", &Some(number), &known)
        }
        Peer::Service(service) => {
            let known = rig.node.numbers.get(&Name::Service(service.clone()));
            same("peer", &Some(number), &known)
        }
        // The reference is asked about an enrolled end only.
        Peer::Reserved(identity::HOST) if question.local.is_none() => Ok(()),
        Peer::Reserved(reserved) => same("peer", &number, reserved),
        // A class of addresses, or `world` where no policy names any.
        Peer::Address(_) => Ok(()),
    }
}

/// Which of several rules gives its name is not told apart everywhere:
///
/// 1. The kernel keeps the denies of addresses and of identities in separate
///    rows and names the former where both deny.
/// 2. Deadlines from before the boot are one and the same to it.
///
/// There the named rule must at least bring about the reason by itself, behind
/// a Service for one of those who are there.
fn rule_agrees(
    world: &World,
    question: &Question,
    answer: &Answer,
    rule: Option<&RuleRef>,
) -> Result<(), String> {
    let several = matches!(answer.reason, Reason::DeniedByRule | Reason::GrantExpired);
    if let (Some(rule), true) = (rule, several) {
        let alone = with_only(world, rule);
        let brings_it_about = |world: &World, question: &Question| {
            let alone = world.answer(question);
            (alone.rule.as_ref(), alone.reason) == (Some(rule), answer.reason)
        };
        let is_its = match &answer.peer {
            Peer::Service(service) => service.members().iter().any(|member| {
                let (world, question) = in_its_place(&alone, question, &member.party, member.port);
                brings_it_about(&world, &question)
            }),
            _ => brings_it_about(&alone, question),
        };
        if is_its {
            return Ok(());
        }
    }
    same("rule", &rule, &answer.rule.as_ref())
}

fn with_only(world: &World, name: &RuleRef) -> World {
    let mut world = world.clone();
    for policy in &mut world.model.policies {
        let of_this_policy = policy.name == name.policy;
        let rules = Arc::make_mut(&mut policy.rules);
        rules.retain(|rule| of_this_policy && rule.number == name.number);
    }
    world
}

/// The same with nobody but `party` at the address, at its own port.
fn in_its_place(world: &World, question: &Question, party: &Party, port: u16) -> (World, Question) {
    let (mut world, mut question) = (world.clone(), question.clone());
    question.remote_port = port;
    let ip = question.remote.to_canonical();
    world.model.endpoints.retain(|endpoint| endpoint.ip != ip);
    world.model.endpoints.push(Endpoint {
        ip,
        party: party.clone(),
        cgroup: None,
        ports: Some(vec![(question.protocol, port)]),
        target: None,
    });
    (world, question)
}
