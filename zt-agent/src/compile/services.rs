//! What policies say of a port of a Service's address behind which there are
//! several parties. Pure.
//!
//! Nobody knows to whom a packet to it will be led, so it passes only if it
//! might go to everybody who is there: of what the rules say of each of them,
//! at the port where that one gets it, the strictest counts. Whoever points a
//! Service at somebody else takes something away from those who may not reach
//! that one, and can give nothing to anybody.

use std::collections::{BTreeMap, BTreeSet};

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
};
use crate::model::{Endpoint, NodeModel, Numbers, Party};

/// Of the policy map at most this part is for these rows: whoever may make
/// Services must not fill it.
const SHARE: usize = 4;

/// Adds the rows to those of the pairs, of which they are made. Where not even
/// all pairs found room there are none: a row that is missing denies, and the
/// room that it had is for the pairs.
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
    let mut wanted = wanted(model, selection, tables)?;
    let Some(room) = room else {
        tables.policy.extend(wanted);
        return Ok(cut);
    };
    let pairs = tables.policy.len();
    let all = wanted.len();
    let out = match &cut {
        Some(_) => std::mem::take(&mut wanted),
        None => too_many(&mut wanted, tables, room),
    };
    tables.policy.extend(wanted);
    if out.is_empty() {
        return Ok(cut);
    }
    let needed = pairs.saturating_add(all).max(all.saturating_mul(SHARE));
    let mut cut = cut.unwrap_or_else(|| Cut {
        full: TableFull::policy(needed, room.limits.policy),
        policies: BTreeSet::new(),
        shut: BTreeSet::new(),
    });
    cut.policies.extend(policies(&out, numbers));
    Ok(Some(cut))
}

type Rows = BTreeMap<PolicyKey, Entry>;

/// What the rules come to at each port, for everybody here of whom they say
/// anything.
fn wanted(
    model: &NodeModel,
    selection: &Selection<'_>,
    tables: &Tables,
) -> Result<Rows, CompileError> {
    let here = model.workloads.iter();
    let here = here.map(|workload| selection.identity(&workload.identity));
    let here = here.collect::<Result<BTreeSet<Number>, _>>()?;
    let mut rows = Rows::new();
    for endpoint in &model.endpoints {
        let Endpoint {
            party: Party::Service(service),
            ports: Some(ports),
            ..
        } = endpoint
        else {
            continue;
        };
        let destination = selection.party(&endpoint.party)?;
        let behind = service
            .members()
            .map(|(party, port)| Ok((selection.party(party)?, port)));
        let behind = behind.collect::<Result<Vec<(Number, u16)>, CompileError>>()?;
        for (protocol, port) in ports {
            for source in &here {
                let key = PolicyKey {
                    source: *source,
                    destination,
                    port: *port,
                    protocol: *protocol as u8,
                    zero: 0,
                };
                let said = said(tables, &key, &behind);
                if said != Entry::default() {
                    rows.insert(key, said);
                }
            }
        }
    }
    Ok(rows)
}

fn said(tables: &Tables, key: &PolicyKey, behind: &[(Number, u16)]) -> Entry {
    let (source, protocol) = (key.source, key.protocol);
    let entries: Vec<Entry> = (behind.iter())
        .map(|(party, port)| lookup::entry(tables, source, *party, protocol, *port))
        .collect();
    Entry {
        now: strictest(entries.iter().map(|entry| entry.now)),
        would: strictest(entries.iter().map(|entry| entry.would)),
        ..Entry::default()
    }
}

/// A deny before silence, silence before an allow, and of these the one that
/// ends first.
fn strictest(sides: impl Iterator<Item = Side> + Clone) -> Side {
    let is = |action: Action| move |side: &Side| side.action == action as u8;
    if let Some(deny) = sides.clone().find(is(Action::Deny)) {
        return deny;
    }
    if !sides.clone().all(|side| is(Action::Allow)(&side)) {
        return Side::default();
    }
    // 0: never.
    let end = |side: &Side| side.deadline.checked_sub(1).unwrap_or(u64::MAX);
    sides.min_by_key(end).unwrap_or_default()
}

/// Takes out what finds no room; what the kernel has already stays first.
fn too_many(wanted: &mut Rows, pairs: &Tables, room: &Room<'_>) -> Rows {
    let known = &room.current.policy;
    let is_new = |key: &&PolicyKey| !known.contains_key(key);
    let taken = pairs.policy.keys().filter(is_new).count();
    let mut free = room.free().policy.saturating_sub(taken);
    let mut share = room.limits.policy / SHARE;
    let mut order: Vec<PolicyKey> = wanted.keys().copied().collect();
    order.sort_by_key(|key| is_new(&key));
    let mut out = Rows::new();
    for key in order {
        let cost = usize::from(is_new(&&key));
        if share > 0 && cost <= free {
            share -= 1;
            free -= cost;
        } else {
            out.extend(wanted.remove_entry(&key));
        }
    }
    out
}

/// The names of those whose rules these rows are made of.
fn policies(rows: &Rows, numbers: &Numbers) -> BTreeSet<std::sync::Arc<str>> {
    let sides = rows.values().flat_map(|entry| [entry.now, entry.would]);
    let rules: BTreeSet<u32> = sides.map(|side| side.rule).collect();
    let named = numbers.rules();
    let named = named.filter(|(_, number)| rules.contains(number));
    named.map(|(rule, _)| rule.policy.clone()).collect()
}

#[cfg(test)]
mod tests {
    use zt_common::codes::{Protocol, Reason};

    use super::*;
    use crate::{
        compile::{Limits, Tables, compile_with, links, names, samples::*},
        diff::{TablesDiff, narrows},
        model::{Name, Policy, PolicyMode, RuleAction, Service},
    };

    const VIP: &str = "10.96.0.7";
    const ALLOWED: Reason = Reason::AllowedByRule;
    const SILENT: Reason = Reason::NoPolicy;

    fn behind(members: &[(&str, u16)]) -> Service {
        let party = |name: &str| match name {
            "@nodes" => Party::Reserved(zt_common::identity::NODES),
            name => Party::Workload(id(name)),
        };
        let members = members.iter().map(|(name, port)| (party(name), *port));
        Service::new("ns/web", members.collect()).unwrap()
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

    /// What the kernel has, with room for so many rows of policies.
    struct Node {
        policy: usize,
        numbers: Numbers,
        current: Tables,
    }

    impl Node {
        fn new(policy: usize) -> Self {
            Self {
                policy,
                numbers: Numbers::default(),
                current: Tables::default(),
            }
        }

        /// As the enforcer does it: again while that changes anything.
        fn apply(&mut self, model: &NodeModel) -> (Built, Vec<String>) {
            let needs = names(model);
            for name in &needs.names {
                self.numbers.intern(name).unwrap();
            }
            for rule in &needs.rules {
                self.numbers.intern_rule(rule).unwrap();
            }
            let limits = Limits {
                policy: self.policy,
                range: 100,
                address: 1000,
                cidr: 100,
                workload: 100,
                interface: 100,
                links: links(self.policy),
            };
            for _ in 0..4 {
                let room = Room {
                    current: &self.current,
                    limits: &limits,
                };
                let (compiled, cut) =
                    compile_with(model, &self.numbers, Some(&room), false).unwrap();
                assert_eq!(room.check(&compiled.tables), Ok(()));
                let is_all = self.current == compiled.tables;
                self.current = compiled.tables.clone();
                if cut.is_none() || is_all {
                    let names = cut.into_iter().flat_map(|cut| cut.policies);
                    let names = names.map(|name| name.to_string()).collect();
                    let numbers = self.numbers.clone();
                    return (Built { numbers, compiled }, names);
                }
            }
            panic!("it goes on for ever");
        }
    }

    #[test]
    fn whoever_makes_services_fills_only_a_part_of_the_map() {
        let mut model = with(vec![allow(1, "a", "blue"), allow(2, "a", "green")]);
        let mut node = Node::new(40);
        let (_, cut) = node.apply(&model);
        assert!(cut.is_empty(), "{cut:?}");
        for last in 1..100 {
            let members = [("blue", 1000 + last), ("green", 80)];
            let service = at(&format!("10.96.1.{last}"), 80, &members);
            model.endpoints.push(service);
        }
        let (built, cut) = node.apply(&model);
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
        let (built, cut) = node.apply(&model);
        assert_eq!(cut, ["p"]);
        assert_eq!(built.egress("b", "10.0.7.28", 80), ALLOWED);
        assert_eq!(built.egress("a", VIP, 80), ALLOWED);
    }

    #[test]
    fn where_the_pairs_need_the_room_services_are_denied_and_named() {
        let mut model = with(vec![allow(1, "a", "blue"), allow(2, "a", "green")]);
        let mut node = Node::new(4);
        let (built, cut) = node.apply(&model);
        assert!(cut.is_empty(), "{cut:?}");
        assert_eq!(built.egress("a", VIP, 80), ALLOWED);
        model.policies.push(policy(
            "q",
            vec![rule(1, RuleAction::Allow, &["b"], &["blue", "green"])],
        ));
        let (built, cut) = node.apply(&model);
        assert_eq!(built.egress("a", VIP, 80), SILENT);
        assert!(cut.contains(&"p".to_owned()), "{cut:?}");
        assert_eq!(built.egress("b", "10.0.0.3", 80), ALLOWED);
    }

    #[test]
    fn its_name_is_among_those_that_need_a_number() {
        let needs = names(&with(Vec::new()));
        let name = Name::Service(behind(&[("blue", 8080), ("green", 8081)]).into());
        assert!(needs.names.contains(&name), "{needs:?}");
    }
}
