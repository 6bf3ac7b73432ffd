//! What of a model counts when not all of it fits: by what it needs of
//! addresses, prefixes, cgroups and numbers. [`super::squeeze`] does the same for
//! the pairs that policies speak about.
//!
//! Nothing is left out whose absence could let something pass:
//!
//! - What the kernel has already comes first, and what is new is left out.
//! - Services find room last, and give theirs up where somebody else finds none:
//!   whoever makes them must not keep others out.
//! - Where a workload is left out that is to be enforced, everybody is enforced who
//!   is not enrolled. What is in the node's namespace stays the node's, unless
//!   somebody who is left out may be there, too.
//! - The address of somebody who is left out is nobody's, and never `world`.
//! - Rules that deny are not left out. Where even these do not fit, all workloads
//!   are shut: they may do nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use zt_common::{address::AddressKey, codes::Action, identity};

use super::{
    Shortage, Tables, address,
    limits::{Limits, Room},
    network::{cidr_key, host},
    share::{self, SHARE},
    territory::Territory,
    workload::UNENROLLED_CGROUP,
};
use crate::model::{
    Endpoint, Mode, Name, NodeModel, Numbers, Party, Policy, PolicyMode, Rule, RuleAction, RuleRef,
    Selector, WorkloadSpec,
};

/// Of a model what there is room for.
#[derive(Clone, Debug)]
pub struct Part {
    pub model: NodeModel,
    /// Nobody of this node may do anything.
    pub shut: bool,
    /// What is not part of it.
    pub shortage: Shortage,
}

/// The part of `model` that fits. `numbers`: those that are given.
pub fn fit(model: &NodeModel, room: &Room<'_>, numbers: &Numbers) -> Part {
    let mut fitting = Fitting::new(model, room, numbers);
    fitting.workloads();
    fitting.places();
    fitting.interfaces();
    fitting.policies();
    fitting.part
}

/// What may find no room.
struct Item<T> {
    of: T,
    /// New rows.
    cost: usize,
    is_elsewhere: bool,
    is_audited: bool,
    /// What needs a number.
    names: Vec<Name>,
}

/// Claims of an address.
struct Place {
    ip: IpAddr,
    claims: Vec<Endpoint>,
}

/// Addresses of which nothing is known but who answers at some of their ports:
/// as a rule Services'.
struct Doors {
    place: Place,
    /// Rows that are there and rows that are not.
    rows: (usize, usize),
    /// Of all of them, the ones that are for claims of several parties.
    shared: usize,
    names: Vec<Name>,
}

impl Doors {
    /// One party behind each port first, then what is there already.
    const fn rank(&self) -> (bool, bool, usize) {
        (self.shared > 0, self.rows.1 > 0, self.rows.1)
    }
}

const fn is_service(name: &Name) -> bool {
    matches!(name, Name::Service(_))
}

const NOBODY: Party = Party::Reserved(identity::UNKNOWN_PEER);

struct Chosen<T> {
    chosen: Vec<T>,
    out: Vec<T>,
    /// Rows of those that found too few.
    wanting: usize,
}

struct Fitting<'a> {
    part: Part,
    known: &'a Tables,
    free: Limits,
    numbers: &'a Numbers,
    /// Numbers that can be given, to Services only so many, and to whom they are.
    names: usize,
    services: usize,
    new_names: BTreeSet<Name>,
    /// Who has none and got none, of those who come before Services.
    unnamed: BTreeSet<Name>,
    /// Of the address map, for Services.
    share: usize,
    /// Outside the cluster's ranges, and somebody's who is left out.
    hidden: Vec<IpNet>,
}

impl<'a> Fitting<'a> {
    fn new(model: &NodeModel, room: &Room<'a>, numbers: &'a Numbers) -> Self {
        Self {
            part: Part {
                model: model.clone(),
                shut: false,
                shortage: Shortage::default(),
            },
            known: room.current,
            free: room.free(),
            numbers,
            names: numbers.free().0,
            services: numbers.services().1,
            new_names: BTreeSet::new(),
            unnamed: BTreeSet::new(),
            share: room.limits.address / SHARE,
            hidden: Vec::new(),
        }
    }

    /// Splits into what finds room and what does not: what the kernel has comes
    /// first, then who is here, then who is enforced, then the smallest.
    fn choose<T>(&mut self, free: &mut usize, mut items: Vec<Item<T>>) -> Chosen<T> {
        items.sort_by_key(|item| (item.cost > 0, item.is_elsewhere, item.is_audited, item.cost));
        let mut chosen = Chosen {
            chosen: Vec::new(),
            out: Vec::new(),
            wanting: 0,
        };
        for item in items {
            if item.cost > *free {
                chosen.wanting = chosen.wanting.saturating_add(item.cost);
                chosen.out.push(item.of);
            } else if self.name(&item.names) {
                *free -= item.cost;
                chosen.chosen.push(item.of);
            } else {
                let unnamed = self.unnamed(&item.names);
                self.unnamed.extend(unnamed);
                chosen.out.push(item.of);
            }
        }
        chosen
    }

    /// Takes numbers for whoever has none. `false`: there are too few.
    fn name(&mut self, names: &[Name]) -> bool {
        let new = self.unnamed(names);
        let services = new.iter().filter(|name| is_service(name)).count();
        if new.len() > self.names || services > self.services {
            return false;
        }
        self.names -= new.len();
        self.services -= services;
        self.new_names.extend(new);
        true
    }

    fn unnamed(&self, names: &[Name]) -> BTreeSet<Name> {
        let is_new =
            |name: &&Name| !self.new_names.contains(*name) && self.numbers.get(name).is_none();
        names.iter().filter(is_new).cloned().collect()
    }

    fn workloads(&mut self) {
        let known = &self.known.workload;
        let is_new = |cgroup: &u64| !known.contains_key(cgroup);
        let model = &mut self.part.model;
        let mut free = (self.free.workload).saturating_sub(usize::from(is_new(&UNENROLLED_CGROUP)));
        // Who has gone stays nobody, or nobody counts as the node without a proof.
        let departed = model.departed.iter().filter(|cgroup| is_new(cgroup));
        match free.checked_sub(departed.count()) {
            Some(left) => free = left,
            None => {
                model.departed.retain(|cgroup| !is_new(cgroup));
                model.host_netns = None;
            }
        }
        let mut by_cgroup: BTreeMap<u64, Vec<WorkloadSpec>> = BTreeMap::new();
        for spec in std::mem::take(&mut model.workloads) {
            by_cgroup.entry(spec.cgroup).or_default().push(spec);
        }
        let items = by_cgroup.into_iter().map(|(cgroup, specs)| Item {
            cost: usize::from(is_new(&cgroup)),
            is_elsewhere: false,
            is_audited: specs.iter().all(|spec| spec.mode == Mode::Audit),
            names: (specs.iter())
                .map(|spec| Name::Spiffe(spec.identity.clone()))
                .collect(),
            of: specs,
        });
        let Chosen { chosen, out, .. } = self.choose(&mut free, items.collect());
        self.part.model.workloads = chosen.into_iter().flatten().collect();
        self.leave_out(out.into_iter().flatten().collect());
    }

    fn leave_out(&mut self, mut out: Vec<WorkloadSpec>) {
        // Whoever is inside another would be taken for that one.
        let inside = |around: &WorkloadSpec, out: &[WorkloadSpec]| {
            out.iter().any(|one| {
                one.cgroup != around.cgroup && Path::new(&*one.path).starts_with(&*around.path)
            })
        };
        let (around, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.part.model.workloads)
            .into_iter()
            .partition(|spec| inside(spec, &out));
        out.extend(around);
        // And whoever shares a namespace with one has none for himself.
        let shared: BTreeSet<u64> = out.iter().filter_map(|one| one.netns).collect();
        for spec in &mut kept {
            spec.netns = spec.netns.filter(|netns| !shared.contains(netns));
        }
        self.part.model.workloads = kept;
        let model = &mut self.part.model;
        let own = model.host_netns;
        if out
            .iter()
            .any(|one| one.netns.is_none() || one.netns == own)
        {
            // In the node's namespace, where it may be, it would be taken for the
            // node. Else what is the node's stays so: the agent must hear when there
            // is room again.
            model.host_netns = None;
        }
        if model.mode == Mode::Audit && out.iter().any(|one| one.mode == Mode::Enforce) {
            // In the mode of the node they would be let through.
            model.mode = Mode::Enforce;
            self.part.shortage.enforces = true;
        }
        let named = out.into_iter().map(|one| (one.cgroup, one.identity));
        self.part.shortage.workloads.extend(named);
    }

    /// Takes the claims of workloads that are left out away. `false`: then nobody
    /// may have the address.
    fn disown(&self, claims: &mut Vec<Endpoint>) -> bool {
        let shortage = &self.part.shortage;
        let is_out = |claim: &mut Endpoint| {
            let cgroup = claim.cgroup;
            cgroup.is_some_and(|cgroup| shortage.has_left_out(cgroup))
        };
        let out: Vec<Endpoint> = claims.extract_if(.., is_out).collect();
        let ports = out.iter().flat_map(|claim| &claim.ports).flatten();
        let ports: BTreeSet<_> = ports.collect();
        // Who contradicted them does not get what they claimed.
        for claim in claims.iter_mut() {
            let own = claim.ports.iter_mut();
            own.for_each(|own| own.retain(|port| !ports.contains(port)));
        }
        let mut all = out.iter().chain(claims.iter());
        out.is_empty() || all.all(|claim| claim.ports.is_some())
    }

    /// Leaves out addresses, each with everybody who claims it: one claimant
    /// fewer could settle a conflict.
    fn places(&mut self) {
        let model = &mut self.part.model;
        let own = model.node_addresses.iter().map(IpAddr::to_canonical);
        let own: BTreeSet<IpAddr> = own.collect();
        let mut by_ip: BTreeMap<IpAddr, Vec<Endpoint>> =
            own.iter().map(|ip| (*ip, Vec::new())).collect();
        for claim in std::mem::take(&mut model.endpoints) {
            let claims = by_ip.entry(claim.ip.to_canonical()).or_default();
            claims.push(claim);
        }
        let (mut items, mut doors, mut hidden) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (ip, mut claims) in by_ip {
            let is_own = own.contains(&ip);
            if !self.disown(&mut claims) || claims.is_empty() && !is_own {
                hidden.insert(ip);
                continue;
            }
            let keys = address::keys(ip, &claims);
            let is_new = |key: &&AddressKey| !self.known.address.contains_key(key);
            let cost = keys.iter().filter(is_new).count();
            let names = claims.iter().flat_map(|claim| numbered(&claim.party));
            let names = names.collect();
            let is_elsewhere = !is_own && claims.iter().all(|claim| claim.cgroup.is_none());
            // Services that are denied as a whole, too.
            let is_door = |claim: &Endpoint| claim.ports.is_some() || claim.party == NOBODY;
            if is_elsewhere && claims.iter().all(is_door) {
                doors.push(Doors {
                    rows: (keys.len() - cost, cost),
                    shared: share::rows(&claims),
                    names,
                    place: Place { ip, claims },
                });
                continue;
            }
            items.push(Item {
                cost,
                is_elsewhere,
                is_audited: false,
                names,
                of: Place { ip, claims },
            });
        }
        let mut free = self.free.address;
        let Chosen {
            mut chosen,
            out,
            wanting,
        } = self.choose(&mut free, items);
        let (open, shut) = self.doors(doors, free, wanting);
        chosen.extend(open);
        hidden.extend(out.into_iter().chain(shut).map(|place| place.ip));
        let model = &mut self.part.model;
        model.endpoints = chosen.into_iter().flat_map(|place| place.claims).collect();
        let addresses = &mut model.node_addresses;
        addresses.retain(|ip| !hidden.contains(&ip.to_canonical()));
        // An address of a workload is never `world`.
        let land = Territory::survey(model);
        let prefixes = hidden.iter().map(|ip| host(*ip));
        self.hidden = prefixes.filter(|net| !land.in_cluster(*net)).collect();
        self.part.shortage.addresses = hidden;
    }

    /// Splits Services into those that stay and those that do not: where there are
    /// rows `wanting`, or numbers, for somebody else, so many of theirs go, which is
    /// room the next time.
    fn doors(
        &mut self,
        mut doors: Vec<Doors>,
        free: usize,
        wanting: usize,
    ) -> (Vec<Place>, Vec<Place>) {
        doors.sort_by_key(Doors::rank);
        let known = doors.iter().map(|one| one.rows.0).sum::<usize>();
        let mut kept = known.saturating_sub(wanting);
        let mut free = if wanting > 0 { 0 } else { free };
        let mut given = self.numbers.services().0;
        given = given.saturating_sub(self.unnamed.len());
        if !self.unnamed.is_empty() {
            self.names = 0;
        }
        let (mut open, mut shut) = (Vec::new(), Vec::new());
        let mut counted = BTreeSet::new();
        for one in doors {
            let known = |name: &&Name| is_service(name) && self.numbers.get(name).is_some();
            let known = one.names.iter().filter(known);
            let known: BTreeSet<Name> = known.cloned().collect();
            let known: Vec<Name> = known.difference(&counted).cloned().collect();
            let fits = one.rows.0 <= kept
                && one.rows.1 <= free
                && one.shared <= self.share
                && known.len() <= given;
            if fits && self.name(&one.names) {
                kept -= one.rows.0;
                free -= one.rows.1;
                self.share -= one.shared;
                given -= known.len();
                counted.extend(known);
                open.push(one.place);
            } else {
                shut.push(one.place);
            }
        }
        (open, shut)
    }

    fn interfaces(&mut self) {
        let mut all = std::mem::take(&mut self.part.model.interfaces);
        all.sort_by_key(|interface| interface.index);
        let known = &self.known.interface;
        let items = all.into_iter().map(|interface| Item {
            cost: usize::from(!known.contains_key(&interface.index)),
            is_elsewhere: false,
            is_audited: false,
            names: Vec::new(),
            of: interface,
        });
        let mut free = self.free.interface;
        let Chosen { chosen, out, .. } = self.choose(&mut free, items.collect());
        self.part.model.interfaces = chosen;
        let names = out.into_iter().map(|interface| interface.name);
        self.part.shortage.interfaces = names.collect();
    }

    /// Leaves out rules that allow. What denies is never left out alone.
    fn policies(&mut self) {
        let all = std::mem::take(&mut self.part.model.policies);
        let order = self.order(&all);
        let ranges = self.part.model.cluster_ranges.clone();
        // There may be too many to hide. Then nothing may leave by its address.
        for hides in [true, false] {
            let hidden = self.hidden.iter().filter(|_| hides);
            self.part.model.cluster_ranges = ranges.iter().chain(hidden).copied().collect();
            let order = order.iter().filter(|one| hides || !one.is_outward);
            let order: Vec<&Candidate> = order.collect();
            if let Some(count) = self.longest(&all, &order) {
                self.part.model.policies = parts(&all, &order[..count]);
                self.part.shortage.policies = missing(&all, &self.part.model.policies);
                return;
            }
        }
        self.part.model.policies = all;
        self.shut();
    }

    fn shut(&mut self) {
        let model = &mut self.part.model;
        let policies = std::mem::take(&mut model.policies);
        self.part.shortage.policies = policies.into_iter().map(|policy| policy.name).collect();
        // It does not matter whose an address is.
        model.cluster_ranges.clear();
        self.part.shut = true;
    }

    /// The rules that can be left out, the last first.
    fn order(&self, all: &[Policy]) -> Vec<Candidate> {
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
        order
    }

    /// How many of these rules fit, beside those that stay in any case. `None`:
    /// not even those do.
    fn longest(&mut self, all: &[Policy], order: &[&Candidate]) -> Option<usize> {
        let mut fits = |count: &usize| {
            self.part.model.policies = parts(all, &order[..*count]);
            self.fits()
        };
        // One more never needs less.
        let counts: Vec<usize> = (0..=order.len()).collect();
        counts.partition_point(|count| fits(count)).checked_sub(1)
    }

    /// The rules by which something is allowed now.
    fn in_force(&self) -> BTreeSet<RuleRef> {
        let entries = self.known.policy.values().chain(self.known.range.values());
        let sides = entries.flat_map(|entry| [entry.now, entry.would]);
        let allowing = sides.filter(|side| side.action == Action::Allow as u8);
        let rules: BTreeSet<u32> = allowing.map(|side| side.rule).collect();
        let named = self.numbers.rules();
        let named = named.filter(|(_, number)| rules.contains(number));
        named.map(|(rule, _)| rule).collect()
    }

    /// Whether there are prefixes and numbers enough for the policies.
    fn fits(&self) -> bool {
        let land = Territory::survey(&self.part.model);
        let (known, free) = (&self.known.cidr, self.free.cidr);
        let prefixes = land.prefixes();
        let rows = prefixes.iter().map(cidr_key);
        let rows = rows.filter(|key| !known.contains_key(key)).count();
        let (_, classes, rules) = self.numbers.free();
        let unnamed = |net: &&IpNet| self.numbers.get(&Name::Class(**net)).is_none();
        let new_classes = land.classes().iter().filter(unnamed).count();
        let named = self.part.model.policies.iter().flat_map(|policy| {
            let rules = policy.rules.iter();
            rules.map(|rule| policy.rule_ref(rule))
        });
        let new_rules = named.filter(|rule| self.numbers.rule(rule).is_none());
        rows <= free && new_classes <= classes && new_rules.count() <= rules
    }
}

/// What a claim needs numbers for.
fn numbered(party: &Party) -> impl Iterator<Item = Name> {
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

/// The names of the policies of which a part is less than the whole.
fn missing(all: &[Policy], parts: &[Policy]) -> BTreeSet<Arc<str>> {
    let pairs = all.iter().zip(parts);
    let less = pairs.filter(|(whole, part)| part.rules.len() < whole.rules.len());
    less.map(|(whole, _)| whole.name.clone()).collect()
}

/// The policies with these of the rules that can be left out.
fn parts(all: &[Policy], chosen: &[&Candidate]) -> Vec<Policy> {
    let chosen: BTreeSet<&RuleRef> = chosen.iter().map(|one| &one.name).collect();
    let part = |policy: &Policy| {
        let rules = policy.rules.iter();
        let stays = |rule: &&Rule| !may_go(policy, rule) || chosen.contains(&policy.rule_ref(rule));
        Policy {
            rules: Arc::new(rules.filter(stays).cloned().collect()),
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

#[cfg(test)]
mod tests {
    use zt_common::address::workload_flags;

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
        links: 1000,
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
        let Part {
            model: part,
            shortage,
            ..
        } = fit(model, &room, &before.numbers);
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
    fn nobody_gets_the_port_of_one_who_is_left_out() {
        let before = built(&world(vec![]));
        let mut after = world(vec![]);
        after
            .workloads
            .extend([workload("x", 9), workload("y", 10)]);
        after.endpoints = vec![
            endpoint("10.0.0.3", "c", 0),
            port_endpoint("10.0.0.3", "y", 10, 80),
        ];
        let limits = Limits {
            workload: 4,
            ..LIMITS
        };
        let (part, shortage) = fitted(&after, &before, &limits);
        assert!(shortage.has_left_out(10) && places(&part).is_empty());
    }

    fn of_mode(name: &str, cgroup: u64, mode: Mode) -> WorkloadSpec {
        WorkloadSpec {
            mode,
            ..workload(name, cgroup)
        }
    }

    #[test]
    fn who_is_to_be_enforced_is_enforced_though_there_is_no_room_for_him() {
        let mut model = world(vec![policy("p", vec![allow(1, "c", "**")])]);
        model.mode = Mode::Audit;
        model.workloads = vec![
            of_mode("a", 7, Mode::Audit),
            of_mode("b", 8, Mode::Enforce),
            of_mode("e", 9, Mode::Enforce),
        ];
        let (_, both) = Node::new(limits(100)).apply(&model);
        assert_eq!(both, Shortage::default());
        let room = |workload| Limits {
            workload,
            ..limits(100)
        };
        // He comes first, and somebody in audit mode is let through all the same.
        let (built, short) = Node::new(room(3)).apply(&model);
        let there = built.tables().workload.iter();
        let there: Vec<_> = there.map(|(cgroup, row)| (*cgroup, row.flags)).collect();
        assert_eq!(there, [(0, 0), (8, 1), (9, 1)]);
        assert!(!short.enforces && short.has_left_out(7));
        let (built, short) = Node::new(room(2)).apply(&model);
        let there = built.tables().workload.iter();
        let there: Vec<_> = there.map(|(cgroup, row)| (*cgroup, row.flags)).collect();
        assert_eq!(there, [(0, 1), (8, 1)]);
        assert!(short.enforces && short.has_left_out(9));
        let said = short.to_string();
        assert!(said.contains("nobody on this node passes"), "{said}");
        // Of numbers the same.
        let (built, short) = Node::with_numbers(limits(100), 1).apply(&model);
        assert_eq!(built.tables().workload[&0].flags, 1);
        assert!(short.enforces && !short.has_left_out(8));
    }

    #[test]
    fn the_node_stays_the_node_unless_who_is_left_out_could_be_taken_for_it() {
        let who = |netns, leaf, made_in| {
            let mut model = world(vec![]);
            model.mode = Mode::Audit;
            model.host_netns = Some(50);
            model.workloads[1].netns = netns;
            let limits = Limits {
                workload: 2,
                ..limits(100)
            };
            let (built, short) = Node::new(limits).apply(&model);
            assert!(short.enforces && short.has_left_out(8));
            let owner = zt_common::flow::Owner {
                leaf,
                netns: made_in,
                ..Default::default()
            };
            let (_, row) = crate::compile::lookup::local(built.tables(), &owner);
            (row.identity, row.flags & workload_flags::ENFORCE != 0)
        };
        let (node, nobody) = ((identity::HOST, false), (identity::UNENROLLED, true));
        // The agent, and b.
        assert_eq!(who(Some(5), 99, 50), node);
        assert_eq!(who(Some(5), 8, 5), nobody);
        for hidden in [Some(50), None] {
            assert_eq!(who(hidden, 99, 50), nobody);
            assert_eq!(who(hidden, 8, 50), nobody);
        }
    }

    /// Behind its port 80 are c and d, of the first so many ports.
    fn service(address: &str, port: u16) -> Endpoint {
        let members = BTreeSet::from([
            (Party::Workload(id("c")), port),
            (Party::Workload(id("d")), 80),
        ]);
        let service = crate::model::Service::new("ns/web", members).unwrap();
        Endpoint {
            party: Party::Service(service.into()),
            ..port_endpoint(address, "x", 0, 80)
        }
    }

    /// As the enforcer does it.
    fn settle(node: &mut Node, model: &NodeModel) -> (Built, Shortage) {
        for _ in 0..6 {
            let before = node.current.clone();
            let (built, short) = node.apply(model);
            if node.current == before {
                return (built, short);
            }
        }
        panic!("it goes on for ever");
    }

    #[test]
    fn services_have_a_part_of_the_addresses_and_not_more() {
        let mut model = world(vec![]);
        let services = (1..9).map(|n| service(&format!("10.0.9.{n}"), n));
        model.endpoints.extend(services);
        let mut node = Node::new(limits(40));
        let (built, short) = settle(&mut node, &model);
        // Two rows each, of a quarter.
        assert_eq!(short.addresses.len(), 3);
        assert_eq!(built.tables().address.len(), 2 + 10);
        assert!(
            short.full.contains("`limits.addresses` to at least 64"),
            "{}",
            short.full
        );
        let more = Limits {
            address: 64,
            ..limits(40)
        };
        assert_eq!(settle(&mut Node::new(more), &model).1, Shortage::default());
    }

    #[test]
    fn services_give_their_addresses_up_where_somebody_else_finds_no_room() {
        let mut model = world(vec![]);
        model.endpoints.push(service("10.0.9.1", 1));
        model.endpoints.push(port_endpoint("10.0.9.2", "c", 0, 80));
        model.endpoints.push(port_endpoint("10.0.9.3", "c", 0, 80));
        let mut node = Node::new(limits(8));
        let (built, short) = settle(&mut node, &model);
        assert_eq!(
            (built.tables().address.len(), short),
            (8, Shortage::default())
        );
        let mut left = |more: u8| {
            let mut model = model.clone();
            let pods = (0..more).map(|n| endpoint(&format!("10.0.8.{n}"), "pod", 0));
            model.endpoints.extend(pods);
            let (built, short) = settle(&mut node, &model);
            for n in 0..more.min(6) {
                let peer = built.peer(&format!("10.0.8.{n}"), 80).identity;
                assert_eq!(peer, built.number("pod"), "{n} of {more}");
            }
            let out = short.addresses.iter().map(ToString::to_string);
            out.collect::<Vec<_>>()
        };
        assert_eq!(left(1), ["10.0.9.1"]);
        assert_eq!(left(2), ["10.0.9.1"]);
        assert_eq!(left(3), ["10.0.9.1", "10.0.9.3"]);
        assert_eq!(left(7).len(), 4);
        // And come back.
        assert_eq!(left(0), [""; 0]);
    }

    #[test]
    fn so_do_services_that_are_denied_as_a_whole() {
        let mut model = world(vec![]);
        let denied = ["10.0.9.1", "10.0.9.2"].map(|ip| Endpoint {
            party: NOBODY,
            ..endpoint(ip, "x", 0)
        });
        model.endpoints.extend(denied);
        let mut node = Node::new(limits(4));
        let (built, short) = settle(&mut node, &model);
        assert_eq!(
            (built.tables().address.len(), short),
            (4, Shortage::default())
        );
        model.endpoints.push(endpoint("10.0.8.1", "pod", 0));
        let (built, short) = settle(&mut node, &model);
        assert_eq!(built.peer("10.0.8.1", 80).identity, built.number("pod"));
        let [out] = short.addresses.iter().collect::<Vec<_>>()[..] else {
            panic!("{short:?}")
        };
        // It is nobody's all the same.
        assert_eq!(
            built.peer(&out.to_string(), 80).identity,
            identity::UNKNOWN_PEER
        );
    }

    #[test]
    fn services_give_their_numbers_up_where_somebody_else_finds_none() {
        let mut model = world(vec![]);
        model.endpoints.push(service("10.0.9.1", 1));
        model.endpoints.push(service("10.0.9.2", 2));
        // a, b, c, d, and the Services.
        let mut node = Node::with_numbers(limits(100), 6);
        let (_, short) = settle(&mut node, &model);
        assert_eq!(short, Shortage::default());
        model.workloads.push(workload("new", 9));
        let (built, short) = settle(&mut node, &model);
        assert!(built.tables().workload.contains_key(&9));
        assert_eq!((short.addresses.len(), short.workloads.len()), (1, 0));
        model.workloads.push(workload("newer", 10));
        model.workloads.push(workload("newest", 11));
        let (built, short) = settle(&mut node, &model);
        assert_eq!(built.tables().workload.len(), 1 + 4);
        assert_eq!((short.addresses.len(), short.workloads.len()), (2, 1));
        assert!(short.passes, "numbers may come back");
        model.workloads.truncate(2);
        assert_eq!(settle(&mut node, &model).1, Shortage::default());
    }

    #[test]
    fn where_no_number_would_come_back_nothing_is_decided_anew_for_it() {
        let mut model = world(vec![]);
        // Two who contradict each other: no row names either.
        let conflict = ["x", "y"].map(|name| endpoint("10.0.0.9", name, 0));
        model.endpoints.extend(conflict);
        let mut node = Node::with_numbers(limits(100), 6);
        let (_, short) = settle(&mut node, &model);
        assert_eq!(short, Shortage::default());
        model.endpoints.push(endpoint("10.0.0.10", "e", 0));
        for _ in 0..5 {
            let (_, short) = node.apply(&model);
            assert_eq!(short.addresses, BTreeSet::from([ip("10.0.0.10")]));
        }
        assert_eq!(node.forgotten, 0);
        // Who has gone gives his back.
        model.endpoints.remove(0);
        assert_eq!(settle(&mut node, &model).1, Shortage::default());
        assert_eq!(node.forgotten, 1);
    }

    #[test]
    fn more_services_than_have_numbers_leave_some_to_everybody_else() {
        let limit = u16::try_from(crate::model::names::SERVICE_LIMIT).unwrap();
        let mut model = world(vec![]);
        let services = (1..=limit + 5).map(|n| {
            let [high, low] = n.to_be_bytes();
            service(&format!("10.1.{high}.{low}"), n)
        });
        model.endpoints.extend(services);
        let mut node = Node::new(limits(1 << 20));
        let (_, short) = node.apply(&model);
        assert_eq!(short.addresses.len(), 5);
        assert!(short.full.contains("identity numbers"), "{}", short.full);
        assert!(!short.passes);
        // Those of three that go are others', though there are still too many.
        model.endpoints.drain(2..5);
        let (_, short) = settle(&mut node, &model);
        assert_eq!((short.addresses.len(), node.forgotten), (2, 1));
        let (_, short) = node.apply(&model);
        assert_eq!((short.addresses.len(), node.forgotten), (2, 1));
    }
}
