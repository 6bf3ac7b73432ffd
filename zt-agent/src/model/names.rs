//! Numbers for names: what the kernel calls an identity, a class, a rule.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use zt_common::identity::{self, Number};

use super::{policy::RuleRef, spiffe::SpiffeId};

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    Spiffe(SpiffeId),
    /// The addresses whose longest matching policy prefix is this one.
    Class(IpNet),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(id) => id.fmt(f),
            Self::Class(net) => write!(f, "cidr:{net}"),
        }
    }
}

/// The numbers given out on this node. They only grow: a number is not used
/// again for another name while the pinned maps live, because flows, counters
/// and audit records still refer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    names: BTreeMap<Name, Number>,
    rules: BTreeMap<RuleRef, u32>,
}

/// No numbers are left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no {kind} numbers are left ({limit} in use): run `zt-agent cleanup` and start again to reuse the dead ones"
)]
pub struct OutOfNumbers {
    pub kind: &'static str,
    pub limit: u32,
}

/// Rules have numbers 1 to this.
pub const RULE_LIMIT: u32 = 65_536;

impl Numbers {
    /// The number of a name, if it has one.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<Number> {
        self.names.get(name).copied()
    }

    /// The number of a rule, if it has one.
    #[must_use]
    pub fn rule(&self, rule: &RuleRef) -> Option<u32> {
        self.rules.get(rule).copied()
    }

    /// All names with their numbers.
    pub fn names(&self) -> impl Iterator<Item = (&Name, Number)> {
        self.names.iter().map(|(name, number)| (name, *number))
    }

    /// All rules with their numbers.
    pub fn rules(&self) -> impl Iterator<Item = (&RuleRef, u32)> {
        self.rules.iter().map(|(rule, number)| (rule, *number))
    }

    /// Takes over a number that a pinned map already gives to `name`.
    pub fn adopt(&mut self, name: Name, number: Number) {
        self.names.insert(name, number);
    }

    /// Takes over a number that a pinned map already gives to `rule`.
    pub fn adopt_rule(&mut self, rule: RuleRef, number: u32) {
        self.rules.insert(rule, number);
    }

    /// Gives `name` a number if it has none.
    ///
    /// # Errors
    /// When the range for its kind is used up.
    pub fn intern(&mut self, name: &Name) -> Result<Number, OutOfNumbers> {
        if let Some(number) = self.get(name) {
            return Ok(number);
        }
        let (kind, first, limit) = match name {
            Name::Spiffe(_) => ("identity", identity::FIRST_SPIFFE, identity::FIRST_CLASS),
            Name::Class(_) => ("address class", identity::FIRST_CLASS, identity::LIMIT),
        };
        let used = self.names.values().filter(|n| (first..limit).contains(*n));
        let number = used.max().map_or(first, |highest| highest + 1);
        if number >= limit {
            return Err(OutOfNumbers {
                kind,
                limit: limit - first,
            });
        }
        self.names.insert(name.clone(), number);
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
        let number = self.rules.values().max().map_or(1, |highest| highest + 1);
        if number >= RULE_LIMIT {
            return Err(OutOfNumbers {
                kind: "rule",
                limit: RULE_LIMIT,
            });
        }
        self.rules.insert(rule.clone(), number);
        Ok(number)
    }
}
