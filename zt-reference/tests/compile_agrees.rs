//! The compiled tables, looked up and judged as the kernel does, and the
//! reference say the same of every question.

use std::{net::IpAddr, sync::Arc};

use proptest::prelude::*;
use zt_agent::{
    compile::{self, Tables, lookup},
    model::{Numbers, RuleRef},
};
use zt_common::{
    address::{self, Ip, peer_flags, workload_flags},
    codes::{Direction, Reason, Verdict},
    identity::{self, Number},
    policy::Entry,
    verdict::{Facts, judge},
};
use zt_reference::{
    Question,
    generate::{self, World},
};

/// What both sides say of a question.
#[derive(Debug, PartialEq)]
struct Said {
    verdict: Verdict,
    reason: Reason,
    rule: Option<RuleRef>,
    would: Reason,
}

/// A world, compiled.
struct Node<'a> {
    world: &'a World,
    numbers: Numbers,
    tables: Tables,
}

impl<'a> Node<'a> {
    fn new(world: &'a World) -> Self {
        let mut numbers = Numbers::default();
        let needs = compile::names(&world.model);
        for name in &needs.names {
            numbers.intern(name).expect("a small world");
        }
        for rule in &needs.rules {
            numbers.intern_rule(rule).expect("a small world");
        }
        let compiled = compile::compile(&world.model, &numbers).expect("a valid model");
        Self {
            world,
            numbers,
            tables: compiled.tables,
        }
    }

    fn says(&self, question: &Question) -> Said {
        let cgroup = question
            .local
            .map_or(0, |at| self.world.model.workloads[at].cgroup);
        let local = self.tables.workload[&cgroup];
        let protocol = question.protocol as u8;
        let ip = octets(question.remote);
        let peer = lookup::peer(&self.tables, &ip, question.remote_port, protocol);
        let number = who_without_a_socket(peer, local.netns != 0, question.direction);

        let entry = |peer: Number, remote_port: u16| match question.direction {
            Direction::Egress => {
                lookup::entry(&self.tables, local.identity, peer, protocol, remote_port)
            }
            Direction::Ingress => {
                let port = question.local_port;
                lookup::entry(&self.tables, peer, local.identity, protocol, port)
            }
        };
        let class = if peer.class == 0 {
            Entry::default()
        } else {
            entry(peer.class, question.remote_port)
        };
        let target = if peer.port == 0 {
            question.remote_port
        } else {
            peer.port
        };
        let facts = Facts {
            quarantined: [local.identity, number]
                .iter()
                .any(|n| self.is_quarantined(question, *n)),
            host: local.identity == identity::HOST,
            unenrolled: local.identity == identity::UNENROLLED,
            shut: local.is_shut(),
            peer: number,
            host_may_reach: self.world.host_may_reach
                && question.direction == Direction::Ingress
                && number == identity::HOST,
            enforce: local.flags & workload_flags::ENFORCE != 0
                || peer.flags & peer_flags::ENFORCE != 0,
            now: question.now - self.world.model.boot_offset,
        };
        let judged = judge(&facts, &entry(number, target), &class);
        Said {
            verdict: judged.verdict,
            reason: judged.reason,
            rule: self.rule(judged.rule),
            would: judged.would,
        }
    }

    fn is_quarantined(&self, question: &Question, number: Number) -> bool {
        let mut ids = question.quarantined.iter().cloned();
        // As the agent cuts them off: a Service with anybody behind it.
        ids.any(|id| {
            let mut names = self.numbers.names();
            names.any(|(name, of)| of == number && name.identities().any(|one| *one == id))
        })
    }

    fn rule(&self, number: u32) -> Option<RuleRef> {
        let mut rules = self.numbers.rules();
        rules
            .find(|(_, known)| *known == number)
            .map(|(rule, _)| rule)
    }
}

/// The identity of the far end, where a shared address has no socket to ask.
fn who_without_a_socket(peer: address::Peer, own_netns: bool, direction: Direction) -> Number {
    let forwarded = direction == Direction::Ingress && own_netns;
    if peer.identity == identity::HOST && peer.flags & peer_flags::NODE != 0 && forwarded {
        identity::MASQUERADED
    } else {
        peer.identity
    }
}

fn octets(ip: IpAddr) -> Ip {
    match ip {
        IpAddr::V4(v4) => address::mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn reference_says(world: &World, question: &Question) -> Said {
    let answer = world.answer(question);
    Said {
        verdict: answer.verdict,
        reason: answer.reason,
        rule: answer.rule,
        would: answer.would,
    }
}

/// Where the written meaning can be read in two ways, and the two sides did:
///
/// 1. One claimant has an address whole and declares some of its ports, too.
///    The reference calls the other ports a conflict ("mixed"), the compiler
///    sees nobody to be in conflict with.
/// 2. Somebody claims an address of the node itself. The reference takes the
///    claim at its word, the compiler counts the node as another claimant.
fn is_undecided(world: &World, question: &Question) -> bool {
    let ip = question.remote.to_canonical();
    let port = (question.protocol, question.remote_port);
    let endpoints = world.model.endpoints.iter();
    let claims: Vec<_> = endpoints.filter(|claim| claim.ip == ip).collect();
    if claims.is_empty()
        || claims
            .iter()
            .any(|c| c.ports.iter().flatten().any(|p| *p == port))
    {
        return false;
    }
    let only_one = claims
        .iter()
        .all(|c| (&c.party, c.cgroup) == (&claims[0].party, claims[0].cgroup));
    let mixed =
        claims.iter().any(|c| c.ports.is_none()) && claims.iter().any(|c| c.ports.is_some());
    only_one && mixed || world.model.node_addresses.contains(&ip)
}

/// Which of several rules gives its name is not told apart everywhere:
///
/// 1. The kernel keeps the denies of addresses and of identities in separate
///    rows and names the former where both deny.
/// 2. Deadlines from before the boot are one and the same to it.
///
/// There the named rule must at least bring about the reason by itself.
fn names_agree(world: &World, question: &Question, compiled: &Said, reference: &Said) -> bool {
    if compiled.rule == reference.rule {
        return true;
    }
    let (Some(name), Reason::DeniedByRule | Reason::GrantExpired) =
        (&compiled.rule, compiled.reason)
    else {
        return false;
    };
    let alone = reference_says(&with_only(world, name), question);
    alone.rule.as_ref() == Some(name) && alone.reason == compiled.reason
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_compiled_tables_and_the_reference_give_the_same_answer(
        (world, questions) in generate::case_of(16)
    ) {
        let node = Node::new(&world);
        for question in questions.iter().filter(|question| !is_undecided(&world, question)) {
            let compiled = node.says(question);
            let reference = reference_says(&world, question);
            let same = (compiled.verdict, compiled.reason, compiled.would)
                == (reference.verdict, reference.reason, reference.would);
            prop_assert!(
                same && names_agree(&world, question, &compiled, &reference),
                "{question:#?}\ncompiled: {compiled:#?}\nreference: {reference:#?}"
            );
        }
    }
}
