//! What holds for every model: the tables, looked up as the kernel does, agree
//! with a reading of the rules one by one.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use proptest::{
    prelude::*,
    sample::{select, subsequence},
};
use zt_common::{
    codes::{Protocol, Reason},
    flow::Owner,
    identity,
};

use super::{Limits, samples::*};
use crate::model::{
    Endpoint, Member, Mode, NodeModel, Party, Policy, PolicyMode, Ports, Rule, RuleAction,
    Selector, Service, SpiffeId, Target, WorkloadSpec,
};

const LOCAL: [&str; 3] = ["ns/a", "ns/b", "c"];
const REMOTE: [&str; 3] = ["ns/r", "other/r", "c/deep/r"];
const PATTERNS: [&str; 9] = [
    "ns/a", "ns/b", "c", "ns/r", "ns/*", "*/r", "c/**", "**", "nobody",
];
const RESERVED: [&str; 5] = ["@world", "@host", "@nodes", "@apiserver", "@world"];
const PREFIXES: [&str; 16] = [
    "0.0.0.0/0",
    "0.0.0.0/1",
    "::/0",
    "::ffff:0:0/90",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "::ffff:10.1.0.0/112",
    "169.0.0.0/8",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "8.8.0.0/16",
    "fe80::/10",
    "fe80::/64",
    "2001:db8::/32",
];
const RANGES: [&str; 6] = [
    "10.1.0.0/16",
    "10.0.0.0/8",
    "fd00::/8",
    "::/0",
    "169.254.0.0/24",
    "8.8.8.0/24",
];
const ADDRESSES: [&str; 14] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.9.9",
    "10.2.0.1",
    "169.254.169.254",
    "169.254.0.9",
    "169.1.1.1",
    "8.8.8.8",
    "8.8.4.4",
    "200.1.1.1",
    "2001:db8::1",
    "fe80::1",
    "fe80:0:0:1::1",
    "fd00::1",
];
const PORTS: [u16; 8] = [1, 79, 80, 81, 443, 1000, 65534, 65535];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

fn named() -> impl Strategy<Value = Selector> {
    select(&PATTERNS[..]).prop_map(selector)
}

fn anybody() -> impl Strategy<Value = Selector> {
    prop_oneof![
        4 => named(),
        2 => select(&RESERVED[..]).prop_map(selector),
        3 => select(&PREFIXES[..]).prop_map(selector),
    ]
}

fn ports() -> impl Strategy<Value = Ports> {
    let ranges = subsequence(&PORTS[..], 0..=6).prop_map(|cuts| {
        let pairs = cuts.chunks(2);
        Ports::Ranges(pairs.map(|pair| pair[0]..=*pair.last().unwrap()).collect())
    });
    prop_oneof![Just(Ports::Any), ranges]
}

fn targets(far: bool) -> impl Strategy<Value = Vec<Target>> {
    let who = if far {
        anybody().boxed()
    } else {
        named().boxed()
    };
    let target = (
        prop::collection::vec(who, 0..3),
        subsequence(&PROTOCOLS[..], 1..=3),
        ports(),
    );
    let target = target.prop_map(|(selectors, protocols, ports)| Target {
        selectors,
        protocols,
        ports,
        at: at(1),
    });
    prop::collection::vec(target, 0..3)
}

fn rule_body() -> impl Strategy<Value = Rule> {
    let action = select(&[RuleAction::Allow, RuleAction::Allow, RuleAction::Deny][..]);
    let near = prop::collection::vec(named(), 0..3);
    let far = prop::collection::vec(anybody(), 0..3);
    let ends = prop_oneof![(near, targets(true)), (far, targets(false))];
    let expires = prop::option::weighted(0.3, 0..3000_u64);
    (action, ends, expires).prop_map(|(action, (from, to), expires)| Rule {
        number: 0,
        action,
        from,
        to,
        expires: expires.filter(|_| action == RuleAction::Allow),
        at: at(1),
    })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let mode = prop_oneof![3 => Just(PolicyMode::Enforce), 1 => Just(PolicyMode::Audit)];
    let body = (mode, prop::collection::vec(rule_body(), 0..5));
    prop::collection::vec(body, 0..4).prop_map(|bodies| {
        let numbered = (0..).zip(bodies);
        numbered
            .map(|(at, (mode, mut rules))| {
                for (number, rule) in (1..).zip(&mut rules) {
                    rule.number = number;
                }
                Policy {
                    mode,
                    ..policy(&format!("p{at}"), rules)
                }
            })
            .collect()
    })
}

/// Every address has one owner or none, so that the reading below is simple.
fn models() -> impl Strategy<Value = NodeModel> {
    let owners = prop::collection::vec(0..12_usize, ADDRESSES.len());
    let ranges = subsequence(&RANGES[..], 0..3);
    (policies(), owners, ranges).prop_map(|(policies, owners, ranges)| {
        let mut model = model();
        model.boot_offset = 500;
        model.cluster_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        model.policies = policies;
        model.workloads = (1..)
            .zip(LOCAL)
            .map(|(cgroup, name)| workload(name, cgroup))
            .collect();
        for (address, owner) in ADDRESSES.iter().zip(owners) {
            match owner {
                0..3 => model
                    .endpoints
                    .push(endpoint(address, LOCAL[owner], owner as u64 + 1)),
                3..6 => model
                    .endpoints
                    .push(endpoint(address, REMOTE[owner - 3], 0)),
                6 => model.node_addresses.push(ip(address)),
                7 => {
                    let mut known = endpoint(address, "c", 0);
                    known.party = Party::Reserved(identity::NODES);
                    model.endpoints.push(known);
                }
                _ => {}
            }
        }
        model
    })
}

/// A claim that may contradict others.
fn claim() -> impl Strategy<Value = Endpoint> {
    let names = LOCAL.into_iter().chain(REMOTE).collect::<Vec<_>>();
    let port = (select(&PROTOCOLS[..]), select(&[80_u16, 81][..]));
    let ports = prop::option::of(prop::collection::vec(port, 0..3));
    let place = select(&[ADDRESSES[0], ADDRESSES[0], ADDRESSES[1], "127.0.0.1", "::"][..]);
    (place, select(names), 0..3_u64, ports).prop_map(|(place, name, cgroup, ports)| Endpoint {
        ports,
        ..endpoint(place, name, cgroup)
    })
}

/// A port of a Service's address with several parties behind it.
fn service() -> impl Strategy<Value = Endpoint> {
    let names = LOCAL.into_iter().chain(REMOTE).collect::<Vec<_>>();
    let members = (subsequence(names, 2..4), select(&PORTS[..]));
    let governed = prop::collection::vec(any::<bool>(), 4);
    (select(&ADDRESSES[..]), members, governed).prop_map(|(place, (names, port), governed)| {
        let members = names.into_iter().zip(governed);
        let members = members.map(|(name, is_governed)| Member {
            party: Party::Workload(id(name)),
            port,
            is_governed,
        });
        let service = Service::new("ns/web", members).unwrap();
        Endpoint {
            party: Party::Service(service.into()),
            ..port_endpoint(place, "x", 0, 80)
        }
    })
}

/// Where much is allowed and much of it denied, little room does most harm.
fn crowded() -> impl Strategy<Value = NodeModel> {
    let web = [(80, 80)];
    let common = vec![
        policy("all", vec![allow(1, "**", "**")]),
        policy(
            "few",
            vec![allow(1, "ns/a", "ns/b"), allow(2, "c", "8.8.0.0/16")],
        ),
        policy("web", vec![deny(1, "**", "**").ports(&web)]),
        policy("world", vec![deny(1, "c", "@world").ports(&web)]),
        policy("node", vec![deny(1, "@host", "**")]),
    ];
    let common = subsequence(common, 0..=5);
    let mode = || select(&[Mode::Enforce, Mode::Audit][..]);
    let modes = (mode(), [mode(), mode(), mode()]);
    let services = prop::collection::vec(service(), 0..4);
    let more = (common, modes, services);
    (models(), more, any::<bool>()).prop_map(|(mut model, more, alone)| {
        let (common, modes, services) = more;
        if alone {
            model.policies.clear();
        }
        model.mode = modes.0;
        for (workload, mode) in model.workloads.iter_mut().zip(modes.1) {
            workload.mode = mode;
        }
        model.endpoints.extend(services);
        model.policies.extend(common);
        model
    })
}

/// The far end as a rule sees it.
struct Far<'a> {
    ip: IpAddr,
    model: &'a NodeModel,
}

fn holds(net: IpNet, ip: IpAddr) -> bool {
    match (net, ip) {
        (IpNet::V6(v6), IpAddr::V4(v4)) => {
            v6.prefix_len() >= 96 && v6.contains(&v4.to_ipv6_mapped())
        }
        _ => net.contains(&ip),
    }
}

impl Far<'_> {
    fn owner(&self) -> Option<Party> {
        if self.model.node_addresses.contains(&self.ip) {
            return Some(Party::Reserved(identity::HOST));
        }
        let mut endpoints = self.model.endpoints.iter();
        endpoints.find(|e| e.ip == self.ip).map(|e| e.party.clone())
    }

    fn is_unknown(&self) -> bool {
        let mut ranges = self.model.cluster_ranges.iter();
        self.owner().is_none() && ranges.any(|range| holds(*range, self.ip))
    }

    fn is_world(&self) -> bool {
        self.owner().is_none() && !self.is_unknown()
    }

    /// The link-local range that it is in.
    fn link_local(&self) -> Option<IpNet> {
        let ranges = ["169.254.0.0/16", "fe80::/10"].map(|net| net.parse::<IpNet>().unwrap());
        ranges.into_iter().find(|range| range.contains(&self.ip))
    }

    fn is_meant(&self, selector: &Selector, action: RuleAction) -> bool {
        let deny = action == RuleAction::Deny;
        match selector {
            Selector::Spiffe(pattern) => match self.owner() {
                Some(Party::Workload(id)) => pattern.matches(&id),
                _ => false,
            },
            Selector::Reserved(identity::WORLD) => {
                self.is_world() && (deny || self.link_local().is_none())
            }
            Selector::Reserved(number) => self.owner() == Some(Party::Reserved(*number)),
            Selector::Cidr(net) => {
                let inside = |range: IpNet| range.contains(net);
                holds(*net, self.ip)
                    && (deny || self.is_world() && self.link_local().is_none_or(inside))
            }
        }
    }
}

fn is_near(selector: &Selector, near: &SpiffeId) -> bool {
    matches!(selector, Selector::Spiffe(pattern) if pattern.matches(near))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Egress,
    Ingress,
}

struct Flow<'a> {
    near: SpiffeId,
    far: Far<'a>,
    way: Way,
    protocol: Protocol,
    port: u16,
}

impl Flow<'_> {
    fn is_ruled_by(&self, rule: &Rule) -> bool {
        let far =
            |selectors: &[Selector]| selectors.iter().any(|s| self.far.is_meant(s, rule.action));
        let near = |selectors: &[Selector]| selectors.iter().any(|s| is_near(s, &self.near));
        let from = match self.way {
            Way::Egress => near(&rule.from),
            Way::Ingress => far(&rule.from),
        };
        from && rule.to.iter().any(|target| {
            let to = match self.way {
                Way::Egress => far(&target.selectors),
                Way::Ingress => near(&target.selectors),
            };
            to && target.protocols.contains(&self.protocol) && self.is_at(&target.ports)
        })
    }

    fn is_at(&self, ports: &Ports) -> bool {
        match ports {
            _ if self.protocol == Protocol::Icmp => true,
            Ports::Any => true,
            Ports::Ranges(ranges) => ranges.iter().any(|range| range.contains(&self.port)),
        }
    }

    /// (reason, deadline) by reading every rule.
    fn read(&self, model: &NodeModel, audited: bool) -> (Reason, u64) {
        let policies = model.policies.iter();
        let counted = policies.filter(|policy| audited || policy.mode == PolicyMode::Enforce);
        let ruling: Vec<_> = counted
            .flat_map(|policy| policy.rules.iter())
            .filter(|rule| self.is_ruled_by(rule))
            .collect();
        if ruling.iter().any(|rule| rule.action == RuleAction::Deny) {
            return (Reason::DeniedByRule, 0);
        }
        if ruling.iter().any(|rule| rule.expires.is_none()) {
            return (Reason::AllowedByRule, 0);
        }
        let latest = ruling.iter().filter_map(|rule| rule.expires).max();
        let host_reaches =
            self.way == Way::Ingress && self.far.owner() == Some(Party::Reserved(identity::HOST));
        match latest.map(|at| at.saturating_sub(model.boot_offset).max(1)) {
            Some(deadline) if NOW < deadline => (Reason::LiveGrant, deadline),
            _ if host_reaches => (Reason::HostAllowed, 0),
            Some(_) => (Reason::GrantExpired, 0),
            None if self.far.is_unknown() => (Reason::UnknownPeer, 0),
            None => (Reason::NoPolicy, 0),
        }
    }
}

/// Compares every flow between the local workloads and the addresses.
fn agrees(model: &NodeModel) -> Result<(), TestCaseError> {
    let built = built(model);
    for (name, address) in LOCAL
        .iter()
        .flat_map(|name| ADDRESSES.map(|a| (*name, ip(a))))
    {
        for (protocol, port) in PROTOCOLS.iter().flat_map(|p| PORTS.map(|port| (*p, port))) {
            for way in [Way::Egress, Way::Ingress] {
                let far = Far { ip: address, model };
                let flow = Flow {
                    near: id(name),
                    far,
                    way,
                    protocol,
                    port,
                };
                let got = match way {
                    Way::Egress => built.judge_egress(name, address, protocol, port),
                    Way::Ingress => built.judge_ingress(name, address, protocol, port),
                };
                let place = format!("{name} {way:?} {address} {protocol:?} {port}");
                prop_assert_eq!(
                    (got.reason, got.deadline),
                    flow.read(model, false),
                    "{}",
                    place
                );
                prop_assert_eq!(got.would, flow.read(model, true).0, "audited: {}", place);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_tables_say_what_the_rules_say(model in models()) {
        agrees(&model)?;
    }

    #[test]
    fn the_order_of_the_model_does_not_matter(
        mut model in models(),
        claims in prop::collection::vec(claim(), 0..12),
        seed in any::<u64>(),
    ) {
        model.endpoints.extend(claims);
        model.node_addresses.push(ip(ADDRESSES[0]));
        model.workloads.push(WorkloadSpec { mode: Mode::Audit, ..workload(LOCAL[0], 1) });
        let mut shuffled = model.clone();
        shuffle(&mut shuffled.workloads, seed);
        shuffle(&mut shuffled.endpoints, seed);
        shuffle(&mut shuffled.policies, seed);
        shuffle(&mut shuffled.cluster_ranges, seed);
        prop_assert_eq!(built(&model).compiled, built(&shuffled).compiled);
    }

    #[test]
    fn a_deny_always_wins(mut model in models()) {
        model.policies.push(policy("zz", vec![
            rule(1, RuleAction::Deny, &["**"], &["**", "@world", "@host", "@nodes", "0.0.0.0/0", "::/0"]),
        ]));
        let built = built(&model);
        for (name, address) in LOCAL.iter().flat_map(|name| ADDRESSES.map(|a| (*name, a))) {
            prop_assert_eq!(built.egress(name, address, 80), Reason::DeniedByRule, "{} {}", name, address);
        }
    }

    #[test]
    fn an_empty_list_selects_nobody(mut model in models(), one in any::<bool>()) {
        for rule in model.policies.iter_mut().flat_map(|policy| Arc::make_mut(&mut policy.rules)) {
            if one {
                rule.from.clear();
            } else {
                rule.to.iter_mut().for_each(|target| target.selectors.clear());
            }
        }
        let built = built(&model);
        prop_assert!(built.tables().policy.is_empty() && built.tables().range.is_empty());
        let positions = model.policies.iter().map(|policy| policy.rules.len()).sum::<usize>();
        let complaints = built.warnings().iter().filter(|w| w.contains("selects nobody")).count();
        prop_assert!(complaints >= positions, "{complaints} < {positions}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Of a node that had something else before, and has no room: after every
    /// round.
    #[test]
    fn what_finds_no_room_lets_nothing_pass_that_is_not_wanted(
        mut old in crowded(),
        mut new in crowded(),
        claims in prop::collection::vec((any::<bool>(), claim()), 0..6),
        (policy, range, address, cidr) in (0..40_usize, 1..12_usize, 1..14_usize, 1..12_usize),
        (workload, links) in (1..5_usize, 0..120_usize),
        numbers in prop_oneof![1 => 1..12_u32, 2 => Just(1000)],
    ) {
        for (is_new, claim) in claims {
            let model = if is_new { &mut new } else { &mut old };
            model.endpoints.push(claim);
        }
        let limits = Limits { policy, range, address, cidr, workload, interface: 4, links };
        let mut node = Node::with_numbers(limits, numbers);
        node.apply(&old);
        let (first, _) = node.apply(&new);
        let whole = built(&new);
        lets_no_more_pass(&first, &whole)?;
        for _ in 0..2 {
            lets_no_more_pass(&node.apply(&new).0, &whole)?;
        }
    }
}

proptest! {
    /// Wherever it is, and whether or not that is known.
    #[test]
    fn a_workload_is_never_taken_for_the_node(
        places in prop::array::uniform3((any::<bool>(), any::<bool>())),
        mode in select(&[Mode::Enforce, Mode::Audit][..]),
        workload in 1..5_usize,
        count in prop_oneof![0..4_u32, Just(1000)],
    ) {
        const HOST: u64 = 50;
        let mut new = model();
        new.mode = mode;
        new.host_netns = Some(HOST);
        let mut owners = Vec::new();
        for ((cgroup, name), (is_with_it, is_known)) in (1..).zip(LOCAL).zip(places) {
            let netns = if is_with_it { HOST } else { HOST + cgroup };
            let mut spec = super::samples::workload(name, cgroup);
            spec.netns = is_known.then_some(netns);
            new.workloads.push(spec);
            owners.push(Owner { leaf: cgroup, netns, ..Owner::default() });
        }
        let limits = Limits { workload, ..limits(100) };
        let (part, _) = Node::with_numbers(limits, count).apply(&new);
        for owner in owners {
            let (_, row) = super::lookup::local(part.tables(), &owner);
            prop_assert_ne!(row.identity, identity::HOST, "{:?} {:?}", owner, new.workloads);
        }
    }
}

fn lets_no_more_pass(part: &Built, whole: &Built) -> Result<(), TestCaseError> {
    for (name, address) in LOCAL
        .iter()
        .flat_map(|name| ADDRESSES.map(|a| (*name, ip(a))))
    {
        for (protocol, port) in PROTOCOLS.iter().flat_map(|p| PORTS.map(|port| (*p, port))) {
            let out = [part, whole].map(|built| built.judge_egress(name, address, protocol, port));
            let into =
                [part, whole].map(|built| built.judge_ingress(name, address, protocol, port));
            for (way, [got, wanted]) in [(Way::Egress, out), (Way::Ingress, into)] {
                prop_assert!(
                    (!got.reason.is_allow() || wanted.reason.is_allow())
                        && (!got.passes() || wanted.passes()),
                    "{name} {way:?} {address} {protocol:?} {port}: {got:?}, {wanted:?}"
                );
            }
        }
    }
    Ok(())
}

/// A permutation that depends on the seed.
fn shuffle<T>(list: &mut [T], mut seed: u64) {
    for at in (1..list.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        list.swap(at, usize::try_from(seed >> 33).unwrap() % (at + 1));
    }
}

#[test]
fn addresses_in_the_samples_are_distinct() {
    assert_eq!(
        ADDRESSES.iter().collect::<BTreeSet<_>>().len(),
        ADDRESSES.len()
    );
}
