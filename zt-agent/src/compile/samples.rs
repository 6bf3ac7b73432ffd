//! Short ways to write models in tests, and to ask what came out.

use std::{collections::BTreeSet, net::IpAddr};

use zt_common::{
    address::{Peer, Workload, workload_flags},
    codes::{Protocol, Reason},
    identity::{self, HOST, Number, UNENROLLED},
    policy::Entry,
    verdict::{Facts, Judgement, judge},
};

use super::{
    CompileError, Compiled, Lack, Limits, Needs, Room, Shortage, Stock, Tables, compile,
    compile_what_fits, lookup, names, network::octets,
};
use crate::{
    kernel::unused::{Numbered, Want},
    model::{
        Endpoint, Mode, Name, NodeModel, Numbers, Party, Policy, PolicyMode, Ports, Position, Rule,
        RuleAction, Selector, SpiffeId, Target, WorkloadSpec, names::OutOfNumbers,
    },
};

/// Kernel time of every question.
pub const NOW: u64 = 1000;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn id(name: &str) -> SpiffeId {
    format!("spiffe://td/{name}").parse().unwrap()
}

pub fn at(line: u32) -> Position {
    Position {
        file: "policy.yaml".into(),
        line,
        column: 1,
    }
}

pub fn model() -> NodeModel {
    NodeModel {
        mode: Mode::Enforce,
        workloads: Vec::new(),
        endpoints: Vec::new(),
        interfaces: Vec::new(),
        host_netns: None,
        departed: Vec::new(),
        node_addresses: Vec::new(),
        cluster_ranges: Vec::new(),
        policies: Vec::new(),
        boot_offset: 0,
        set_back_from: 0,
    }
}

pub fn workload(name: &str, cgroup: u64) -> WorkloadSpec {
    WorkloadSpec {
        identity: id(name),
        cgroup,
        path: format!("/{name}").into(),
        mode: Mode::Enforce,
        raw_sockets: false,
        netns: None,
    }
}

/// `cgroup` 0: on another node.
pub fn endpoint(address: &str, name: &str, cgroup: u64) -> Endpoint {
    Endpoint {
        ip: ip(address),
        party: Party::Workload(id(name)),
        cgroup: (cgroup != 0).then_some(cgroup),
        ports: None,
        target: None,
    }
}

pub fn port_endpoint(address: &str, name: &str, cgroup: u64, port: u16) -> Endpoint {
    Endpoint {
        ports: Some(vec![(Protocol::Tcp, port)]),
        ..endpoint(address, name, cgroup)
    }
}

/// A name or pattern (`a`, `ns/*`), a prefix (`10.0.0.0/8`, as its last part
/// is a number), or a reserved identity (`@world`).
pub fn selector(text: &str) -> Selector {
    if let Some(reserved) = text.strip_prefix('@') {
        let known = identity::RESERVED;
        return Selector::Reserved(known.iter().find(|(_, name)| *name == reserved).unwrap().0);
    }
    match text.parse() {
        Ok(net) => Selector::Cidr(net),
        Err(_) => Selector::Spiffe(format!("spiffe://td/{text}").parse().unwrap()),
    }
}

pub fn selectors(texts: &[&str]) -> Vec<Selector> {
    texts.iter().map(|text| selector(text)).collect()
}

/// TCP, any port.
pub fn rule(number: u32, action: RuleAction, from: &[&str], to: &[&str]) -> Rule {
    let target = Target {
        selectors: selectors(to),
        protocols: vec![Protocol::Tcp],
        ports: Ports::Any,
        at: at(number * 10 + 1),
    };
    Rule {
        number,
        action,
        from: selectors(from),
        to: vec![target],
        expires: None,
        at: at(number * 10),
    }
}

pub fn allow(number: u32, from: &str, to: &str) -> Rule {
    rule(number, RuleAction::Allow, &[from], &[to])
}

pub fn deny(number: u32, from: &str, to: &str) -> Rule {
    rule(number, RuleAction::Deny, &[from], &[to])
}

impl Rule {
    pub fn ports(mut self, ports: &[(u16, u16)]) -> Self {
        self.to[0].ports = Ports::Ranges(ports.iter().map(|(a, b)| *a..=*b).collect());
        self
    }
}

pub fn policy(name: &str, rules: Vec<Rule>) -> Policy {
    Policy {
        name: name.into(),
        mode: PolicyMode::Enforce,
        rules: rules.into(),
        at: at(1),
    }
}

/// Numbers for everything the model needs.
pub fn numbers(model: &NodeModel) -> Numbers {
    let mut numbers = Numbers::default();
    give(&mut numbers, &names(model)).unwrap();
    numbers
}

fn give(numbers: &mut Numbers, needs: &Needs) -> Result<(), OutOfNumbers> {
    for name in &needs.names {
        numbers.intern(name)?;
    }
    for rule in &needs.rules {
        numbers.intern_rule(rule)?;
    }
    Ok(())
}

/// So many rows in every map.
pub fn limits(rows: usize) -> Limits {
    Limits {
        policy: rows,
        range: rows,
        address: rows,
        cidr: rows,
        workload: rows,
        interface: rows,
        links: 1 << 20,
    }
}

/// A kernel without the kernel.
pub struct Node {
    pub limits: Limits,
    pub numbers: Numbers,
    pub current: Tables,
    /// Never given back.
    taken: BTreeSet<Number>,
    needed: Numbered,
    /// How often numbers were taken back: then every verdict that was kept is
    /// worthless.
    pub forgotten: usize,
}

impl Node {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            numbers: Numbers::default(),
            current: Tables::default(),
            taken: BTreeSet::new(),
            needed: Numbered::default(),
            forgotten: 0,
        }
    }

    /// With so many numbers for identities.
    pub fn with_numbers(limits: Limits, count: u32) -> Self {
        let mut node = Self::new(limits);
        let (first, end) = (identity::FIRST_SPIFFE, identity::FIRST_CLASS);
        node.numbers.reserve(end - 1);
        let left = (first..first + count).collect();
        node.numbers.release(&left, &BTreeSet::new());
        node.taken = (first + count..end).collect();
        node
    }

    /// As much of the model as fits, which is then there.
    pub fn apply(&mut self, model: &NodeModel) -> (Built, Shortage) {
        let (compiled, shortage) = compile_what_fits(model, self).unwrap();
        assert_eq!(self.room().check(&compiled.tables), Ok(()));
        self.current = compiled.tables.clone();
        let built = Built {
            numbers: self.numbers.clone(),
            compiled,
        };
        (built, shortage.unwrap_or_default())
    }
}

/// Why a node has nothing new.
#[derive(Debug)]
#[expect(dead_code, reason = "tests show it")]
pub enum Stuck {
    Compile(CompileError),
    Lack(Lack),
}

impl From<CompileError> for Stuck {
    fn from(error: CompileError) -> Self {
        Self::Compile(error)
    }
}

impl From<Lack> for Stuck {
    fn from(lack: Lack) -> Self {
        Self::Lack(lack)
    }
}

/// Numbers that are in no table come back where there are too few.
impl Stock for Node {
    type Error = Stuck;

    fn give(&mut self, needs: &Needs) -> Result<Result<(), OutOfNumbers>, Self::Error> {
        let mut numbers = self.numbers.clone();
        let mut given = give(&mut numbers, needs);
        if given.is_err() {
            self.make_room(needs)?;
            numbers = self.numbers.clone();
            given = give(&mut numbers, needs);
        }
        if given.is_ok() {
            self.numbers = numbers;
            self.needed = Numbered::of(needs, &self.numbers);
        }
        Ok(given)
    }

    fn make_room(&mut self, needs: &Needs) -> Result<(), Self::Error> {
        let kept = self.needed.and(&Numbered::of(needs, &self.numbers));
        let mut dead = Numbered::unused(&self.numbers, &self.current, &kept);
        dead.numbers = &dead.numbers - &self.taken;
        if Want::of(needs, &self.numbers).is_among(&dead, &self.numbers) {
            self.forgotten += 1;
            self.numbers.release(&dead.numbers, &dead.rules);
        }
        Ok(())
    }

    fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    fn room(&self) -> Room<'_> {
        Room {
            current: &self.current,
            limits: &self.limits,
        }
    }
}

/// A compiled model that can be asked.
pub struct Built {
    pub numbers: Numbers,
    pub compiled: Compiled,
}

pub fn built(model: &NodeModel) -> Built {
    let numbers = numbers(model);
    let compiled = compile(model, &numbers).unwrap();
    Built { numbers, compiled }
}

impl Built {
    pub fn tables(&self) -> &Tables {
        &self.compiled.tables
    }

    pub fn number(&self, name: &str) -> Number {
        self.numbers.get(&Name::Spiffe(id(name))).unwrap()
    }

    pub fn class(&self, net: &str) -> Number {
        self.numbers
            .get(&Name::Class(net.parse().unwrap()))
            .unwrap()
    }

    pub fn peer(&self, address: &str, port: u16) -> Peer {
        lookup::peer(
            self.tables(),
            &octets(ip(address)),
            port,
            Protocol::Tcp as u8,
        )
    }

    pub fn entry(&self, from: Number, to: Number, port: u16) -> Entry {
        lookup::entry(self.tables(), from, to, Protocol::Tcp as u8, port)
    }

    /// What the kernel decides at `name`'s end when it opens a flow there.
    pub fn judge_egress(
        &self,
        name: &str,
        far: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Judgement {
        let (tables, local) = (self.tables(), self.local(name).identity);
        let peer = lookup::peer(tables, &octets(far), port, protocol as u8);
        let entry = |other| lookup::entry(tables, local, other, protocol as u8, port);
        self.decide(name, &peer, false, entry)
    }

    /// What the kernel decides at `name`'s end when the other end opens a flow
    /// to its `port`. The far port is none that anybody declares.
    pub fn judge_ingress(
        &self,
        name: &str,
        far: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Judgement {
        let (tables, local) = (self.tables(), self.local(name).identity);
        let peer = lookup::peer(tables, &octets(far), 50_000, protocol as u8);
        let entry = |other| lookup::entry(tables, other, local, protocol as u8, port);
        self.decide(name, &peer, true, entry)
    }

    pub fn egress(&self, name: &str, far: &str, port: u16) -> Reason {
        self.judge_egress(name, ip(far), Protocol::Tcp, port).reason
    }

    pub fn ingress(&self, name: &str, far: &str, port: u16) -> Reason {
        self.judge_ingress(name, ip(far), Protocol::Tcp, port)
            .reason
    }

    /// The node may reach its workloads.
    fn decide(
        &self,
        name: &str,
        peer: &Peer,
        is_ingress: bool,
        entry: impl Fn(Number) -> Entry,
    ) -> Judgement {
        let local = self.local(name);
        let facts = Facts {
            unenrolled: local.identity == UNENROLLED,
            shut: local.is_shut(),
            peer: peer.identity,
            host_may_reach: is_ingress && peer.identity == HOST,
            // On this node the other end decides for itself.
            enforce: local.flags & workload_flags::ENFORCE != 0,
            now: NOW,
            ..Facts::default()
        };
        let class = if peer.class == 0 {
            Entry::default()
        } else {
            entry(peer.class)
        };
        judge(&facts, &entry(peer.identity), &class)
    }

    pub fn is_shut(&self, name: &str) -> bool {
        self.local(name).is_shut()
    }

    /// Who `name`'s cgroup is: nobody if it found no room.
    pub fn local(&self, name: &str) -> Workload {
        let rows = &self.tables().workload;
        let number = self.numbers.get(&Name::Spiffe(id(name)));
        let own = rows.values().find(|row| Some(row.identity) == number);
        *own.unwrap_or(&rows[&0])
    }

    pub fn warnings(&self) -> Vec<String> {
        self.compiled
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}
