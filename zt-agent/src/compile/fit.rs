//! What of a model counts when not all of it fits: by what it needs of
//! addresses, prefixes, cgroups and numbers. [`super::squeeze`] does the same for
//! the pairs that policies speak about.
//!
//! Nothing is left out whose absence could let something pass:
//!
//! - What the kernel has already comes first, and what is new is left out.
//! - The address of somebody who is left out is nobody's, and never `world`.
//! - Rules that deny are not left out. Where even these do not fit no policy
//!   does, and nothing is allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use zt_common::{
    address::{AddressKey, is_loopback},
    codes::Action,
    identity,
};

use super::{
    Tables,
    limits::{Limits, Room},
    network::{cidr_key, host, octets},
    territory::Territory,
};
use crate::model::{
    Endpoint, Name, NodeModel, Numbers, Party, Policy, PolicyMode, Rule, RuleAction, RuleRef,
    Selector, SpiffeId, WorkloadSpec,
};

/// What is not in force, for want of room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shortage {
    /// Of what there is too much, and what to do.
    pub full: String,
    /// Policies that are not in force as a whole.
    pub policies: BTreeSet<Arc<str>>,
    /// Cgroups that are not enrolled, and who they would be.
    pub workloads: BTreeMap<u64, SpiffeId>,
    /// Nobody's.
    pub addresses: BTreeSet<IpAddr>,
    /// Interfaces through which nothing passes.
    pub interfaces: BTreeSet<Arc<str>>,
    /// It may end by itself: numbers that nobody needs come back.
    pub passes: bool,
}

impl Shortage {
    #[must_use]
    pub fn has_left_out(&self, cgroup: u64) -> bool {
        self.workloads.contains_key(&cgroup)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; until then nothing is added for which there is no room",
            self.full
        )?;
        let policies = self.policies.iter().map(ToString::to_string);
        list(f, "not all of the policies", policies)?;
        let workloads = self.workloads.values().map(ToString::to_string);
        list(f, "not the workloads", workloads)?;
        let addresses = self.addresses.iter().map(ToString::to_string);
        list(f, "nobody at the addresses", addresses)?;
        let interfaces = self.interfaces.iter().map(ToString::to_string);
        list(f, "nothing at the interfaces", interfaces)
    }
}

/// A person needs no thousand names.
const NAMED: usize = 5;

fn list(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    names: impl ExactSizeIterator<Item = String>,
) -> fmt::Result {
    let count = names.len();
    if count == 0 {
        return Ok(());
    }
    let named: Vec<String> = names.take(NAMED).collect();
    write!(f, "; {what} {}", named.join(", "))?;
    match count - named.len() {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

/// The part of `model` that fits. `numbers`: those that are given.
#[must_use]
pub fn fit(model: &NodeModel, room: &Room<'_>, numbers: &Numbers) -> (NodeModel, Shortage) {
    let mut fitting = Fitting::new(model, room, numbers);
    fitting.ends();
    fitting.policies();
    (fitting.model, fitting.shortage)
}

/// What is left where nothing else helps: nothing that the kernel does not have,
/// and no policy. Nothing is allowed.
#[must_use]
pub fn shut(model: &NodeModel, current: &Tables, numbers: &Numbers) -> (NodeModel, Shortage) {
    let limits = &Limits {
        policy: 0,
        range: 0,
        address: 0,
        cidr: 0,
        workload: 0,
        interface: 0,
    };
    let room = Room { current, limits };
    let mut fitting = Fitting::new(model, &room, numbers);
    fitting.names = 0;
    fitting.ends();
    let policies = std::mem::take(&mut fitting.model.policies);
    let names = policies.into_iter().map(|policy| policy.name);
    fitting.shortage.policies = names.collect();
    // Without a policy it does not matter whose an address is.
    fitting.model.cluster_ranges.clear();
    (fitting.model, fitting.shortage)
}

struct Fitting<'a> {
    model: NodeModel,
    room: &'a Room<'a>,
    numbers: &'a Numbers,
    /// Numbers that can be given, and to whom they are.
    names: usize,
    new_names: BTreeSet<Name>,
    /// Outside the cluster's ranges, and somebody's who is left out.
    hidden: Vec<IpNet>,
    shortage: Shortage,
}

impl<'a> Fitting<'a> {
    fn new(model: &NodeModel, room: &'a Room<'a>, numbers: &'a Numbers) -> Self {
        Self {
            model: model.clone(),
            room,
            numbers,
            names: numbers.free().0,
            new_names: BTreeSet::new(),
            hidden: Vec::new(),
            shortage: Shortage::default(),
        }
    }

    /// Leaves out who finds no room.
    fn ends(&mut self) {
        self.workloads();
        self.places();
        self.interfaces();
    }

    /// Takes numbers for whoever has none. `false`: there are too few.
    fn name(&mut self, names: impl Iterator<Item = Name>) -> bool {
        let is_new =
            |name: &Name| !self.new_names.contains(name) && self.numbers.get(name).is_none();
        let new: BTreeSet<Name> = names.filter(is_new).collect();
        if new.len() > self.names {
            return false;
        }
        self.names -= new.len();
        self.new_names.extend(new);
        true
    }

    fn workloads(&mut self) {
        let known = &self.room.current.workload;
        let mut free = self.room.free().workload;
        if !known.contains_key(&super::workload::UNENROLLED_CGROUP) {
            free = free.saturating_sub(1);
        }
        // Who has gone stays nobody, or nobody counts as the node without a proof.
        let departed = self.model.departed.iter();
        let departed = departed
            .filter(|cgroup| !known.contains_key(cgroup))
            .count();
        match free.checked_sub(departed) {
            Some(left) => free = left,
            None => {
                self.model
                    .departed
                    .retain(|cgroup| known.contains_key(cgroup));
                self.model.host_netns = None;
            }
        }
        let mut by_cgroup: BTreeMap<(bool, u64), Vec<WorkloadSpec>> = BTreeMap::new();
        for spec in std::mem::take(&mut self.model.workloads) {
            let is_new = !known.contains_key(&spec.cgroup);
            by_cgroup
                .entry((is_new, spec.cgroup))
                .or_default()
                .push(spec);
        }
        let mut out: Vec<WorkloadSpec> = Vec::new();
        for ((is_new, _), specs) in by_cgroup {
            let cost = usize::from(is_new);
            if cost <= free
                && self.name(specs.iter().map(|spec| Name::Spiffe(spec.identity.clone())))
            {
                free -= cost;
                self.model.workloads.extend(specs);
            } else {
                out.extend(specs);
            }
        }
        self.leave_out(out);
    }

    fn leave_out(&mut self, mut out: Vec<WorkloadSpec>) {
        // Whoever is inside another would be taken for that one.
        let inside = |around: &WorkloadSpec, out: &[WorkloadSpec]| {
            out.iter().any(|one| {
                one.cgroup != around.cgroup && Path::new(&*one.path).starts_with(&*around.path)
            })
        };
        let (around, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.model.workloads)
            .into_iter()
            .partition(|spec| inside(spec, &out));
        out.extend(around);
        // And whoever shares a namespace with one has none for himself.
        let shared: BTreeSet<u64> = out.iter().filter_map(|one| one.netns).collect();
        for spec in &mut kept {
            spec.netns = spec.netns.filter(|netns| !shared.contains(netns));
        }
        self.model.workloads = kept;
        if !out.is_empty() {
            // In the node's namespace they would be taken for the node.
            self.model.host_netns = None;
        }
        let named = out.into_iter().map(|one| (one.cgroup, one.identity));
        self.shortage.workloads.extend(named);
    }

    /// Takes the claims of workloads that are left out away. `false`: the whole
    /// address was one's.
    fn disown(&self, claims: &mut Vec<Endpoint>) -> bool {
        let is_out = |claim: &Endpoint| {
            claim
                .cgroup
                .is_some_and(|cgroup| self.shortage.has_left_out(cgroup))
        };
        let out: Vec<Endpoint> = claims.extract_if(.., |claim| is_out(claim)).collect();
        let ports: BTreeSet<_> = out
            .iter()
            .flat_map(|claim| &claim.ports)
            .flatten()
            .collect();
        // Who contradicted them does not get what they claimed.
        for claim in claims.iter_mut() {
            let own = claim.ports.iter_mut();
            own.for_each(|own| own.retain(|port| !ports.contains(port)));
        }
        out.iter().all(|claim| claim.ports.is_some())
    }

    /// Leaves out addresses, each with everybody who claims it: one claimant
    /// fewer could settle a conflict.
    fn places(&mut self) {
        let mut by_ip: BTreeMap<IpAddr, Vec<Endpoint>> = BTreeMap::new();
        for claim in std::mem::take(&mut self.model.endpoints) {
            by_ip
                .entry(claim.ip.to_canonical())
                .or_default()
                .push(claim);
        }
        let own = self.model.node_addresses.iter();
        let own: BTreeSet<IpAddr> = own.map(IpAddr::to_canonical).collect();
        for ip in &own {
            by_ip.entry(*ip).or_default();
        }
        let known = &self.room.current.address;
        let mut free = self.room.free().address;
        let mut order: Vec<(usize, bool, IpAddr)> = (by_ip.iter())
            .map(|(ip, claims)| {
                let keys = keys(*ip, claims).into_iter();
                let cost = keys.filter(|key| !known.contains_key(key)).count();
                let here = own.contains(ip) || claims.iter().any(|claim| claim.cgroup.is_some());
                (cost, !here, *ip)
            })
            .collect();
        // What the kernel has, who is here, and then the smallest.
        order.sort_unstable_by_key(|(cost, elsewhere, ip)| (*cost > 0, *elsewhere, *cost, *ip));
        let mut hidden = BTreeSet::new();
        for (cost, _, ip) in order {
            let mut claims = by_ip.remove(&ip).unwrap_or_default();
            let is_shared = self.disown(&mut claims);
            let is_somebodys = !claims.is_empty() || own.contains(&ip);
            let names = claims.iter().flat_map(|claim| names(&claim.party));
            if is_shared && is_somebodys && cost <= free && self.name(names) {
                free -= cost;
                self.model.endpoints.extend(claims);
            } else {
                hidden.insert(ip);
            }
        }
        let addresses = &mut self.model.node_addresses;
        addresses.retain(|ip| !hidden.contains(&ip.to_canonical()));
        self.hide(&hidden);
        self.shortage.addresses = hidden;
    }

    /// An address of a workload is never `world`.
    fn hide(&mut self, addresses: &BTreeSet<IpAddr>) {
        let land = Territory::survey(&NodeModel {
            policies: Vec::new(),
            ..self.model.clone()
        });
        let prefixes = addresses.iter().map(|ip| host(*ip));
        let outside = prefixes.filter(|net| !land.is_in_cluster(*net));
        self.hidden.extend(outside);
    }

    fn interfaces(&mut self) {
        let known = &self.room.current.interface;
        let mut free = self.room.free().interface;
        let shortage = &mut self.shortage.interfaces;
        self.model.interfaces.retain(|interface| {
            if known.contains_key(&interface.index) {
                return true;
            }
            let fits = free > 0;
            free = free.saturating_sub(1);
            if !fits {
                shortage.insert(interface.name.clone());
            }
            fits
        });
    }

    /// Leaves out rules that allow. What denies is never left out alone.
    fn policies(&mut self) {
        let all = std::mem::take(&mut self.model.policies);
        let in_force = self.in_force();
        let rules = all.iter().flat_map(|policy| {
            let rules = policy.rules.iter().filter(|rule| may_go(policy, rule));
            rules.map(|rule| Candidate {
                is_new: !in_force.contains(&policy.rule_ref(rule)),
                size: size(rule),
                name: policy.rule_ref(rule),
                is_outward: is_outward(rule),
            })
        });
        let mut order: Vec<Candidate> = rules.collect();
        order.sort_unstable();
        let ranges = self.model.cluster_ranges.clone();
        self.model.cluster_ranges.extend(&self.hidden);
        let mut out = Vec::new();
        let mut count = self.longest(&all, &order);
        if count.is_none() && !self.hidden.is_empty() {
            // There are too many to hide: nothing may leave by its address.
            self.model.cluster_ranges.clone_from(&ranges);
            out = order.extract_if(.., |one| one.is_outward).collect();
            count = self.longest(&all, &order);
        }
        let Some(count) = count else {
            // Without a policy it does not matter whose an address is.
            self.model.policies = Vec::new();
            self.model.cluster_ranges = ranges;
            if !self.fits() {
                self.model.cluster_ranges.clear();
            }
            let names = all.into_iter().map(|policy| policy.name);
            self.shortage.policies = names.collect();
            return;
        };
        self.model.policies = parts(&all, &order[..count]);
        let out = out.into_iter().chain(order.drain(count..));
        self.shortage.policies = out.map(|one| one.name.policy).collect();
    }

    /// How many of these rules fit, beside those that stay in any case. `None`:
    /// not even those do.
    fn longest(&mut self, all: &[Policy], order: &[Candidate]) -> Option<usize> {
        let mut fits = |count: &usize| {
            self.model.policies = parts(all, &order[..*count]);
            self.fits()
        };
        // One more never needs less.
        let counts: Vec<usize> = (0..=order.len()).collect();
        counts.partition_point(|count| fits(count)).checked_sub(1)
    }

    /// The rules by which something is allowed now.
    fn in_force(&self) -> BTreeSet<RuleRef> {
        let current = self.room.current;
        let entries = current.policy.values().chain(current.range.values());
        let sides = entries.flat_map(|entry| [entry.now, entry.would]);
        let allowing = sides.filter(|side| side.action == Action::Allow as u8);
        let rules: BTreeSet<u32> = allowing.map(|side| side.rule).collect();
        let named = self.numbers.rules();
        let named = named.filter(|(_, number)| rules.contains(number));
        named.map(|(rule, _)| rule.clone()).collect()
    }

    /// Whether there are prefixes and numbers enough for the policies.
    fn fits(&self) -> bool {
        let land = Territory::survey(&self.model);
        let (known, free) = (&self.room.current.cidr, self.room.free().cidr);
        let prefixes = land.prefixes();
        let rows = prefixes.iter().map(cidr_key);
        let rows = rows.filter(|key| !known.contains_key(key)).count();
        let (_, classes, rules) = self.numbers.free();
        let unnamed = |net: &&IpNet| self.numbers.get(&Name::Class(**net)).is_none();
        let new_classes = land.classes().iter().filter(unnamed).count();
        let named = self.model.policies.iter().flat_map(|policy| {
            let rules = policy.rules.iter();
            rules.map(|rule| policy.rule_ref(rule))
        });
        let new_rules = named.filter(|rule| self.numbers.rule(rule).is_none());
        rows <= free && new_classes <= classes && new_rules.count() <= rules
    }
}

/// What a claim needs numbers for.
fn names(party: &Party) -> impl Iterator<Item = Name> {
    let service = match party {
        Party::Service(service) => Some(Name::Service(service.clone())),
        Party::Workload(_) | Party::Reserved(_) => None,
    };
    let identities = party.identities().cloned().map(Name::Spiffe);
    service.into_iter().chain(identities)
}

/// A rule that can be left out; the first stay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    is_new: bool,
    size: usize,
    name: RuleRef,
    is_outward: bool,
}

/// The policies with these of the rules that can be left out.
fn parts(all: &[Policy], chosen: &[Candidate]) -> Vec<Policy> {
    let chosen: BTreeSet<&RuleRef> = chosen.iter().map(|one| &one.name).collect();
    let part = |policy: &Policy| {
        let rules = policy.rules.iter();
        let stays = |rule: &&Rule| !may_go(policy, rule) || chosen.contains(&policy.rule_ref(rule));
        Policy {
            rules: rules.filter(stays).cloned().collect(),
            ..policy.clone()
        }
    };
    all.iter().map(part).collect()
}

/// Whether a rule means anybody by the address alone.
fn is_outward(rule: &Rule) -> bool {
    let targets = rule.to.iter().flat_map(|target| &target.selectors);
    let mut selectors = rule.from.iter().chain(targets);
    selectors.any(|selector| {
        matches!(
            selector,
            Selector::Cidr(_) | Selector::Reserved(identity::WORLD)
        )
    })
}

/// Whether a rule takes nothing away.
fn may_go(policy: &Policy, rule: &Rule) -> bool {
    rule.action == RuleAction::Allow || policy.mode == PolicyMode::Audit
}

/// What it needs of numbers and prefixes, about.
fn size(rule: &Rule) -> usize {
    let targets = rule.to.iter().map(|target| target.selectors.len());
    1 + rule.from.len() + targets.sum::<usize>()
}

/// The rows of the address table that claims of one address may need.
fn keys(ip: IpAddr, claims: &[Endpoint]) -> BTreeSet<AddressKey> {
    let mut keys = BTreeSet::new();
    if !is_loopback(&octets(ip)) {
        keys.insert(key(ip, None));
    }
    for claim in claims {
        for (protocol, port) in claim.ports.iter().flatten() {
            let port = Some((*port, *protocol as u8));
            keys.insert(key(ip, port));
            if claim.cgroup.is_some() {
                keys.insert(key(IpAddr::from([0_u16; 8]), port));
            }
        }
    }
    keys
}

fn key(ip: IpAddr, port: Option<(u16, u8)>) -> AddressKey {
    let (port, protocol) = port.unwrap_or_default();
    AddressKey {
        ip: octets(ip.to_canonical()),
        port,
        protocol,
        zero: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{compile, names, samples::*},
        model::NodeModel,
    };

    const LIMITS: Limits = Limits {
        policy: 100,
        range: 100,
        address: 4,
        cidr: 4,
        workload: 3,
        interface: 3,
    };

    fn world(policies: Vec<Policy>) -> NodeModel {
        let mut model = model();
        model.workloads = vec![workload("a", 7), workload("b", 8)];
        model.endpoints = vec![endpoint("10.0.0.3", "c", 0), endpoint("10.0.0.4", "d", 0)];
        model.cluster_ranges = vec!["10.0.0.0/16".parse().unwrap()];
        model.policies = policies;
        model
    }

    fn fitted(model: &NodeModel, before: &Built, limits: &Limits) -> (NodeModel, Shortage) {
        let room = Room {
            current: before.tables(),
            limits,
        };
        let (part, shortage) = fit(model, &room, &before.numbers);
        let mut numbers = before.numbers.clone();
        for name in &names(&part).names {
            numbers.intern(name).unwrap();
        }
        for rule in &names(&part).rules {
            numbers.intern_rule(rule).unwrap();
        }
        let tables = compile(&part, &numbers).unwrap().tables;
        assert_eq!(room.check(&tables), Ok(()));
        (part, shortage)
    }

    fn places(model: &NodeModel) -> Vec<String> {
        let ips: BTreeSet<IpAddr> = model.endpoints.iter().map(|claim| claim.ip).collect();
        ips.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_that_went_go_and_those_that_find_no_room_are_nobodys() {
        let before = built(&world(vec![]));
        let mut after = world(vec![]);
        after.endpoints.remove(0);
        let services = (1..4).map(|last| port_endpoint(&format!("10.0.1.{last}"), "s", 0, 80));
        after.endpoints.extend(services);
        after.endpoints.push(endpoint("192.0.2.9", "far", 0));
        let (part, shortage) = fitted(&after, &before, &LIMITS);
        // What is there, and of what is new as much as there is room for.
        assert_eq!(places(&part), ["10.0.0.4", "192.0.2.9"]);
        assert_eq!(shortage.addresses.len(), 3);
        let (part, _) = fitted(
            &after,
            &before,
            &Limits {
                address: 2,
                ..LIMITS
            },
        );
        assert_eq!(places(&part), ["10.0.0.4"]);
        assert!(
            part.cluster_ranges
                .contains(&"192.0.2.9/32".parse().unwrap()),
            "it would be world: {:?}",
            part.cluster_ranges
        );
    }

    #[test]
    fn where_too_many_addresses_are_nobodys_nobody_is_known_by_the_address_alone() {
        let before = built(&world(vec![]));
        let rules = vec![allow(1, "a", "c"), allow(2, "a", "203.0.113.0/24")];
        let mut after = world(vec![policy("p", rules)]);
        let far = (0..9).map(|last| endpoint(&format!("192.0.2.{last}"), "far", 0));
        after.endpoints.extend(far);
        let (part, shortage) = fitted(&after, &before, &LIMITS);
        let rules: Vec<u32> = part.policies[0]
            .rules
            .iter()
            .map(|rule| rule.number)
            .collect();
        assert_eq!(rules, [1]);
        assert_eq!(part.cluster_ranges, after.cluster_ranges);
        assert_eq!(shortage.policies.len(), 1);
    }

    #[test]
    fn a_claim_is_never_left_out_without_those_that_contradict_it() {
        let before = built(&world(vec![]));
        let mut after = world(vec![]);
        after.endpoints.push(port_endpoint("10.0.0.9", "x", 0, 80));
        after.endpoints.push(port_endpoint("10.0.0.9", "y", 0, 80));
        after.endpoints.push(port_endpoint("10.0.0.9", "y", 0, 81));
        let (part, _) = fitted(&after, &before, &LIMITS);
        assert_eq!(places(&part), ["10.0.0.3", "10.0.0.4"]);
    }

    #[test]
    fn a_workload_that_finds_no_room_is_nobody_and_is_taken_for_nobody() {
        let before = built(&world(vec![]));
        let mut after = world(vec![]);
        after.workloads.remove(0);
        let inside = WorkloadSpec {
            path: "/b/inner".into(),
            netns: Some(5),
            ..workload("inner", 9)
        };
        let beside = WorkloadSpec {
            netns: Some(5),
            ..workload("beside", 1)
        };
        after.workloads.extend([inside, beside]);
        after.host_netns = Some(50);
        after.endpoints.push(endpoint("10.0.0.5", "inner", 9));
        after.node_addresses = vec!["10.0.0.3".parse().unwrap()];
        after.endpoints[0] = port_endpoint("10.0.0.3", "inner", 9, 80);
        after
            .endpoints
            .push(port_endpoint("10.0.0.3", "beside", 1, 80));
        let (part, shortage) = fitted(
            &after,
            &before,
            &Limits {
                workload: 4,
                ..LIMITS
            },
        );
        let there: Vec<u64> = part.workloads.iter().map(|one| one.cgroup).collect();
        // b is around one that is left out.
        assert_eq!(there, [1]);
        assert_eq!(part.workloads[0].netns, None);
        assert_eq!(part.host_netns, None, "nor for the node");
        assert!(shortage.has_left_out(8) && shortage.has_left_out(9));
        assert!(!places(&part).contains(&"10.0.0.5".to_owned()));
        // The node stays where it is, and the port is nobody's.
        assert_eq!(part.node_addresses, after.node_addresses);
        let claims = part.endpoints.iter().flat_map(|claim| &claim.ports);
        assert_eq!(claims.flatten().count(), 0);
        let said = shortage.to_string();
        assert!(
            said.contains("not the workloads spiffe://td/b, spiffe://td/inner"),
            "{said}"
        );
    }

    #[test]
    fn of_a_policy_that_finds_no_room_the_denies_count() {
        let cidr = |n: u8| format!("198.51.{n}.0/24");
        let first = policy("first", vec![allow(1, "a", &cidr(1))]);
        let before = built(&world(vec![first.clone()]));
        let (two, three, four) = (cidr(2), cidr(3), cidr(4));
        let many = policy(
            "many",
            vec![
                allow(1, "a", &two),
                allow(2, "a", &three),
                allow(3, "a", &four),
                deny(4, "a", "c"),
            ],
        );
        let after = world(vec![many, first]);
        let (part, shortage) = fitted(&after, &before, &LIMITS);
        let rules: Vec<(String, usize)> = (part.policies.iter())
            .map(|policy| (policy.name.to_string(), policy.rules.len()))
            .collect();
        // Two prefixes and the cluster's range; one row of four stays free.
        assert_eq!(rules, [("many".to_owned(), 2), ("first".to_owned(), 1)]);
        assert_eq!(shortage.policies, BTreeSet::from(["many".into()]));
        // Not even those: nothing is allowed.
        let denies = policy(
            "denies",
            vec![rule(1, RuleAction::Deny, &["a"], &[&two, &three, &four])],
        );
        let (part, shortage) = fitted(&world(vec![denies]), &before, &LIMITS);
        assert!(part.policies.is_empty());
        assert_eq!(shortage.policies.len(), 1);
    }

    #[test]
    fn where_nothing_helps_nothing_new_is_there_and_nothing_is_allowed() {
        let before = built(&world(vec![policy("p", vec![allow(1, "a", "c")])]));
        let mut after = world(vec![policy("p", vec![allow(1, "a", "c")])]);
        after.workloads.push(workload("new", 9));
        after.endpoints.remove(0);
        after.endpoints.push(endpoint("10.0.0.9", "new", 9));
        let (part, shortage) = shut(&after, before.tables(), &before.numbers);
        assert!(part.policies.is_empty() && shortage.has_left_out(9));
        assert_eq!(places(&part), ["10.0.0.4"]);
        let room = Room {
            current: before.tables(),
            limits: &LIMITS,
        };
        let tables = compile(&part, &before.numbers).unwrap().tables;
        assert!(tables.policy.is_empty() && room.check(&tables).is_ok());
    }
}
