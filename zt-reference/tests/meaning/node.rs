//! One small node and a short way to write rules and questions.
//!
//! | who | where |
//! |---|---|
//! | `client`, enforcing, own namespace | 10.0.0.1, fd00::1 |
//! | `server`, enforcing, own namespace | 10.0.0.2, fd00::2 |
//! | `shared`, enforcing, the node's namespace | 10.0.0.3 |
//! | `watched`, in audit mode, own namespace | 10.0.0.4 |
//! | `remote`, on another node | 10.0.0.5 |
//! | the node itself | 172.16.0.1 |
//! | the cluster | 10.0.0.0/16, fd00::/64 |

use std::{fmt::Debug, str::FromStr};

use zt_agent::model::{
    Endpoint, Mode, NodeModel, Party, Policy, PolicyMode, Ports, Position, Rule, RuleAction,
    Selector, SpiffeId, Target, WorkloadSpec,
};
use zt_common::{
    codes::{Direction, Protocol, Reason, Verdict},
    identity,
};
use zt_reference::{Answer, Question, evaluate};

pub const CLIENT: usize = 0;
pub const SERVER: usize = 1;
pub const SHARED: usize = 2;
pub const WATCHED: usize = 3;

pub const NOW: u64 = 1_795_000_000_000_000_000;

const HERE: [(&str, &str, Mode, bool); 4] = [
    ("client", "10.0.0.1", Mode::Enforce, true),
    ("server", "10.0.0.2", Mode::Enforce, true),
    ("shared", "10.0.0.3", Mode::Enforce, false),
    ("watched", "10.0.0.4", Mode::Audit, true),
];

/// The SPIFFE ID of a workload of this node or of `remote`.
pub fn id(name: &str) -> SpiffeId {
    parsed(&format!("spiffe://td/c/ns/{name}"))
}

/// The node above with one enforced policy, `p`.
pub fn node(rules: Vec<Rule>) -> NodeModel {
    let mut model = NodeModel {
        mode: Mode::Enforce,
        workloads: Vec::new(),
        endpoints: vec![claim("10.0.0.5", "remote", None)],
        interfaces: Vec::new(),
        host_netns: None,
        departed: Vec::new(),
        node_addresses: vec![parsed("172.16.0.1")],
        cluster_ranges: vec![parsed("10.0.0.0/16"), parsed("fd00::/64")],
        policies: vec![policy("p", PolicyMode::Enforce, rules)],
        boot_offset: 0,
        set_back_from: 0,
    };
    for ((name, ip, mode, own_netns), cgroup) in HERE.into_iter().zip(101..) {
        model.workloads.push(WorkloadSpec {
            identity: id(name),
            cgroup,
            path: name.into(),
            mode,
            raw_sockets: false,
            netns: own_netns.then_some(cgroup),
        });
        model.endpoints.push(claim(ip, name, Some(cgroup)));
    }
    model.endpoints.push(claim("fd00::1", "client", Some(101)));
    model.endpoints.push(claim("fd00::2", "server", Some(102)));
    model
}

pub fn claim(ip: &str, name: &str, cgroup: Option<u64>) -> Endpoint {
    Endpoint {
        ip: parsed(ip),
        party: Party::Workload(id(name)),
        cgroup,
        ports: None,
        target: None,
    }
}

/// Rules are numbered from 1 in the order given.
pub fn policy(name: &str, mode: PolicyMode, rules: Vec<Rule>) -> Policy {
    let numbered = rules.into_iter().zip(1..);
    Policy {
        name: name.into(),
        mode,
        rules: numbered
            .map(|(rule, number)| Rule { number, ..rule })
            .collect::<Vec<_>>()
            .into(),
        at: position(),
    }
}

/// TCP, every port, unless narrowed by [`Narrow`]. A selector is a name of
/// this node's table, a SPIFFE pattern, a reserved identity or a CIDR.
pub fn allow(from: &[&str], to: &[&str]) -> Rule {
    Rule {
        number: 0,
        action: RuleAction::Allow,
        from: selectors(from),
        to: vec![Target {
            selectors: selectors(to),
            protocols: vec![Protocol::Tcp],
            ports: Ports::Any,
            at: position(),
        }],
        expires: None,
        at: position(),
    }
}

pub fn deny(from: &[&str], to: &[&str]) -> Rule {
    Rule {
        action: RuleAction::Deny,
        ..allow(from, to)
    }
}

/// Says more about a rule's only target, or about its deadline.
pub trait Narrow {
    fn ports(self, ranges: &[(u16, u16)]) -> Self;
    fn protocols(self, protocols: &[Protocol]) -> Self;
    fn until(self, deadline: u64) -> Self;
}

impl Narrow for Rule {
    fn ports(mut self, ranges: &[(u16, u16)]) -> Self {
        let ranges = ranges.iter().map(|(first, last)| *first..=*last);
        self.to[0].ports = Ports::Ranges(ranges.collect());
        self
    }

    fn protocols(mut self, protocols: &[Protocol]) -> Self {
        self.to[0].protocols = protocols.to_vec();
        self
    }

    fn until(mut self, deadline: u64) -> Self {
        self.expires = Some(deadline);
        self
    }
}

fn selectors(texts: &[&str]) -> Vec<Selector> {
    texts.iter().map(|text| selector(text)).collect()
}

fn selector(text: &str) -> Selector {
    let reserved = identity::RESERVED.iter().find(|(_, name)| *name == text);
    if let Some((number, _)) = reserved {
        Selector::Reserved(*number)
    } else if text.starts_with("spiffe://") {
        Selector::Spiffe(parsed(text))
    } else if let Ok(net) = text.parse() {
        Selector::Cidr(net)
    } else {
        Selector::Spiffe(parsed(id(text).as_str()))
    }
}

fn parsed<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("a test's text is well formed")
}

fn position() -> Position {
    Position {
        file: "test.yaml".into(),
        line: 1,
        column: 1,
    }
}

/// `local` opens a TCP connection to port 80 of `remote`.
pub fn egress(local: usize, remote: &str) -> Question {
    Question {
        local: Some(local),
        direction: Direction::Egress,
        remote: parsed(remote),
        remote_port: 80,
        local_port: 40_000,
        protocol: Protocol::Tcp,
        now: NOW,
        quarantined: Vec::new(),
    }
}

/// `remote` opens a TCP connection to port 80 of `local`.
pub fn ingress(local: usize, remote: &str) -> Question {
    Question {
        direction: Direction::Ingress,
        remote_port: 40_000,
        local_port: 80,
        ..egress(local, remote)
    }
}

/// The answer where the node's own processes need a rule like everybody else.
pub fn ask(model: &NodeModel, question: &Question) -> Answer {
    evaluate(model, question, false)
}

pub fn verdict(model: &NodeModel, question: &Question) -> Verdict {
    ask(model, question).verdict
}

pub fn reason(model: &NodeModel, question: &Question) -> Reason {
    ask(model, question).reason
}

pub fn allows(model: &NodeModel, question: &Question) -> bool {
    verdict(model, question) == Verdict::Allow
}

/// The name of the deciding rule, `-` if there is none.
pub fn rule(model: &NodeModel, question: &Question) -> String {
    let rule = ask(model, question).rule;
    rule.map_or_else(|| "-".to_owned(), |rule| rule.to_string())
}
