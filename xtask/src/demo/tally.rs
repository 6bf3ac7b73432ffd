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

    /// An attempt while the policies are enforced.
    pub fn attempt(&mut self, cell: Cell, attempt: &Attempt) {
        self.add(Kind::of(cell, decision(attempt)), 1);
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
                Decision::Allow if !cell.permitted() => {
                    self.add(Kind::of(*cell, Decision::WouldDeny), 1);
                }
                decision => self.add(Kind::of(*cell, decision), 1),
            }
        }
    }

    /// A connect loop while the policies are enforced.
    pub fn looped(&mut self, cell: Cell, summary: &Summary) {
        for (errno, count) in &summary.failed {
            let decision = of_call(errno == "EPERM");
            self.add(Kind::of(cell, decision), *count);
        }
        self.add(Kind::of(cell, Decision::Allow), summary.ok);
    }
}

/// A client knows whether its call was refused. One that was not was allowed,
/// whatever came of it: a policy can change between the call and the answer.
fn decision(attempt: &Attempt) -> Decision {
    of_call(is_refused(attempt))
}

fn of_call(refused: bool) -> Decision {
    if refused {
        Decision::Deny
    } else {
        Decision::Allow
    }
}

/// Whether connecting, or sending a datagram, was refused by policy.
pub fn is_refused(attempt: &Attempt) -> bool {
    !attempt.connected && attempt.errno.as_deref() == Some("EPERM")
}

#[cfg(test)]
mod tests {
    use super::super::services::Transport;
    use super::*;

    const CELL: Cell = Cell {
        from: Service::Chat,
        to: Service::Postgres,
        transport: Transport::Tcp4,
    };

    fn attempt(connected: bool, errno: &str) -> Attempt {
        Attempt {
            connected,
            errno: Some(errno.to_owned()),
            ..Attempt::default()
        }
    }

    #[test]
    fn a_call_that_was_not_refused_was_allowed_even_if_no_answer_came() {
        let mut tally = Tally::default();
        tally.attempt(CELL, &attempt(false, "EPERM"));
        tally.attempt(CELL, &attempt(true, "TIMEOUT"));
        tally.attempt(CELL, &attempt(true, "EPERM"));
        assert_eq!(tally.total(Decision::Deny), 1);
        assert_eq!(tally.total(Decision::Allow), 2);
    }

    #[test]
    fn a_loop_s_refusals_are_denials_and_its_other_failures_are_not() {
        let mut tally = Tally::default();
        let failed = [("EPERM".to_owned(), 3), ("TIMEOUT".to_owned(), 1)];
        let summary = Summary {
            ok: 5,
            failed: failed.into(),
        };
        tally.looped(CELL, &summary);
        assert_eq!(tally.total(Decision::Deny), 3);
        assert_eq!(tally.total(Decision::Allow), 6);
    }
}
