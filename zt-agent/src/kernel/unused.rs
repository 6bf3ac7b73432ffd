//! Numbers that nothing in force refers to, and whether it helps anybody to take
//! them back. Pure.

use std::collections::BTreeSet;

use zt_common::identity::{FIRST_CLASS, Number};

use crate::{
    compile::{Needs, Tables},
    model::{Name, Numbers},
};

/// Numbers of identities, classes and Services, and of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbered {
    pub numbers: BTreeSet<Number>,
    pub rules: BTreeSet<u32>,
}

impl Numbered {
    /// Those of all names and rules of `needs`; `None` if one has none.
    #[must_use]
    pub fn all(needs: &Needs, numbers: &Numbers) -> Option<Self> {
        let names = needs.names.iter().map(|name| numbers.get(name));
        let rules = needs.rules.iter().map(|rule| numbers.rule(rule));
        Some(Self {
            numbers: names.collect::<Option<_>>()?,
            rules: rules.collect::<Option<_>>()?,
        })
    }

    /// Those that the names and rules of `needs` have.
    #[must_use]
    pub fn of(needs: &Needs, numbers: &Numbers) -> Self {
        let names = needs.names.iter();
        let rules = needs.rules.iter();
        Self {
            numbers: names.filter_map(|name| numbers.get(name)).collect(),
            rules: rules.filter_map(|rule| numbers.rule(rule)).collect(),
        }
    }

    /// Every one that the tables name.
    #[must_use]
    pub fn mentioned(tables: &Tables) -> Self {
        let (mut numbers, mut rules) = (BTreeSet::new(), BTreeSet::new());
        for key in tables.policy.keys() {
            numbers.extend([key.source, key.destination]);
        }
        for key in tables.range.keys() {
            numbers.extend([key.source, key.destination].map(u32::from_be_bytes));
        }
        for entry in tables.policy.values().chain(tables.range.values()) {
            rules.extend([entry.now.rule, entry.would.rule]);
        }
        for peer in tables.address.values().chain(tables.cidr.values()) {
            numbers.extend([peer.identity, peer.class]);
        }
        numbers.extend(tables.workload.values().map(|workload| workload.identity));
        Self { numbers, rules }
    }

    /// Those that are given, in no table, and not kept.
    #[must_use]
    pub fn unused(numbers: &Numbers, tables: &Tables, kept: &Self) -> Self {
        let live = Self::mentioned(tables);
        let is_dead = |number: &Number| !live.numbers.contains(number);
        let is_dead_rule = |rule: &u32| !live.rules.contains(rule);
        let given = numbers.given().filter(is_dead);
        let rules = numbers.given_rules().filter(is_dead_rule);
        Self {
            numbers: given
                .filter(|number| !kept.numbers.contains(number))
                .collect(),
            rules: rules.filter(|rule| !kept.rules.contains(rule)).collect(),
        }
    }

    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            numbers: &self.numbers & &other.numbers,
            rules: &self.rules & &other.rules,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.rules.is_empty()
    }
}

/// Of which kinds too few numbers are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    identities: bool,
    services: bool,
    classes: bool,
    rules: bool,
}

impl Want {
    /// For what is needed and has none.
    #[must_use]
    pub fn of(needs: &Needs, numbers: &Numbers) -> Self {
        let (mut identities, mut services, mut classes) = (0, 0, 0);
        let names = needs.names.iter();
        for name in names.filter(|name| numbers.get(name).is_none()) {
            match name {
                Name::Spiffe(_) => identities += 1,
                Name::Service(_) => (identities, services) = (identities + 1, services + 1),
                Name::Class(_) => classes += 1,
            }
        }
        let rules = needs.rules.iter();
        let rules = rules.filter(|rule| numbers.rule(rule).is_none()).count();
        let (free, free_classes, free_rules) = numbers.free();
        Self {
            identities: identities > free,
            services: services > numbers.services().1,
            classes: classes > free_classes,
            rules: rules > free_rules,
        }
    }

    /// Whether one of a kind that is wanted is among these.
    #[must_use]
    pub fn is_among(&self, these: &Numbered, numbers: &Numbers) -> bool {
        let has = |is_class: bool| {
            let mut all = these.numbers.iter();
            all.any(|number| (*number >= FIRST_CLASS) == is_class)
        };
        let has_service = || {
            let mut all = numbers.names();
            all.any(|(name, number)| {
                matches!(name, Name::Service(_)) && these.numbers.contains(&number)
            })
        };
        self.identities && has(false)
            || self.classes && has(true)
            || self.services && has_service()
            || self.rules && !these.rules.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RuleRef, names::RULE_LIMIT};

    fn spiffe(name: &str) -> Name {
        Name::Spiffe(format!("spiffe://td/{name}").parse().unwrap())
    }

    fn service(name: &str) -> Name {
        let text = format!("service ns/{name} (spiffe://td/a at 1, spiffe://td/b at 1)");
        Name::Service(std::sync::Arc::new(text.parse().unwrap()))
    }

    fn rule(number: u32) -> RuleRef {
        RuleRef {
            policy: "p".into(),
            number,
        }
    }

    fn these(numbers: &[Number], rules: &[u32]) -> Numbered {
        Numbered {
            numbers: numbers.iter().copied().collect(),
            rules: rules.iter().copied().collect(),
        }
    }

    #[test]
    fn what_is_kept_is_not_unused() {
        let mut numbers = Numbers::default();
        let needs = Needs {
            names: vec![spiffe("a"), spiffe("unknown")],
            rules: vec![rule(1), rule(9)],
        };
        let [a, b] = [spiffe("a"), spiffe("b")].map(|name| numbers.intern(&name).unwrap());
        let [one, two] = [1, 2].map(|number| numbers.intern_rule(&rule(number)).unwrap());
        let kept = Numbered::of(&needs, &numbers);
        assert_eq!(kept, these(&[a], &[one]));
        assert_eq!(Numbered::all(&needs, &numbers), None);
        let known = Needs {
            names: vec![spiffe("b"), spiffe("a")],
            rules: vec![rule(1), rule(2)],
        };
        let all = Numbered::all(&known, &numbers).unwrap();
        assert_eq!(all, these(&[a, b], &[one, two]));
        let unused = |kept: &Numbered| Numbered::unused(&numbers, &Tables::default(), kept);
        assert_eq!(unused(&kept), these(&[b], &[two]));
        assert_eq!(unused(&Numbered::default()), these(&[a, b], &[one, two]));
    }

    #[test]
    fn only_what_is_lacking_helps() {
        let mut numbers = Numbers::default();
        let web = numbers.intern(&service("web")).unwrap();
        numbers.reserve(FIRST_CLASS - 1);
        numbers.reserve_rule(RULE_LIMIT - 1);
        let wants = |names: &[Name], rules: &[RuleRef]| {
            let (names, rules) = (names.to_vec(), rules.to_vec());
            Want::of(&Needs { names, rules }, &numbers)
        };
        let class = Name::Class("10.0.0.0/8".parse().unwrap());
        let nothing = wants(&[class, service("web")], &[]);
        let all = these(&[web, 300, FIRST_CLASS], &[7]);
        assert!(!nothing.is_among(&all, &numbers));
        let identity = wants(&[spiffe("a")], &[]);
        assert!(identity.is_among(&these(&[300], &[]), &numbers));
        assert!(!identity.is_among(&these(&[FIRST_CLASS], &[7]), &numbers));
        let a_rule = wants(&[], &[rule(1)]);
        assert!(a_rule.is_among(&all, &numbers));
        assert!(!a_rule.is_among(&these(&[web, 300, FIRST_CLASS], &[]), &numbers));
    }

    #[test]
    fn where_services_have_their_part_only_one_of_theirs_helps() {
        let mut numbers = Numbers::default();
        let of = |n: u32| service(&format!("s{n}"));
        for n in 0..crate::model::names::SERVICE_LIMIT {
            numbers.intern(&of(n)).unwrap();
        }
        let a = numbers.intern(&spiffe("a")).unwrap();
        let needs = Needs {
            names: vec![service("more")],
            rules: Vec::new(),
        };
        let want = Want::of(&needs, &numbers);
        let first = numbers.get(&of(0)).unwrap();
        assert!(want.is_among(&these(&[first], &[]), &numbers));
        assert!(!want.is_among(&these(&[a], &[]), &numbers));
    }
}
