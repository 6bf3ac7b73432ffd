//! What the clients saw, summed up as the audit trail sums it up.

use std::collections::BTreeMap;
use std::fmt;

use zt_tests::report::{Attempt, Summary};

use super::round::Round;
use super::services::{Cell, Protocol, Service};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    Allow,
    Deny,
    WouldDeny,
}

impl Decision {
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::WouldDeny => "WOULD_DENY",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        let all = [Self::Allow, Self::Deny, Self::WouldDeny];
        all.into_iter().find(|decision| decision.name() == name)
    }
}

/// What is counted as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub from: Service,
    pub to: Service,
    pub protocol: Protocol,
    pub decision: Decision,
}

impl Kind {
    fn of(cell: Cell, decision: Decision) -> Self {
        Self {
            from: cell.from,
            to: cell.to,
            protocol: cell.transport.protocol(),
            decision,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (decision, protocol) = (self.decision.name(), self.protocol.name());
        write!(f, "{decision} {} → {} {protocol}", self.from, self.to)
    }
}

/// Attempts by what their clients can tell of the decision.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    counts: BTreeMap<Kind, u64>,
}

impl Tally {
    pub fn add(&mut self, kind: Kind, count: u64) {
        *self.counts.entry(kind).or_default() += count;
    }

    pub fn get(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.counts.keys().copied()
    }

    pub fn total(&self, decision: Decision) -> u64 {
        let fits = self
            .counts
            .iter()
            .filter(|(kind, _)| kind.decision == decision);
        fits.map(|(_, count)| count).sum()
    }

    /// An attempt while the policies are enforced. One that was neither answered
    /// nor refused had its TCP or UDP decided, we do not know how.
    pub fn attempt(&mut self, cell: Cell, attempt: &Attempt) {
        if let Some(decision) = decision(attempt) {
            self.add(Kind::of(cell, decision), 1);
        }
    }

    /// A round while the policies are enforced.
    pub fn enforced(&mut self, round: &Round) {
        for (cell, outcome) in &round.outcomes {
            self.attempt(*cell, &outcome.attempt);
        }
    }

    /// A round in audit mode: what the document does not permit passed, and would
    /// have been denied.
    pub fn audited(&mut self, round: &Round) {
        for (cell, outcome) in &round.outcomes {
            match decision(&outcome.attempt) {
                Some(Decision::Allow) if !cell.permitted() => {
                    self.add(Kind::of(*cell, Decision::WouldDeny), 1);
                }
                _ => self.attempt(*cell, &outcome.attempt),
            }
        }
    }

    /// A connect loop while the policies are enforced.
    pub fn looped(&mut self, cell: Cell, summary: &Summary) {
        self.add(Kind::of(cell, Decision::Allow), summary.ok);
        let refused = summary.failed.get("EPERM").copied().unwrap_or(0);
        self.add(Kind::of(cell, Decision::Deny), refused);
    }
}

fn decision(attempt: &Attempt) -> Option<Decision> {
    match attempt.errno.as_deref() {
        Some("EPERM") => Some(Decision::Deny),
        _ if attempt.replied() => Some(Decision::Allow),
        _ => None,
    }
}
