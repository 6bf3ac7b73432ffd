//! Numbers for names: what the kernel calls an identity, a class, a rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ipnet::IpNet;
use zt_common::identity::{self, Number};

use super::{policy::RuleRef, service::Service, spiffe::SpiffeId};

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    Spiffe(SpiffeId),
    /// The addresses whose longest matching policy prefix is this one.
    Class(IpNet),
    /// A port of a Service's address behind which there are several parties.
    Service(Arc<Service>),
}

impl Name {
    /// The identities that it stands for: of a Service everybody behind it.
    pub fn identities(&self) -> impl Iterator<Item = &SpiffeId> {
        let (own, behind) = match self {
            Self::Spiffe(id) => (Some(id), None),
            Self::Service(service) => (None, Some(service.identities())),
            Self::Class(_) => (None, None),
        };
        own.into_iter().chain(behind.into_iter().flatten())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(id) => id.fmt(f),
            Self::Class(net) => write!(f, "cidr:{net}"),
            Self::Service(service) => service.fmt(f),
        }
    }
}

/// The numbers given out on this node. A number is given to another name only
/// after it was [released](Numbers::release), because flows, counters, events
/// and rows refer to it; and not while there are numbers that nobody ever had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    names: BTreeMap<Name, Number>,
    /// By policy.
    rules: BTreeMap<Arc<str>, OfPolicy>,
    /// How many of each range were given out, one after the other.
    identities: u32,
    classes: u32,
    rule_count: u32,
    /// Of those, the ones that nothing refers to any more.
    free: BTreeSet<Number>,
    /// Of the names, those that are Services'.
    services: u32,
    free_rules: BTreeSet<u32>,
}

/// The numbers of a policy's rules: of thousands, as a rule all one after the
/// other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfPolicy(Vec<(u32, u32)>);

impl OfPolicy {
    /// By the rule's number in its policy.
    #[must_use]
    pub fn get(&self, rule: u32) -> Option<u32> {
        let at = self.place(rule).ok()?;
        Some(self.0[at].1)
    }

    fn insert(&mut self, rule: u32, number: u32) {
        match self.place(rule) {
            Ok(at) => self.0[at].1 = number,
            Err(at) => self.0.insert(at, (rule, number)),
        }
    }

    fn place(&self, rule: u32) -> Result<usize, usize> {
        // Where it is if none before it is missing.
        let usual = (rule as usize).wrapping_sub(1);
        match self.0.get(usual) {
            Some((found, _)) if *found == rule => Ok(usual),
            _ => self.0.binary_search_by_key(&rule, |(rule, _)| *rule),
        }
    }
}

/// No numbers are left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {kind} numbers are left ({limit} in use, or waiting until nothing refers to them)")]
pub struct OutOfNumbers {
    pub kind: &'static str,
    pub limit: u32,
}

/// Rules have numbers 1 to this.
pub const RULE_LIMIT: u32 = 65_536;

/// So many of the identities' numbers are Services' at most: a quarter. Whoever
/// makes Services must not take them from workloads.
pub const SERVICE_LIMIT: u32 = (identity::FIRST_CLASS - identity::FIRST_SPIFFE) / 4;

impl Numbers {
    /// The number of a name, if it has one.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<Number> {
        self.names.get(name).copied()
    }

    /// The number of a rule, if it has one.
    #[must_use]
    pub fn rule(&self, rule: &RuleRef) -> Option<u32> {
        self.rules_of(&rule.policy)?.get(rule.number)
    }

    /// The numbers of a policy's rules, if any has one.
    #[must_use]
    pub fn rules_of(&self, policy: &str) -> Option<&OfPolicy> {
        self.rules.get(policy)
    }

    /// All names with their numbers.
    pub fn names(&self) -> impl Iterator<Item = (&Name, Number)> {
        self.names.iter().map(|(name, number)| (name, *number))
    }

    /// All rules with their numbers.
    pub fn rules(&self) -> impl Iterator<Item = (RuleRef, u32)> {
        self.rules.iter().flat_map(|(policy, rules)| {
            let name = |rule| RuleRef {
                policy: policy.clone(),
                number: rule,
            };
            let rules = rules.0.iter();
            rules.map(move |(rule, number)| (name(*rule), *number))
        })
    }

    /// Every number that was given out and not given back: whoever had it may
    /// be referred to, also where its name is no longer known.
    pub fn given(&self) -> impl Iterator<Item = Number> {
        let identities = identity::FIRST_SPIFFE..identity::FIRST_SPIFFE + self.identities;
        let classes = identity::FIRST_CLASS..identity::FIRST_CLASS + self.classes;
        let all = identities.chain(classes);
        all.filter(|number| !self.free.contains(number))
    }

    /// The same of the rules.
    pub fn given_rules(&self) -> impl Iterator<Item = u32> {
        (1..=self.rule_count).filter(|number| !self.free_rules.contains(number))
    }

    /// How many numbers of identities and classes, and of rules, are given.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let given = (self.identities + self.classes) as usize;
        let rules = self.rule_count as usize;
        (given - self.free.len(), rules - self.free_rules.len())
    }

    /// How many more can be given now: to SPIFFE IDs, to classes, to rules.
    #[must_use]
    pub fn free(&self) -> (usize, usize, usize) {
        let free = |first: Number, limit: Number, used: u32| {
            let back = self.free.range(first..limit).count();
            (limit - first - used) as usize + back
        };
        let rules = (RULE_LIMIT - 1 - self.rule_count) as usize;
        (
            free(
                identity::FIRST_SPIFFE,
                identity::FIRST_CLASS,
                self.identities,
            ),
            free(identity::FIRST_CLASS, identity::LIMIT, self.classes),
            rules + self.free_rules.len(),
        )
    }

    /// How many Services have a number, and how many more could have one if there
    /// are numbers left.
    #[must_use]
    pub fn services(&self) -> (usize, usize) {
        let left = SERVICE_LIMIT.saturating_sub(self.services);
        (self.services as usize, left as usize)
    }

    /// Takes numbers back: nothing may refer to them.
    pub fn release(&mut self, numbers: &BTreeSet<Number>, rules: &BTreeSet<u32>) {
        let mut services = 0;
        self.names.retain(|name, number| {
            let stays = !numbers.contains(number);
            services += u32::from(stays && is_service(name));
            stays
        });
        self.services = services;
        self.rules.retain(|_, own| {
            own.0.retain(|(_, number)| !rules.contains(number));
            !own.0.is_empty()
        });
        self.free.extend(numbers);
        self.free_rules.extend(rules);
    }

    /// Takes over a number that a pinned map already gives to `name`.
    pub fn adopt(&mut self, name: Name, number: Number) {
        self.reserve(number);
        let adds = u32::from(is_service(&name));
        if self.names.insert(name, number).is_none() {
            self.services += adds;
        }
    }

    /// Does not give out `number` again, whatever it stood for.
    pub fn reserve(&mut self, number: Number) {
        if number >= identity::FIRST_CLASS {
            self.classes = self.classes.max(number - identity::FIRST_CLASS + 1);
        } else if number >= identity::FIRST_SPIFFE {
            self.identities = self.identities.max(number - identity::FIRST_SPIFFE + 1);
        }
    }

    /// Whether `number` was given to a name, known or not.
    #[must_use]
    pub fn was_given(&self, number: Number) -> bool {
        let spiffe = identity::FIRST_SPIFFE..identity::FIRST_SPIFFE + self.identities;
        let class = identity::FIRST_CLASS..identity::FIRST_CLASS + self.classes;
        (spiffe.contains(&number) || class.contains(&number)) && !self.free.contains(&number)
    }

    /// Whether `number` was given to a rule, known or not.
    #[must_use]
    pub fn was_given_rule(&self, number: u32) -> bool {
        (1..=self.rule_count).contains(&number) && !self.free_rules.contains(&number)
    }

    /// Takes over a number that a pinned map already gives to `rule`.
    pub fn adopt_rule(&mut self, rule: RuleRef, number: u32) {
        self.reserve_rule(number);
        self.name_rule(rule, number);
    }

    fn name_rule(&mut self, rule: RuleRef, number: u32) {
        let own = self.rules.entry(rule.policy).or_default();
        own.insert(rule.number, number);
    }

    /// Does not give out a rule's `number` again.
    pub fn reserve_rule(&mut self, number: u32) {
        self.rule_count = self.rule_count.max(number);
    }

    /// Gives `name` a number if it has none.
    ///
    /// # Errors
    /// When the range for its kind is used up.
    pub fn intern(&mut self, name: &Name) -> Result<Number, OutOfNumbers> {
        if let Some(number) = self.get(name) {
            return Ok(number);
        }
        if is_service(name) && self.services >= SERVICE_LIMIT {
            return Err(OutOfNumbers {
                kind: "Service",
                limit: SERVICE_LIMIT,
            });
        }
        let (kind, first, limit, used) = match name {
            Name::Spiffe(_) | Name::Service(_) => (
                "identity",
                identity::FIRST_SPIFFE,
                identity::FIRST_CLASS,
                &mut self.identities,
            ),
            Name::Class(_) => (
                "address class",
                identity::FIRST_CLASS,
                identity::LIMIT,
                &mut self.classes,
            ),
        };
        let number = if first + *used < limit {
            *used += 1;
            first + *used - 1
        } else {
            let number = self.free.range(first..limit).next().copied();
            number.ok_or(OutOfNumbers {
                kind,
                limit: limit - first,
            })?
        };
        self.free.remove(&number);
        self.names.insert(name.clone(), number);
        self.services += u32::from(is_service(name));
        Ok(number)
    }

    /// Gives `rule` a number if it has none.
    ///
    /// # Errors
    /// When all are used.
    pub fn intern_rule(&mut self, rule: &RuleRef) -> Result<u32, OutOfNumbers> {
        if let Some(number) = self.rule(rule) {
            return Ok(number);
        }
        let number = if self.rule_count + 1 < RULE_LIMIT {
            self.rule_count += 1;
            self.rule_count
        } else {
            self.free_rules.pop_first().ok_or(OutOfNumbers {
                kind: "rule",
                limit: RULE_LIMIT,
            })?
        };
        self.name_rule(rule.clone(), number);
        Ok(number)
    }
}

const fn is_service(name: &Name) -> bool {
    matches!(name, Name::Service(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spiffe(name: &str) -> Name {
        Name::Spiffe(format!("spiffe://td/{name}").parse().unwrap())
    }

    #[test]
    fn a_number_is_given_once_and_kept() {
        let mut numbers = Numbers::default();
        let a = numbers.intern(&spiffe("a")).unwrap();
        let b = numbers.intern(&spiffe("b")).unwrap();
        assert_eq!((a, b), (256, 257));
        assert_eq!(numbers.intern(&spiffe("a")), Ok(a));
    }

    #[test]
    fn a_number_that_was_seen_is_not_given_again() {
        let mut numbers = Numbers::default();
        numbers.adopt(spiffe("a"), 300);
        numbers.reserve(400);
        assert_eq!(numbers.intern(&spiffe("b")), Ok(401));
        numbers.reserve_rule(9);
        let rule = RuleRef {
            policy: "p".into(),
            number: 1,
        };
        assert_eq!(numbers.intern_rule(&rule), Ok(10));
    }

    #[test]
    fn rules_are_found_by_their_names_in_whatever_order_they_came() {
        let rule = |policy: &str, number| RuleRef {
            policy: policy.into(),
            number,
        };
        let mut numbers = Numbers::default();
        let order = [
            ("p", 9),
            ("p", 1),
            ("q", 2),
            ("p", 2),
            ("p", u32::MAX),
            ("p", 0),
        ];
        let given = order.map(|(policy, number)| {
            let rule = rule(policy, number);
            let given = numbers.intern_rule(&rule).unwrap();
            (rule, given)
        });
        let mut sorted = given.to_vec();
        sorted.sort();
        assert_eq!(numbers.rules().collect::<Vec<_>>(), sorted);
        for (rule, number) in &given {
            assert_eq!(numbers.rule(rule), Some(*number));
        }
        for (policy, number) in [("p", 3), ("p", 8), ("q", 1), ("r", 1)] {
            assert_eq!(numbers.rule(&rule(policy, number)), None);
        }
        let [first, _, of_q, ..] = given.map(|(_, number)| number);
        numbers.release(&BTreeSet::new(), &BTreeSet::from([first, of_q]));
        assert_eq!(numbers.rule(&rule("p", 9)), None);
        assert_eq!(numbers.rules().count(), 4);
        assert!(numbers.rules_of("q").is_none(), "nothing is left of it");
    }

    #[test]
    fn a_number_that_was_given_back_is_given_when_there_is_no_other() {
        let mut numbers = Numbers::default();
        let (a, b) = (spiffe("a"), spiffe("b"));
        let all = numbers.free();
        let first = numbers.intern(&a).unwrap();
        assert_eq!(numbers.free(), (all.0 - 1, all.1, all.2));
        numbers.release(&BTreeSet::from([first]), &BTreeSet::new());
        assert_eq!((numbers.get(&a), numbers.count()), (None, (0, 0)));
        assert_eq!(numbers.intern(&b), Ok(first + 1));
        numbers.reserve(identity::FIRST_CLASS - 1);
        assert_eq!(numbers.intern(&a), Ok(first));
        assert!(numbers.intern(&spiffe("c")).is_err());
        // A class gets none of theirs.
        numbers.release(&BTreeSet::from([first]), &BTreeSet::new());
        numbers.reserve(identity::LIMIT - 1);
        let class = Name::Class("10.0.0.0/8".parse().unwrap());
        assert!(numbers.intern(&class).is_err());
        assert_eq!(numbers.intern(&spiffe("c")), Ok(first));

        let rule = |number| RuleRef {
            policy: "p".into(),
            number,
        };
        numbers.reserve_rule(RULE_LIMIT - 1);
        assert!(numbers.intern_rule(&rule(1)).is_err());
        assert_eq!(numbers.free(), (0, 0, 0));
        numbers.release(&BTreeSet::new(), &BTreeSet::from([7]));
        assert_eq!(numbers.intern_rule(&rule(1)), Ok(7));
        assert!(numbers.intern_rule(&rule(2)).is_err());
    }

    #[test]
    fn services_have_a_part_of_the_numbers_and_get_it_back() {
        let service = |port: u32| {
            let text = format!("service ns/s{port} (spiffe://td/a at 1, spiffe://td/b at 1)");
            Name::Service(Arc::new(text.parse().unwrap()))
        };
        let mut numbers = Numbers::default();
        numbers.adopt(service(0), 300);
        numbers.adopt(service(0), 300);
        for number in 1..SERVICE_LIMIT {
            numbers.intern(&service(number)).unwrap();
        }
        assert_eq!(numbers.services(), (SERVICE_LIMIT as usize, 0));
        assert_eq!(numbers.intern(&service(1)), Ok(301));
        let error = numbers.intern(&service(SERVICE_LIMIT)).unwrap_err();
        assert_eq!((error.kind, error.limit), ("Service", SERVICE_LIMIT));
        numbers.intern(&spiffe("a")).unwrap();
        numbers.release(&BTreeSet::from([300, 301]), &BTreeSet::new());
        assert_eq!(numbers.services(), (SERVICE_LIMIT as usize - 2, 2));
        numbers.intern(&service(SERVICE_LIMIT)).unwrap();
    }

    #[test]
    fn the_ranges_end() {
        let mut numbers = Numbers::default();
        numbers.reserve(identity::FIRST_CLASS - 1);
        assert!(numbers.intern(&spiffe("a")).is_err());
        let class = Name::Class("10.0.0.0/8".parse().unwrap());
        assert_eq!(numbers.intern(&class), Ok(identity::FIRST_CLASS));
        numbers.reserve(identity::LIMIT - 1);
        let other = Name::Class("11.0.0.0/8".parse().unwrap());
        assert!(numbers.intern(&other).is_err());
    }
}
