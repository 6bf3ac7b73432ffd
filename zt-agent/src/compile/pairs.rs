//! From rules to the rows of `zt_policy_v1` and `zt_range_v1`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
};

use zt_common::{
    codes::Protocol,
    identity::Number,
    policy::{Entry, PolicyKey, RangeKey},
};

use super::{
    CompileError,
    ports::{Plan, Term, plan, portless, ranges},
    precedence::{Ruling, deadline},
    selection::Selection,
};
use crate::model::{
    NodeModel, Numbers, Policy, PolicyMode, Ports, Position, Problem, Rule, RuleAction, RuleRef,
    Selector, Severity, Target,
};

type Rows = (BTreeMap<PolicyKey, Entry>, BTreeMap<RangeKey, Entry>);

/// Compiles all rules. Only pairs with a workload of this node at one end or
/// both get rows: nobody asks for the others here.
///
/// # Errors
/// When a rule has no number, is there twice, or names what cannot be named.
pub fn rows(
    model: &NodeModel,
    selection: &Selection<'_>,
    numbers: &Numbers,
    warnings: &mut Vec<Problem>,
) -> Result<Rows, CompileError> {
    let ranks = ranks(model)?;
    let mut gathering = Gathering::new(model, selection, warnings)?;
    for policy in &model.policies {
        for rule in &policy.rules {
            let name = policy.rule_ref(rule);
            let ruling = Ruling {
                rank: ranks.get(&name).copied().unwrap_or_default(),
                number: numbers
                    .rule(&name)
                    .ok_or(CompileError::UnnumberedRule(name))?,
                action: rule.action,
                deadline: deadline(rule.expires, model.boot_offset, model.set_back_from),
                audit: policy.mode == PolicyMode::Audit,
            };
            gathering.rule(policy, rule, ruling)?;
        }
    }
    Ok(gathering.rows())
}

/// The place of each rule in the order that breaks ties.
fn ranks(model: &NodeModel) -> Result<BTreeMap<RuleRef, usize>, CompileError> {
    let mut seen = BTreeSet::new();
    for policy in &model.policies {
        for rule in &policy.rules {
            let name = policy.rule_ref(rule);
            if !seen.insert(name.clone()) {
                return Err(CompileError::DuplicateRule(name));
            }
        }
    }
    Ok(seen
        .into_iter()
        .enumerate()
        .map(|(at, name)| (name, at))
        .collect())
}

/// A term speaks about this pair and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    source: Number,
    destination: Number,
    protocol: Protocol,
    term: usize,
}

impl Link {
    fn same_key(&self, other: &Self) -> bool {
        let key = |link: &Self| (link.source, link.destination, link.protocol);
        key(self) == key(other)
    }
}

struct Gathering<'a> {
    selection: &'a Selection<'a>,
    local: HashSet<Number>,
    /// Selectors return in many rules; each is resolved once.
    resolved: HashMap<(&'a Selector, RuleAction), Rc<[Number]>>,
    terms: Vec<Term>,
    links: Vec<Link>,
    warnings: &'a mut Vec<Problem>,
}

impl<'a> Gathering<'a> {
    fn new(
        model: &NodeModel,
        selection: &'a Selection<'a>,
        warnings: &'a mut Vec<Problem>,
    ) -> Result<Self, CompileError> {
        let local = model
            .workloads
            .iter()
            .map(|w| selection.identity(&w.identity));
        Ok(Self {
            selection,
            local: local.collect::<Result<_, _>>()?,
            resolved: HashMap::new(),
            terms: Vec::new(),
            links: Vec::new(),
            warnings,
        })
    }

    fn rule(
        &mut self,
        policy: &'a Policy,
        rule: &'a Rule,
        ruling: Ruling,
    ) -> Result<(), CompileError> {
        let field = format!("spec.rules[{}]", rule.number);
        let sources = self.union(&rule.from, rule.action)?;
        if nobody(&rule.from, &sources) {
            self.warn(policy, &rule.at, format!("{field}.from"), NOBODY_FROM);
        }
        if rule.to.is_empty() {
            self.warn(policy, &rule.at, format!("{field}.to"), NOBODY_TO);
        }
        for (at, target) in rule.to.iter().enumerate() {
            let destinations = self.union(&target.selectors, rule.action)?;
            let field = format!("{field}.to[{}]", at + 1);
            if nobody(&target.selectors, &destinations) {
                self.warn(policy, &target.at, field, NOBODY_TO);
            } else if nowhere(target) {
                self.warn(policy, &target.at, field, NOWHERE);
            }
            self.link(&sources, &destinations, target, ruling);
        }
        Ok(())
    }

    /// The numbers of a list of selectors, each once.
    fn union(
        &mut self,
        selectors: &'a [Selector],
        action: RuleAction,
    ) -> Result<Vec<Number>, CompileError> {
        let mut found = Vec::new();
        for selector in selectors {
            found.extend_from_slice(&self.resolve(selector, action)?);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn resolve(
        &mut self,
        selector: &'a Selector,
        action: RuleAction,
    ) -> Result<Rc<[Number]>, CompileError> {
        if let Some(known) = self.resolved.get(&(selector, action)) {
            return Ok(known.clone());
        }
        let found: Rc<[Number]> = self.selection.resolve(selector, action)?.into();
        self.resolved.insert((selector, action), found.clone());
        Ok(found)
    }

    fn link(&mut self, from: &[Number], to: &[Number], target: &Target, ruling: Ruling) {
        let term = self.terms.len();
        self.terms.push(Term {
            ruling,
            ports: ranges(&target.ports),
        });
        let governed: Vec<Number> = to
            .iter()
            .copied()
            .filter(|n| self.local.contains(n))
            .collect();
        for source in from {
            let reachable = if self.local.contains(source) {
                to
            } else {
                &governed
            };
            for destination in reachable {
                for protocol in &target.protocols {
                    self.links.push(Link {
                        source: *source,
                        destination: *destination,
                        protocol: *protocol,
                        term,
                    });
                }
            }
        }
    }

    fn warn(&mut self, policy: &Policy, at: &Position, field: String, (what, hint): (&str, &str)) {
        self.warnings.push(Problem {
            severity: Severity::Warning,
            at: at.clone(),
            field,
            message: format!("{what} (policy {})", policy.name),
            hint: Some(hint.to_owned()),
        });
    }

    fn rows(mut self) -> Rows {
        self.links.sort_unstable();
        self.links.dedup();
        // A wildcard makes thousands of pairs to which the same terms speak.
        let mut plans: HashMap<(bool, Vec<usize>), Rc<Plan>> = HashMap::new();
        let mut policy = Vec::new();
        let mut range = Vec::new();
        for group in self.links.chunk_by(Link::same_key) {
            let first = group[0];
            let has_ports = first.protocol != Protocol::Icmp;
            let terms: Vec<usize> = group.iter().map(|link| link.term).collect();
            let plan = plans
                .entry((has_ports, terms))
                .or_insert_with_key(|(has_ports, terms)| {
                    let terms = terms.iter().filter_map(|at| self.terms.get(*at));
                    Rc::new(if *has_ports {
                        plan(terms)
                    } else {
                        portless(terms)
                    })
                });
            emit(&first, plan, &mut policy, &mut range);
        }
        (policy.into_iter().collect(), range.into_iter().collect())
    }
}

fn emit(
    link: &Link,
    plan: &Plan,
    policy: &mut Vec<(PolicyKey, Entry)>,
    range: &mut Vec<(RangeKey, Entry)>,
) {
    let key = PolicyKey {
        source: link.source,
        destination: link.destination,
        port: 0,
        protocol: link.protocol as u8,
        zero: 0,
    };
    let exact = plan.exact.iter();
    policy.extend(exact.map(|(port, entry)| (PolicyKey { port: *port, ..key }, *entry)));
    let blocks = plan.blocks.iter();
    range.extend(blocks.map(|(block, entry)| (block.key(&key), *entry)));
}

const ABSENT: &str = "check the spelling against `zt-agent identities`; an identity that is not there yet is picked up when it appears";
const NOBODY_FROM: (&str, &str) = ("selects nobody, so the rule never applies", ABSENT);
const NOBODY_TO: (&str, &str) = ("selects nobody, so this part never applies", ABSENT);
const NOWHERE: (&str, &str) = (
    "names no port or no protocol, so it never applies",
    "write the ports, or `any` for all of them",
);

/// An empty list selects nobody, and so does a pattern that nobody matches.
/// An address or a reserved identity is never absent.
fn nobody(selectors: &[Selector], found: &[Number]) -> bool {
    found.is_empty() && selectors.iter().all(|s| matches!(s, Selector::Spiffe(_)))
}

fn nowhere(target: &Target) -> bool {
    let portless = matches!(&target.ports, Ports::Ranges(ranges) if ranges.is_empty());
    let mut protocols = target.protocols.iter();
    !protocols.any(|protocol| *protocol == Protocol::Icmp || !portless)
}

#[cfg(test)]
mod tests {
    use zt_common::codes::Action;

    use super::*;
    use crate::compile::{compile, samples::*};

    /// a (cgroup 1) and ns/b (cgroup 2) are here, r and ns/s are elsewhere.
    fn with(rules: Vec<Rule>) -> NodeModel {
        let mut model = model();
        model.workloads = vec![workload("a", 1), workload("ns/b", 2)];
        model.endpoints = vec![
            endpoint("10.0.0.1", "r", 0),
            endpoint("10.0.0.2", "ns/s", 0),
        ];
        model.policies = vec![policy("p", rules)];
        model
    }

    #[test]
    fn pairs_without_an_end_on_this_node_have_no_rows() {
        let built = built(&with(vec![rule(
            1,
            RuleAction::Allow,
            &["**"],
            &["**", "@host", "8.8.8.0/24"],
        )]));
        let (a, r) = (built.number("a"), built.number("r"));
        assert_eq!(built.entry(a, r, 80).now.action, Action::Allow as u8);
        assert_eq!(built.entry(r, a, 80).now.action, Action::Allow as u8);
        assert_eq!(built.entry(r, built.number("ns/s"), 80), Entry::default());
        // 2 × (4 + host + class) out, and 2 × 2 in.
        assert_eq!(built.tables().policy.len(), 16);
    }

    #[test]
    fn a_pair_with_itself_needs_a_rule() {
        let none = built(&with(vec![]));
        assert_eq!(
            none.entry(none.number("a"), none.number("a"), 80),
            Entry::default()
        );
        let one = built(&with(vec![allow(1, "a", "a")]));
        assert_eq!(
            one.entry(one.number("a"), one.number("a"), 80).now.action,
            1
        );
    }

    #[test]
    fn a_wildcard_selects_among_those_who_are_there() {
        let built = built(&with(vec![allow(1, "a", "ns/*")]));
        let a = built.number("a");
        for (name, action) in [("ns/b", 1), ("ns/s", 1), ("r", 0)] {
            assert_eq!(
                built.entry(a, built.number(name), 80).now.action,
                action,
                "{name}"
            );
        }
        assert_eq!(built.warnings(), [""; 0]);
    }

    #[test]
    fn whoever_selects_nobody_is_told_where() {
        let mut rules = vec![
            allow(1, "nobody", "a"),
            allow(2, "a", "no/*"),
            rule(3, RuleAction::Allow, &[], &["a"]),
            rule(4, RuleAction::Deny, &["a"], &[]),
            allow(5, "a", "r"),
            allow(6, "a", "r").ports(&[]),
            rule(7, RuleAction::Allow, &["nobody", "a"], &["r", "nobody"]),
            allow(8, "a", "10.0.0.0/8"),
        ];
        rules[4].to.clear();
        let built = built(&with(rules));
        let places: Vec<_> = built
            .compiled
            .warnings
            .iter()
            .map(|w| (w.at.line, w.field.as_str()))
            .collect();
        assert_eq!(
            places,
            [
                (10, "spec.rules[1].from"),
                (21, "spec.rules[2].to[1]"),
                (30, "spec.rules[3].from"),
                (41, "spec.rules[4].to[1]"),
                (50, "spec.rules[5].to"),
                (61, "spec.rules[6].to[1]"),
            ]
        );
    }

    #[test]
    fn icmp_has_no_ports() {
        let mut icmp = allow(1, "a", "r").ports(&[(80, 80)]);
        icmp.to[0].protocols = vec![Protocol::Icmp, Protocol::Udp];
        let built = built(&with(vec![icmp]));
        let keys: Vec<_> = built
            .tables()
            .policy
            .keys()
            .map(|key| (key.protocol, key.port))
            .collect();
        assert_eq!(keys, [(1, 0), (17, 80)]);
    }

    #[test]
    fn a_grant_ends_in_the_kernels_clock() {
        let grant = |number, expires| Rule {
            expires: Some(expires),
            ..allow(number, "a", "r")
        };
        let mut model = with(vec![grant(1, 1500), grant(2, 1700), grant(3, 100)]);
        model.boot_offset = 1000;
        let built = built(&model);
        let entry = built.entry(built.number("a"), built.number("r"), 80);
        assert_eq!((entry.now.deadline, entry.now.rule), (700, 2));
    }

    #[test]
    fn a_policy_in_audit_mode_is_only_in_would() {
        let mut model = with(vec![allow(1, "a", "r")]);
        model.policies.push(Policy {
            mode: PolicyMode::Audit,
            ..policy("q", vec![deny(1, "a", "r")])
        });
        let built = built(&model);
        let entry = built.entry(built.number("a"), built.number("r"), 80);
        assert_eq!((entry.now.action, entry.now.rule), (1, 1));
        assert_eq!((entry.would.action, entry.would.rule), (2, 2));
    }

    #[test]
    fn what_was_not_prepared_is_an_error() {
        let model = with(vec![allow(1, "a", "r")]);
        let error = compile(&model, &Numbers::default()).unwrap_err();
        assert!(matches!(error, CompileError::UnnumberedName(_)));

        let mut twice = model.clone();
        twice.policies.push(twice.policies[0].clone());
        let error = compile(&twice, &numbers(&twice)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "two rules are called p/rule-1: give one of the policies another name"
        );

        let unnameable = with(vec![allow(1, "a", "@unknown-peer")]);
        let error = compile(&unnameable, &numbers(&unnameable)).unwrap_err();
        assert!(matches!(error, CompileError::Unnameable(5)));
    }
}
