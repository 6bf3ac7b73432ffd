//! From rules to the rows of `zt_policy_v1` and `zt_range_v1`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
    sync::Arc,
};

use zt_common::{
    codes::Protocol,
    identity::Number,
    policy::{Entry, PolicyKey, RangeKey},
};

use super::{
    CompileError,
    limits::{Room, TableFull},
    ports::{Plan, Term, plan, portless, ranges},
    precedence::{Ruling, deadline},
    selection::Selection,
    squeeze::{Group, Said, Squeezed, is_spiffe, squeeze},
    tables::Tables,
};
use crate::model::{
    NodeModel, Numbers, Policy, PolicyMode, Ports, Position, Problem, Rule, RuleAction, RuleRef,
    Selector, Severity, Target,
};

/// Of `zt_policy_v1` and `zt_range_v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows(
    pub BTreeMap<PolicyKey, Entry>,
    pub BTreeMap<RangeKey, Entry>,
);

/// What of the policies is not among the rows, for want of room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub full: TableFull,
    /// The names of those of which something is missing.
    pub policies: BTreeSet<Arc<str>>,
    /// Whose denies are not all among the rows: they may do nothing.
    pub shut: BTreeSet<Number>,
}

/// Compiles all rules. Only pairs with a workload of this node at one end or
/// both get rows: nobody asks for the others here. What finds no `room` is left
/// out as [`squeeze`] says; without one there is room for everything.
///
/// # Errors
/// When a rule has no number, is there twice, or names what cannot be named.
pub fn rows(
    model: &NodeModel,
    selection: &Selection<'_>,
    numbers: &Numbers,
    room: Option<&Room<'_>>,
    warnings: &mut Vec<Problem>,
) -> Result<(Rows, Option<Cut>), CompileError> {
    let limit = room.map_or(usize::MAX, |room| room.limits.links);
    let mut gathering = Gathering::new(model, selection, limit)?;
    gathering.policies(model, numbers, |_| true)?;
    warnings.append(&mut gathering.warnings);
    if let Some(room) = room.filter(|_| gathering.overflows()) {
        gathering.begin_again(room);
        gathering.policies(model, numbers, |action| action == RuleAction::Allow)?;
        gathering.note_linked();
        gathering.policies(model, numbers, |action| action == RuleAction::Deny)?;
    }
    let (rows, squeezed) = gathering.rows(room);
    let name = |at: &usize| Some(model.policies.get(*at)?.name.clone());
    let cut = squeezed.map(|(full, squeezed)| Cut {
        full,
        policies: squeezed.cut.iter().filter_map(name).collect(),
        shut: squeezed.shut,
    });
    Ok((rows, cut))
}

/// The place of each policy, by its name, in the order that breaks ties.
///
/// # Errors
/// When two rules have one name.
fn ranks(policies: &[Policy]) -> Result<BTreeMap<&str, usize>, CompileError> {
    let mut rules: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for policy in policies {
        let own = rules.entry(&policy.name).or_default();
        own.extend(policy.rules.iter().map(|rule| rule.number));
    }
    let mut ranks = BTreeMap::new();
    for (rank, (name, mut own)) in rules.into_iter().enumerate() {
        own.sort_unstable();
        if let Some(twice) = own.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(CompileError::DuplicateRule(RuleRef {
                policy: name.into(),
                number: twice[0],
            }));
        }
        ranks.insert(name, rank);
    }
    Ok(ranks)
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
    const fn pair(&self) -> PolicyKey {
        PolicyKey {
            source: self.source,
            destination: self.destination,
            port: 0,
            protocol: self.protocol as u8,
            zero: 0,
        }
    }

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
    /// The places of their policies.
    of: Vec<usize>,
    links: Vec<Link>,
    /// How many links each policy has, whether they are gathered or not.
    sizes: Vec<usize>,
    limit: usize,
    /// There are more links than that: which are gathered.
    only: Option<Only>,
    /// There are too many even so.
    too_many: bool,
    warnings: Vec<Problem>,
}

/// Policies that are gathered whole. Of the others only allows of pairs that the
/// kernel has rows of already, and denies of those that are linked, or count
/// beside a pair.
struct Only {
    whole: Vec<bool>,
    /// Sorted.
    pairs: Vec<(Number, Number)>,
}

impl Only {
    /// The smallest policies, as long as they are few enough together.
    fn new(sizes: &[usize], limit: usize, room: &Room<'_>) -> Self {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|at| sizes[*at]);
        let mut whole = vec![false; sizes.len()];
        let mut sum = 0_usize;
        for at in order {
            sum = sum.saturating_add(sizes[at]);
            whole[at] = sum <= limit;
        }
        let keys = room.current.policy.keys();
        let mut pairs: Vec<_> = keys.map(|key| (key.source, key.destination)).collect();
        pairs.dedup();
        Self { whole, pairs }
    }

    fn of(&self, source: Number) -> &[(Number, Number)] {
        let first = self.pairs.partition_point(|(from, _)| *from < source);
        let last = self.pairs.partition_point(|(from, _)| *from <= source);
        &self.pairs[first..last]
    }
}

impl<'a> Gathering<'a> {
    fn new(
        model: &NodeModel,
        selection: &'a Selection<'a>,
        limit: usize,
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
            of: Vec::new(),
            links: Vec::new(),
            sizes: vec![0; model.policies.len()],
            limit,
            only: None,
            too_many: false,
            warnings: Vec::new(),
        })
    }

    fn policies(
        &mut self,
        model: &'a NodeModel,
        numbers: &Numbers,
        counts: impl Fn(RuleAction) -> bool,
    ) -> Result<(), CompileError> {
        let ranks = ranks(&model.policies)?;
        for (at, policy) in model.policies.iter().enumerate() {
            let rank = ranks.get(&*policy.name).copied().unwrap_or_default();
            let own = numbers.rules_of(&policy.name);
            for rule in policy.rules.iter().filter(|rule| counts(rule.action)) {
                let number = own.and_then(|own| own.get(rule.number));
                let unnumbered = || CompileError::UnnumberedRule(policy.rule_ref(rule));
                let ruling = Ruling {
                    rank: (rank, rule.number),
                    number: number.ok_or_else(unnumbered)?,
                    action: rule.action,
                    deadline: deadline(rule.expires, model.boot_offset, model.set_back_from),
                    audit: policy.mode == PolicyMode::Audit,
                };
                self.rule(policy, at, rule, ruling)?;
            }
        }
        Ok(())
    }

    fn total(&self) -> usize {
        (self.sizes.iter()).fold(0, |sum, size| sum.saturating_add(*size))
    }

    fn overflows(&self) -> bool {
        self.total() > self.limit
    }

    /// Forgets what was gathered, but not how much it was.
    fn begin_again(&mut self, room: &Room<'_>) {
        self.only = Some(Only::new(&self.sizes, self.limit, room));
        self.terms.clear();
        self.of.clear();
        self.links.clear();
    }

    /// Nothing that is allowed is without what denies it.
    fn note_linked(&mut self) {
        if let Some(only) = &mut self.only {
            let links = self.links.iter();
            only.pairs = links.map(|link| (link.source, link.destination)).collect();
            only.pairs.sort_unstable();
            only.pairs.dedup();
        }
    }

    fn rule(
        &mut self,
        policy: &'a Policy,
        at: usize,
        rule: &'a Rule,
        ruling: Ruling,
    ) -> Result<(), CompileError> {
        let field = || format!("spec.rules[{}]", rule.number);
        let sources = self.union(&rule.from, rule.action)?;
        if nobody(&rule.from, &sources) {
            self.warn(policy, &rule.at, field() + ".from", NOBODY_FROM);
        }
        if rule.to.is_empty() {
            self.warn(policy, &rule.at, field() + ".to", NOBODY_TO);
        }
        for (number, target) in rule.to.iter().enumerate() {
            let destinations = self.union(&target.selectors, rule.action)?;
            let field = || format!("{}.to[{}]", field(), number + 1);
            if nobody(&target.selectors, &destinations) {
                self.warn(policy, &target.at, field(), NOBODY_TO);
            } else if nowhere(target) {
                self.warn(policy, &target.at, field(), NOWHERE);
            }
            self.link(&sources, &destinations, target, (at, ruling));
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

    fn link(
        &mut self,
        from: &[Number],
        to: &[Number],
        target: &Target,
        (policy, ruling): (usize, Ruling),
    ) {
        let term = self.terms.len();
        self.of.push(policy);
        self.terms.push(Term {
            ruling,
            ports: ranges(&target.ports),
        });
        let local = |numbers: &[Number]| -> Vec<Number> {
            let all = numbers.iter().copied();
            all.filter(|n| self.local.contains(n)).collect()
        };
        let (senders, governed) = (local(from), local(to));
        let reachable = |source: &Number| {
            if senders.binary_search(source).is_ok() {
                to
            } else {
                &governed
            }
        };
        if let Some(only) = &self.only
            && !only.whole[policy]
        {
            let pairs = pairs_that_matter(only, from, reachable, ruling.action);
            let links = links(pairs, target, term);
            // Twice, because those that are gathered whole may be as many.
            let room = self
                .limit
                .saturating_mul(2)
                .saturating_sub(self.links.len());
            let before = self.links.len();
            self.links.extend(links.take(room.saturating_add(1)));
            self.too_many |= self.links.len() - before > room;
            return;
        }
        if self.only.is_none() {
            let others = from.len() - senders.len();
            let pairs = senders.len().saturating_mul(to.len());
            let pairs = pairs.saturating_add(others.saturating_mul(governed.len()));
            let size = pairs.saturating_mul(target.protocols.len());
            self.sizes[policy] = self.sizes[policy].saturating_add(size);
            if self.overflows() {
                self.links = Vec::new();
                return;
            }
        }
        let pairs = from.iter();
        let pairs = pairs.flat_map(|source| reachable(source).iter().map(|to| (*source, *to)));
        self.links.extend(links(pairs, target, term));
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

    fn rows(mut self, room: Option<&Room<'_>>) -> (Rows, Option<(TableFull, Squeezed)>) {
        self.links.sort_unstable();
        self.links.dedup();
        let (full, room) = match self.all(room) {
            Ok(rows) => return (rows, None),
            Err(full) => full,
        };
        let groups = self.groups();
        self.links = Vec::new();
        let (rows, mut squeezed) = if self.too_many {
            let nothing = Squeezed {
                cut: (0..self.sizes.len()).collect(),
                shut: self.local.iter().copied().collect(),
            };
            (Rows::default(), nothing)
        } else {
            squeeze(&groups, room)
        };
        if let Some(only) = &self.only {
            let whole = only.whole.iter().enumerate();
            let partly = whole.filter_map(|(at, whole)| (!whole).then_some(at));
            squeezed.cut.extend(partly);
        }
        (rows, Some((full, squeezed)))
    }

    /// By pair and protocol, which terms speak.
    fn spoken_of(&self) -> impl Iterator<Item = (PolicyKey, Speakers)> {
        self.links.chunk_by(Link::same_key).map(|links| {
            let terms = links.iter().map(|link| link.term);
            let speakers = Speakers {
                have_ports: links[0].protocol != Protocol::Icmp,
                terms: terms.collect(),
            };
            (links[0].pair(), speakers)
        })
    }

    /// What everybody says, and by which policies.
    fn groups(&self) -> Vec<Group> {
        // A wildcard makes thousands of pairs to which the same terms speak.
        let mut known: HashMap<Speakers, Rc<Said>> = HashMap::new();
        let groups = self.spoken_of().map(|(pair, speakers)| {
            let said = known.entry(speakers);
            let said = said.or_insert_with_key(|speakers| Rc::new(self.said(speakers)));
            (pair, said.clone())
        });
        groups.collect()
    }

    fn plan(&self, Speakers { have_ports, terms }: &Speakers) -> Plan {
        let all = terms.iter().filter_map(|at| self.terms.get(*at));
        if *have_ports {
            plan(all)
        } else {
            portless(all)
        }
    }

    /// What these terms say together.
    fn said(&self, speakers: &Speakers) -> Said {
        let terms = &speakers.terms;
        let is_deny = |at: &usize| self.terms[*at].ruling.action == RuleAction::Deny;
        let allowing = terms.iter().filter(|at| !is_deny(at));
        let allowing: BTreeSet<usize> = allowing.map(|at| self.of[*at]).collect();
        let sizes = allowing.iter().map(|at| self.sizes[*at]);
        Said {
            plan: self.plan(speakers),
            denies: terms
                .iter()
                .any(|at| is_deny(at) && !self.terms[*at].ruling.audit),
            size: sizes.min().unwrap_or(usize::MAX),
            allowing,
        }
    }

    /// All rows, if they fit.
    fn all<'r>(&self, room: Option<&'r Room<'r>>) -> Result<Rows, (TableFull, &'r Room<'r>)> {
        let limits = room.map(|room| room.limits);
        let limits = limits.map_or((usize::MAX, usize::MAX), |them| (them.policy, them.range));
        let (mut exact, mut blocks) = (0_usize, 0_usize);
        let (mut policy, mut range) = (Vec::new(), Vec::new());
        // A wildcard makes thousands of pairs to which the same terms speak. Of one that
        // speaks alone, as in tens of thousands of pairs, the plan is made sooner than
        // found, and would take more memory than the rows.
        let mut plans: HashMap<Speakers, Plan> = HashMap::new();
        for (pair, speakers) in self.spoken_of() {
            let alone = (speakers.terms.len() == 1).then(|| self.plan(&speakers));
            let plan = match &alone {
                Some(plan) => plan,
                None => plans
                    .entry(speakers)
                    .or_insert_with_key(|speakers| self.plan(speakers)),
            };
            exact += plan.exact.len();
            blocks += plan.blocks.len();
            // More than that is only counted.
            if exact <= limits.0 && blocks <= limits.1 {
                plan.emit(&pair, &mut policy, &mut range);
            }
        }
        let tables = Tables {
            policy: policy.into_iter().collect(),
            range: range.into_iter().collect(),
            ..Tables::default()
        };
        if let Some(room) = room {
            let fits = self.check(room, &tables, (exact, blocks));
            fits.map_err(|full| (full, room))?;
        }
        Ok(Rows(tables.policy, tables.range))
    }

    fn check(
        &self,
        room: &Room<'_>,
        tables: &Tables,
        (exact, blocks): (usize, usize),
    ) -> Result<(), TableFull> {
        let limits = room.limits;
        if self.only.is_some() {
            return Err(TableFull::policy(self.total().max(exact), limits.policy));
        }
        if exact > limits.policy {
            return Err(TableFull::policy(exact, limits.policy));
        }
        if blocks > limits.range {
            return Err(TableFull::range(blocks, limits.range));
        }
        // They fit by themselves: beside what is there now?
        room.check(tables)
    }
}

/// Who speaks about a pair and a protocol.
#[derive(PartialEq, Eq, Hash)]
struct Speakers {
    have_ports: bool,
    /// Places of terms.
    terms: Vec<usize>,
}

/// Of a policy that is too large. `reachable`: to whom a source matters here.
fn pairs_that_matter<'n>(
    only: &'n Only,
    from: &'n [Number],
    reachable: impl Fn(&Number) -> &'n [Number] + 'n,
    action: RuleAction,
) -> impl Iterator<Item = (Number, Number)> + 'n {
    from.iter().flat_map(move |source| {
        let to = reachable(source);
        let kept = only.of(*source).iter();
        let kept = kept.filter(|(_, destination)| to.binary_search(destination).is_ok());
        let beside = to.iter().filter(move |destination| {
            action == RuleAction::Deny && !(is_spiffe(*source) && is_spiffe(**destination))
        });
        kept.copied()
            .chain(beside.map(|destination| (*source, *destination)))
    })
}

fn links(
    pairs: impl Iterator<Item = (Number, Number)>,
    target: &Target,
    term: usize,
) -> impl Iterator<Item = Link> {
    pairs.flat_map(move |(source, destination)| {
        let protocols = target.protocols.iter();
        protocols.map(move |protocol| Link {
            source,
            destination,
            protocol: *protocol,
            term,
        })
    })
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
    use crate::compile::{Limits, compile, samples::*};

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
    fn a_policy_of_too_many_pairs_keeps_those_that_it_has_and_the_others_go_on() {
        let tenant = |count: u8| {
            let mut model = with(vec![allow(1, "a", "r")]);
            model.policies[0].name = "other".into();
            let cgroups = (0..count).map(|n| workload(&format!("t/{n}"), 100 + u64::from(n)));
            model.workloads.extend(cgroups);
            let rules = vec![allow(1, "t/*", "t/*"), deny(2, "t/*", "10.0.0.0/8")];
            model.policies.push(policy("tenant", rules));
            model
        };
        let (before, after) = (built(&tenant(2)), tenant(30));
        let mut numbers = before.numbers.clone();
        for name in &crate::compile::names(&after).names {
            numbers.intern(name).unwrap();
        }
        let within = |links| gathered(&after, &numbers, before.tables(), links);
        let (rows, cut) = within(100);
        let cut = cut.unwrap();
        assert_eq!(cut.policies, BTreeSet::from(["tenant".into()]));
        // Those of two, the other policy's, and all denies.
        assert_eq!(rows.0.len(), 4 + 1 + 30);
        // Not even those can be gathered.
        let (rows, cut) = within(3);
        assert!(rows.0.is_empty() && cut.unwrap().policies.len() == 2);
        assert_eq!(within(10_000).1, None);
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

    /// What `model` has where no more than so many `links` are gathered.
    fn gathered(
        model: &NodeModel,
        numbers: &Numbers,
        current: &Tables,
        links: usize,
    ) -> (Rows, Option<Cut>) {
        let territory = crate::compile::territory::Territory::survey(model);
        let selection = Selection::index(model, &territory, numbers).unwrap();
        let limits = Limits {
            links,
            ..limits(1000)
        };
        let room = Room {
            current,
            limits: &limits,
        };
        rows(model, &selection, numbers, Some(&room), &mut Vec::new()).unwrap()
    }

    fn first_gathered(model: &NodeModel, links: usize) -> (Rows, Option<Cut>) {
        gathered(model, &numbers(model), &Tables::default(), links)
    }

    fn many() -> NodeModel {
        let mut model = with(vec![]);
        let cgroups = (0..30).map(|n| workload(&format!("t/{n}"), 100 + n));
        model.workloads.extend(cgroups);
        model
    }

    #[test]
    fn what_is_allowed_is_never_without_the_deny_of_a_policy_of_too_many_pairs() {
        let mut model = many();
        let wide = deny(1, "**", "**").ports(&[(22, 22)]);
        model.policies = vec![
            policy("narrow", vec![allow(1, "a", "t/0")]),
            policy("wide", vec![wide]),
        ];
        let (rows, cut) = first_gathered(&model, 100);
        let actions: Vec<_> = rows
            .0
            .iter()
            .map(|(key, row)| (key.port, row.now.action))
            .collect();
        assert_eq!(actions, [(0, 1), (22, 2)]);
        assert_eq!(cut.unwrap().policies, BTreeSet::from(["wide".into()]));
    }

    #[test]
    fn of_denies_all_are_gathered_or_nothing_is_allowed() {
        let mut model = many();
        let wide = vec![deny(1, "t/*", "10.0.0.0/8"), allow(2, "t/*", "t/*")];
        model.policies = vec![policy("wide", wide)];
        for limit in 0..40 {
            let count = first_gathered(&model, limit).0.0.len();
            assert!(count == 0 || count == 30, "{limit}: {count}");
        }
    }
}
