//! What policies say of a port of a Service's address behind which there are
//! several parties. Pure.
//!
//! Nobody knows to whom a packet to it will be led, so it passes only if it
//! might go to everybody who is there: of what the rules say of each of them,
//! at the port where that one gets it, the strictest counts. Whoever points a
//! Service at somebody else takes something away from those who may not reach
//! that one, and can give nothing to anybody.
//!
//! Who is governed where he is gets nothing there that he may not get. Of those the
//! most lenient counts, as long as nobody else who is there says no.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use zt_common::{
    codes::Action,
    identity::Number,
    policy::{Entry, PolicyKey, Side},
};

use super::{
    CompileError, Cut, Tables,
    limits::{Room, TableFull},
    lookup,
    selection::Selection,
    share::SHARE,
};
use crate::model::{Endpoint, NodeModel, Numbers, Party};

/// Adds the rows to those of the pairs, of which they are made: of the policy map
/// at most their [`SHARE`], and no more than pairs leave free. A row that is
/// missing denies, and so does one that is made of a pair that is.
///
/// # Errors
/// When a party has no number.
pub fn add(
    model: &NodeModel,
    selection: &Selection<'_>,
    numbers: &Numbers,
    room: Option<&Room<'_>>,
    tables: &mut Tables,
    cut: Option<Cut>,
) -> Result<Option<Cut>, CompileError> {
    let doors = doors(model, selection)?;
    if doors.is_empty() {
        return Ok(cut);
    }
    let here = model.workloads.iter();
    let here = here.map(|workload| selection.identity(&workload.identity));
    let here = here.collect::<Result<BTreeSet<Number>, _>>()?;
    let spoken = Spoken::of(tables, &here, &doors);
    let mut adding = Adding::new(tables, room);
    if let Some(room) = room {
        adding.known(room, &doors, &here);
    }
    adding.others(&doors, &spoken);
    let Adding { rows, out, .. } = adding;
    let pairs = tables.policy.len();
    let all = rows.len().saturating_add(out.rows);
    tables.policy.extend(rows);
    let Some(room) = room.filter(|_| out.rows > 0) else {
        return Ok(cut);
    };
    let needed = pairs.saturating_add(all).max(all.saturating_mul(SHARE));
    let mut cut = cut.unwrap_or_else(|| Cut {
        full: TableFull::policy(needed, room.limits.policy),
        policies: BTreeSet::new(),
        shut: BTreeSet::new(),
    });
    cut.policies.extend(policies(&out.rules, numbers));
    Ok(Some(cut))
}

/// A Service's number: who is behind it, and at which of its ports.
#[derive(Default)]
struct Door {
    behind: Vec<Behind>,
    /// With the protocol.
    at: BTreeSet<(u16, u8)>,
}

/// See [`Member`].
struct Behind {
    party: Number,
    port: u16,
    is_governed: bool,
}

type Doors = BTreeMap<Number, Door>;

fn doors(model: &NodeModel, selection: &Selection<'_>) -> Result<Doors, CompileError> {
    let mut doors = Doors::new();
    for endpoint in &model.endpoints {
        let Endpoint {
            party: Party::Service(service),
            ports: Some(ports),
            ..
        } = endpoint
        else {
            continue;
        };
        let door = doors.entry(selection.party(&endpoint.party)?).or_default();
        if door.behind.is_empty() {
            let behind = service.members().iter().map(|member| {
                Ok(Behind {
                    party: selection.party(&member.party)?,
                    port: member.port,
                    is_governed: member.is_governed,
                })
            });
            door.behind = behind.collect::<Result<_, CompileError>>()?;
        }
        let at = ports.iter();
        door.at
            .extend(at.map(|(protocol, port)| (*port, *protocol as u8)));
    }
    Ok(doors)
}

/// Of whom somebody here hears anything of a party: about nobody else there is a
/// row.
#[derive(Default)]
struct Spoken {
    by_party: BTreeMap<Number, (BTreeSet<Number>, BTreeSet<u32>)>,
    /// How many are here.
    here: usize,
}

impl Spoken {
    fn of(tables: &Tables, here: &BTreeSet<Number>, doors: &Doors) -> Self {
        let behind = doors.values().flat_map(|door| &door.behind);
        let behind: BTreeSet<Number> = behind.map(|one| one.party).collect();
        let policy = tables.policy.iter();
        let policy = policy.map(|(key, entry)| (key.source, key.destination, entry));
        let range = tables.range.iter().map(|(key, entry)| {
            let [source, destination] = [key.source, key.destination].map(Number::from_be_bytes);
            (source, destination, entry)
        });
        let mut spoken = Self {
            here: here.len(),
            ..Self::default()
        };
        for (source, destination, entry) in policy.chain(range) {
            if here.contains(&source) && behind.contains(&destination) {
                let (sources, rules) = spoken.by_party.entry(destination).or_default();
                sources.insert(source);
                rules.extend([entry.now.rule, entry.would.rule]);
            }
        }
        spoken
    }

    fn of_all(&self, door: &Door) -> impl Iterator<Item = &BTreeSet<Number>> {
        let behind = door.behind.iter();
        let known = behind.filter_map(|one| self.by_party.get(&one.party));
        known.map(|(sources, _)| sources)
    }

    fn sources(&self, door: &Door) -> BTreeSet<Number> {
        self.of_all(door).flatten().copied().collect()
    }

    /// No more than so many.
    fn most_sources(&self, door: &Door) -> usize {
        let all = self.of_all(door).map(BTreeSet::len);
        all.fold(0, usize::saturating_add).min(self.here)
    }

    fn rules(&self, parties: &BTreeSet<Number>) -> impl Iterator<Item = u32> {
        let known = parties.iter().filter_map(|one| self.by_party.get(one));
        known.flat_map(|(_, rules)| rules).copied()
    }
}

/// What finds no room: at most so many rows, and of which rules they would be.
#[derive(Default)]
struct Out {
    rows: usize,
    rules: BTreeSet<u32>,
}

struct Adding<'a> {
    pairs: &'a Tables,
    known: Option<&'a BTreeMap<PolicyKey, Entry>>,
    /// Rows that they may have, and new ones among them.
    share: usize,
    free: usize,
    /// Pairs that may still be looked at, to bound the time.
    looks: usize,
    rows: BTreeMap<PolicyKey, Entry>,
    out: Out,
}

impl<'a> Adding<'a> {
    fn new(pairs: &'a Tables, room: Option<&Room<'a>>) -> Self {
        let known = room.map(|room| &room.current.policy);
        let is_new = |key: &&PolicyKey| known.is_none_or(|known| !known.contains_key(key));
        let taken = pairs.policy.keys().filter(is_new).count();
        Self {
            pairs,
            known,
            share: room.map_or(usize::MAX, |room| room.limits.policy / SHARE),
            free: room.map_or(usize::MAX, |room| room.free().policy.saturating_sub(taken)),
            looks: room.map_or(usize::MAX, |room| room.limits.links),
            rows: BTreeMap::new(),
            out: Out::default(),
        }
    }

    /// What the kernel has already stays first.
    fn known(&mut self, room: &Room<'_>, doors: &Doors, here: &BTreeSet<Number>) {
        for key in room.current.policy.keys() {
            let door = doors.get(&key.destination);
            let door = door.filter(|door| door.at.contains(&(key.port, key.protocol)));
            if let Some(door) = door.filter(|_| here.contains(&key.source)) {
                self.add(*key, door);
            }
        }
    }

    fn others(&mut self, doors: &Doors, spoken: &Spoken) {
        // There may be very many more: what is done for each does not depend on who
        // hears of those behind it.
        let mut behind_the_rest = BTreeSet::new();
        for (destination, door) in doors {
            if self.is_over() {
                let rows = spoken.most_sources(door).saturating_mul(door.at.len());
                self.out.rows = self.out.rows.saturating_add(rows);
                behind_the_rest.extend(door.behind.iter().map(|one| one.party));
                continue;
            }
            for source in spoken.sources(door) {
                for (port, protocol) in &door.at {
                    let key = PolicyKey {
                        source,
                        destination: *destination,
                        port: *port,
                        protocol: *protocol,
                        zero: 0,
                    };
                    if self.known.is_none_or(|known| !known.contains_key(&key)) {
                        self.add(key, door);
                    }
                }
            }
        }
        self.out.rules.extend(spoken.rules(&behind_the_rest));
    }

    /// Something found no room, and nothing that comes later will.
    const fn is_over(&self) -> bool {
        self.out.rows > 0 && (self.share == 0 || self.free == 0 || self.looks == 0)
    }

    fn add(&mut self, key: PolicyKey, door: &Door) {
        let Some(looks) = self.looks.checked_sub(door.behind.len()) else {
            self.looks = 0;
            self.out.rows = self.out.rows.saturating_add(1);
            return;
        };
        self.looks = looks;
        let said = said(self.pairs, &key, &door.behind);
        if said == Entry::default() {
            return;
        }
        let cost = usize::from(self.known.is_none_or(|known| !known.contains_key(&key)));
        if self.share > 0 && cost <= self.free {
            self.share -= 1;
            self.free -= cost;
            self.rows.insert(key, said);
        } else {
            self.out.rows = self.out.rows.saturating_add(1);
            self.out.rules.extend([said.now.rule, said.would.rule]);
        }
    }
}

fn said(tables: &Tables, key: &PolicyKey, behind: &[Behind]) -> Entry {
    let (mut governed, mut others) = (Vec::new(), Vec::new());
    for one in behind {
        let entry = lookup::entry(tables, key.source, one.party, key.protocol, one.port);
        let of = if one.is_governed {
            &mut governed
        } else {
            &mut others
        };
        of.push(entry);
    }
    let together = |side: fn(&Entry) -> Side| {
        if others.is_empty() {
            most_lenient(governed.iter().map(side))
        } else {
            strictest(others.iter().map(side))
        }
    };
    Entry {
        now: together(|entry| entry.now),
        would: together(|entry| entry.would),
        ..Entry::default()
    }
}

/// The allow that ends last, or else what [`strictest`] says.
fn most_lenient(sides: impl Iterator<Item = Side> + Clone) -> Side {
    let allows = sides.clone().filter(|side| is(side, Action::Allow));
    let last = allows.max_by_key(end);
    last.unwrap_or_else(|| strictest(sides))
}

fn is(side: &Side, action: Action) -> bool {
    side.action == action as u8
}

/// When it ends, as a number to compare. 0 says never.
fn end(side: &Side) -> u64 {
    side.deadline.checked_sub(1).unwrap_or(u64::MAX)
}

/// A deny before silence, silence before an allow, and of these the one that
/// ends first.
fn strictest(sides: impl Iterator<Item = Side> + Clone) -> Side {
    if let Some(deny) = sides.clone().find(|side| is(side, Action::Deny)) {
        return deny;
    }
    if !sides.clone().all(|side| is(&side, Action::Allow)) {
        return Side::default();
    }
    sides.min_by_key(end).unwrap_or_default()
}

/// The names of those whose rules these are.
fn policies(rules: &BTreeSet<u32>, numbers: &Numbers) -> BTreeSet<Arc<str>> {
    let named = numbers.rules();
    let named = named.filter(|(_, number)| rules.contains(number));
    named.map(|(rule, _)| rule.policy).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use zt_common::codes::{Protocol, Reason};

    use super::*;
    use crate::{
        compile::{Limits, Shortage, links, names, samples::*},
        diff::{TablesDiff, narrows},
        model::{Member, Name, Policy, PolicyMode, Service},
    };

    const VIP: &str = "10.96.0.7";
    const ALLOWED: Reason = Reason::AllowedByRule;
    const SILENT: Reason = Reason::NoPolicy;

    /// A name with `!` before it is governed.
    fn behind(members: &[(&str, u16)]) -> Service {
        let member = |(name, port): &(&str, u16)| {
            let governed = name.strip_prefix('!');
            let party = match governed.unwrap_or(name) {
                "@nodes" => Party::Reserved(zt_common::identity::NODES),
                name => Party::Workload(id(name)),
            };
            Member {
                party,
                port: *port,
                is_governed: governed.is_some(),
            }
        };
        Service::new("ns/web", members.iter().map(member)).unwrap()
    }

    fn at(address: &str, port: u16, members: &[(&str, u16)]) -> Endpoint {
        Endpoint {
            party: Party::Service(behind(members).into()),
            ..port_endpoint(address, "x", 0, port)
        }
    }

    /// a and b (cgroups 1 and 2) are here, blue and green elsewhere and behind
    /// port 80 of the Service, each at a port of its own.
    fn with(rules: Vec<crate::model::Rule>) -> NodeModel {
        let mut model = model();
        model.workloads = vec![workload("a", 1), workload("b", 2)];
        model.endpoints = vec![
            endpoint("10.0.0.3", "blue", 0),
            endpoint("10.0.0.4", "green", 0),
            at(VIP, 80, &[("blue", 8080), ("green", 8081)]),
        ];
        model.policies = vec![policy("p", rules)];
        model
    }

    fn reasons(rules: Vec<crate::model::Rule>) -> [Reason; 2] {
        let built = built(&with(rules));
        ["a", "b"].map(|name| built.egress(name, VIP, 80))
    }

    #[test]
    fn who_may_reach_everybody_behind_it_may_reach_it() {
        let blue = allow(1, "*", "blue").ports(&[(8080, 8080)]);
        let green = allow(2, "a", "green").ports(&[(8081, 8081)]);
        assert_eq!(reasons(vec![blue.clone(), green]), [ALLOWED, SILENT]);
        // At its own port, and not at the Service's or another one's.
        for port in [80, 8080] {
            let green = allow(2, "a", "green").ports(&[(port, port)]);
            assert_eq!(reasons(vec![blue.clone(), green]), [SILENT, SILENT]);
        }
        assert_eq!(reasons(vec![allow(1, "**", "**")]), [ALLOWED, ALLOWED]);
        let denied = [Reason::DeniedByRule, ALLOWED];
        assert_eq!(
            reasons(vec![allow(1, "**", "**"), deny(2, "a", "green")]),
            denied
        );
    }

    #[test]
    fn a_deny_is_told_before_silence_and_the_first_end_counts() {
        let denied = [Reason::DeniedByRule, SILENT];
        assert_eq!(reasons(vec![deny(1, "a", "green")]), denied);
        let until = |number, to, expires| crate::model::Rule {
            expires: Some(expires),
            ..allow(number, "a", to)
        };
        let built = built(&with(vec![
            until(1, "blue", NOW + 9),
            until(2, "green", NOW + 5),
            allow(3, "b", "blue"),
            crate::model::Rule {
                expires: Some(NOW - 5),
                ..allow(4, "b", "green")
            },
        ]));
        let a = built.judge_egress("a", ip(VIP), Protocol::Tcp, 80);
        assert_eq!((a.reason, a.deadline), (Reason::LiveGrant, NOW + 5));
        assert_eq!(built.egress("b", VIP, 80), Reason::GrantExpired);
    }

    #[test]
    fn who_is_governed_is_left_to_its_node_and_nobody_else_is() {
        let until = |number, to, expires| crate::model::Rule {
            expires: Some(expires),
            ..allow(number, "a", to)
        };
        let judged = |rules: &[crate::model::Rule], members: &[(&str, u16)]| {
            let mut model = with(rules.to_vec());
            model.endpoints[2] = at(VIP, 80, members);
            let judged = built(&model).judge_egress("a", ip(VIP), Protocol::Tcp, 80);
            (judged.reason, judged.deadline)
        };
        let blue = [allow(1, "a", "blue")];
        let (yes, no) = ((ALLOWED, 0), (SILENT, 0));
        assert_eq!(judged(&blue, &[("blue", 80), ("!green", 80)]), yes);
        assert_eq!(judged(&blue, &[("!blue", 80), ("!green", 80)]), yes);
        assert_eq!(judged(&blue, &[("!blue", 80), ("green", 80)]), no);
        assert_eq!(
            judged(&blue, &[("!blue", 80), ("!green", 80), ("b", 80)]),
            no
        );
        // Somebody must be there whom it may reach.
        assert_eq!(judged(&[], &[("!blue", 80), ("!green", 80)]), no);
        let denied = [deny(1, "a", "green")];
        let (reason, _) = judged(&denied, &[("!blue", 80), ("!green", 80)]);
        assert_eq!(reason, Reason::DeniedByRule);
        let denied = [allow(1, "a", "blue"), deny(2, "a", "green")];
        assert_eq!(judged(&denied, &[("blue", 80), ("!green", 80)]), yes);
        // Its own end counts for who is not governed, the last one else.
        let grants = [until(1, "blue", NOW + 5), until(2, "green", NOW + 9)];
        let ends = |members: &[(&str, u16)]| judged(&grants, members).1;
        assert_eq!(ends(&[("blue", 80), ("!green", 80)]), NOW + 5);
        assert_eq!(ends(&[("!blue", 80), ("!green", 80)]), NOW + 9);
    }

    #[test]
    fn whoever_is_not_governed_any_more_narrows() {
        let tables = |members: &[(&str, u16)]| {
            let mut model = with(vec![allow(1, "a", "blue")]);
            model.endpoints[2] = at(VIP, 80, members);
            // Numbers stay.
            model.endpoints.extend([
                at("10.96.9.1", 80, &[("blue", 80), ("green", 80)]),
                at("10.96.9.2", 80, &[("blue", 80), ("!green", 80)]),
            ]);
            built(&model).compiled.tables
        };
        let before = tables(&[("blue", 80), ("!green", 80)]);
        let after = tables(&[("blue", 80), ("green", 80)]);
        assert!(narrows(&TablesDiff::between(&before, &after), false));
    }

    #[test]
    fn an_audited_policy_shows_only_in_what_would_be() {
        let mut model = with(vec![allow(1, "a", "blue"), allow(2, "a", "green")]);
        let audited = policy("q", vec![deny(1, "a", "green")]);
        model.policies.push(Policy {
            mode: PolicyMode::Audit,
            ..audited
        });
        let a = built(&model).judge_egress("a", ip(VIP), Protocol::Tcp, 80);
        assert_eq!((a.reason, a.would), (ALLOWED, Reason::DeniedByRule));
    }

    #[test]
    fn nodes_behind_it_count_and_other_ports_protocols_and_services_do_not() {
        let mut model = with(vec![allow(1, "a", "*"), allow(2, "b", "@nodes")]);
        let nodes = at("10.96.0.8", 80, &[("blue", 80), ("@nodes", 80)]);
        model.endpoints.push(nodes);
        let built = built(&model);
        assert_eq!(built.egress("a", VIP, 80), ALLOWED);
        assert_eq!(built.egress("a", VIP, 81), Reason::UnknownPeer);
        assert_eq!(built.egress("a", VIP, 8080), Reason::UnknownPeer);
        let udp = built.judge_egress("a", ip(VIP), Protocol::Udp, 80);
        assert_eq!(udp.reason, Reason::UnknownPeer);
        assert_eq!(built.egress("a", "10.96.0.8", 80), SILENT);
        assert_eq!(built.egress("b", "10.96.0.8", 80), SILENT);
        assert_eq!(built.ingress("a", VIP, 80), Reason::UnknownPeer);
    }

    #[test]
    fn whoever_joins_or_leaves_narrows_and_a_grant_that_goes_cuts_at_once() {
        let tables = |rules: Vec<crate::model::Rule>, members: &[(&str, u16)]| {
            let mut model = with(rules);
            model.endpoints[2] = at(VIP, 80, members);
            // Numbers stay.
            model.endpoints.extend([
                at("10.96.9.1", 80, &[("blue", 80), ("green", 80)]),
                at("10.96.9.2", 80, &[("blue", 80), ("a", 80)]),
            ]);
            built(&model).compiled.tables
        };
        let both = [("blue", 80), ("green", 80)];
        let rules = || vec![allow(1, "**", "**")];
        let before = tables(rules(), &both);
        let other = tables(rules(), &[("blue", 80), ("a", 80)]);
        assert!(narrows(&TablesDiff::between(&before, &other), false));
        let less = tables(vec![allow(1, "**", "blue")], &both);
        assert!(narrows(&TablesDiff::between(&before, &less), false));
        let more = TablesDiff::between(&less, &before);
        assert!(!more.policy.is_empty() && !narrows(&more, false));
    }

    fn node(policy: usize) -> Node {
        Node::new(Limits {
            policy,
            links: links(policy),
            ..limits(1000)
        })
    }

    /// As the enforcer does it: again while that changes anything. Also the names
    /// of the policies that are not whole.
    fn apply(node: &mut Node, model: &NodeModel) -> (Built, Vec<String>) {
        for _ in 0..4 {
            let before = node.current.clone();
            let (built, short) = node.apply(model);
            if before == node.current {
                let names = short.policies.iter().map(ToString::to_string);
                return (built, names.collect());
            }
        }
        panic!("it goes on for ever");
    }

    #[test]
    fn whoever_makes_services_fills_only_a_part_of_the_map() {
        let mut model = with(vec![allow(1, "a", "blue"), allow(2, "a", "green")]);
        let mut node = node(40);
        let (_, cut) = apply(&mut node, &model);
        assert!(cut.is_empty(), "{cut:?}");
        for last in 1..100 {
            let members = [("blue", 1000 + last), ("green", 80)];
            let service = at(&format!("10.96.1.{last}"), 80, &members);
            model.endpoints.push(service);
        }
        let (built, cut) = apply(&mut node, &model);
        assert_eq!(cut, ["p"]);
        assert_eq!(built.tables().policy.len(), 2 + 40 / SHARE);
        // What was there first stays there, and others find room.
        assert_eq!(built.egress("a", VIP, 80), ALLOWED);
        let far: Vec<String> = (0..28).map(|n| format!("far/{n}")).collect();
        for (name, last) in far.iter().zip(1..) {
            model
                .endpoints
                .push(endpoint(&format!("10.0.7.{last}"), name, 0));
        }
        model
            .policies
            .push(policy("q", vec![allow(1, "b", "far/*")]));
        let (built, cut) = apply(&mut node, &model);
        assert_eq!(cut, ["p"]);
        assert_eq!(built.egress("b", "10.0.7.28", 80), ALLOWED);
        assert_eq!(built.egress("a", VIP, 80), ALLOWED);
    }

    /// b may reach so many, and they are there.
    fn far(model: &mut NodeModel, count: u8) {
        let far = (0..count).map(|n| endpoint(&format!("10.0.7.{n}"), &format!("far/{n}"), 0));
        model.endpoints.extend(far);
        let q = policy("q", vec![allow(1, "b", "far/*")]);
        model.policies.push(q);
    }

    #[test]
    fn a_pair_that_finds_no_room_takes_nothing_from_services() {
        let mut model = with(vec![allow(1, "a", "blue"), allow(2, "a", "green")]);
        let mut node = node(8);
        apply(&mut node, &model);
        far(&mut model, 10);
        let (built, cut) = apply(&mut node, &model);
        assert_eq!(cut, ["q"]);
        assert_eq!(built.tables().policy.len(), 8);
        assert_eq!(built.egress("a", VIP, 80), ALLOWED);
        Arc::make_mut(&mut model.policies[0].rules).pop();
        let (built, _) = node.apply(&model);
        assert_eq!(built.egress("a", VIP, 80), SILENT);
    }

    #[test]
    fn who_is_not_among_the_pairs_is_not_reached_through_a_service() {
        let mut model = with(Vec::new());
        far(&mut model, 7);
        let mut node = node(8);
        apply(&mut node, &model);
        model.policies[0].rules = vec![allow(1, "a", "blue"), allow(2, "a", "green")].into();
        let (built, cut) = apply(&mut node, &model);
        assert_eq!(cut, ["p"]);
        let behind = ["10.0.0.3", "10.0.0.4"].map(|ip| built.egress("a", ip, 80));
        assert!(behind.contains(&ALLOWED) && behind.contains(&SILENT));
        assert_eq!(built.egress("a", VIP, 80), SILENT);
    }

    #[test]
    fn no_more_is_looked_at_than_may_be_and_what_is_there_comes_first() {
        let mut model = with(vec![allow(1, "a", "blue"), allow(2, "a", "green")]);
        let few = model.clone();
        for last in 1..100 {
            let members = [("blue", 1000 + last), ("green", 80)];
            let service = at(&format!("10.96.1.{last}"), 80, &members);
            model.endpoints.push(service);
        }
        let mut node = node(400);
        node.limits.links = 11;
        // The others come before it.
        node.numbers = numbers(&model);
        apply(&mut node, &few);
        let (built, short) = node.apply(&model);
        assert_eq!(short.policies, BTreeSet::from(["p".into()]));
        assert_eq!(built.tables().policy.len(), 2 + 5);
        assert_eq!(built.egress("a", VIP, 80), ALLOWED);
        assert_eq!(built.egress("a", "10.96.1.1", 80), ALLOWED);
        assert_eq!(built.egress("a", "10.96.1.99", 80), SILENT);
        // Who is not spoken of needs no look.
        for endpoint in &mut model.endpoints[3..] {
            let members = [("x", 80), ("y", endpoint.ports.as_ref().unwrap()[0].1)];
            endpoint.party = Party::Service(behind(&members).into());
        }
        let (_, short) = node.apply(&model);
        assert_eq!(short, Shortage::default());
    }

    #[test]
    fn the_many_that_find_no_room_take_no_time() {
        let (parties, sources) = (1000..1030, 0..300);
        let heard = || (sources.clone().collect(), (0..300).collect());
        let spoken = Spoken {
            by_party: parties.clone().map(|party| (party, heard())).collect(),
            here: 300,
        };
        let door = |number: Number| {
            let behind = parties.clone().map(|party| Behind {
                party,
                port: 80,
                is_governed: false,
            });
            let door = Door {
                behind: behind.collect(),
                at: BTreeSet::from([(80, 6)]),
            };
            (number, door)
        };
        let doors = (2000..14_000).map(door).collect();
        let tables = Tables::default();
        let mut adding = Adding::new(&tables, None);
        (adding.share, adding.out.rows) = (0, 1);
        let start = Instant::now();
        adding.others(&doors, &spoken);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!(adding.out.rows, 1 + 12_000 * 300);
        assert_eq!(adding.out.rules, (0..300).collect());
    }

    #[test]
    fn its_name_is_among_those_that_need_a_number() {
        let needs = names(&with(Vec::new()));
        let name = Name::Service(behind(&[("blue", 8080), ("green", 8081)]).into());
        assert!(needs.names.contains(&name), "{needs:?}");
    }
}
