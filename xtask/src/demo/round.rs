//! One round: every service tries every other, in every way, at the same time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use zt_tests::report::Attempt;

use super::paint;
use super::services::{Cell, Service, Transport, is_permitted};
use super::stage::Stage;

/// For what ought to pass: generous, since it is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// For what ought to be denied, should it be dropped and not refused.
const IMPATIENCE: Duration = Duration::from_millis(400);

/// What ought to happen in a round.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Everything passes.
    Everything,
    /// What the policy document permits.
    Policy,
}

impl Expected {
    pub fn passes(self, cell: Cell) -> bool {
        self == Self::Everything || cell.permitted()
    }
}

/// What became of one cell, at both ends.
pub struct Outcome {
    pub attempt: Attempt,
    /// Requests that came to the one asked.
    pub arrived: usize,
}

impl Outcome {
    /// The answer came, of one request.
    pub fn passed(&self) -> bool {
        self.attempt.replied() && self.arrived == 1
    }

    /// The caller was told, and nothing arrived.
    pub fn was_denied(&self) -> bool {
        self.attempt.errno.as_deref() == Some("EPERM") && self.arrived == 0
    }
}

pub struct Round {
    expected: Expected,
    pub outcomes: BTreeMap<Cell, Outcome>,
}

impl Round {
    /// Runs all 80 cells.
    pub fn run(stage: &mut Stage, expected: Expected) -> Result<Self> {
        stage.arrivals()?;
        let attempts = attempts(stage, expected)?;
        let arrivals = stage.arrivals()?;
        let outcomes = attempts.into_iter().map(|(cell, attempt)| {
            let arrived = arrivals.get(&cell).copied().unwrap_or(0);
            (cell, Outcome { attempt, arrived })
        });
        Ok(Self {
            expected,
            outcomes: outcomes.collect(),
        })
    }

    fn is_right(&self, cell: Cell) -> bool {
        let outcome = &self.outcomes[&cell];
        if self.expected.passes(cell) {
            outcome.passed()
        } else {
            outcome.was_denied()
        }
    }

    /// The cells that went otherwise than expected, with what was seen.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self
            .outcomes
            .iter()
            .filter(|(cell, _)| !self.is_right(**cell));
        wrong
            .map(|(cell, outcome)| {
                let should = if self.expected.passes(*cell) {
                    "pass"
                } else {
                    "be denied"
                };
                format!("{cell} should {should}: {}", describe(outcome))
            })
            .collect()
    }

    /// The median time in which a denied TCP connect was refused, in microseconds.
    pub fn median_refusal_us(&self) -> Option<u64> {
        let tcp = |cell: &Cell| matches!(cell.transport, Transport::Tcp4 | Transport::Tcp6);
        let denied = self
            .outcomes
            .iter()
            .filter(|(cell, outcome)| tcp(cell) && outcome.was_denied());
        let mut times: Vec<u64> = denied
            .map(|(_, outcome)| outcome.attempt.elapsed_us)
            .collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// The matrix: rows from, columns to; in each field what went and what the
    /// policy document permits.
    pub fn matrix(&self) -> String {
        let mut text = format!("{:<10}", "from ↓ to →");
        for to in Service::ALL {
            let _ = write!(text, "  {to:<9}");
        }
        for from in Service::ALL {
            let _ = write!(text, "\n{:<11}", from.name());
            for to in Service::ALL {
                let _ = write!(text, "  {}", self.field(from, to));
            }
        }
        text.push('\n');
        text + &paint::dim(
            "each field: TCP4 TCP6 UDP4 UDP6 (✓ answered, ✗ denied, ? neither), then what the policy permits",
        )
    }

    /// Nine columns wide.
    fn field(&self, from: Service, to: Service) -> String {
        if from == to {
            return paint::dim("·        ");
        }
        let marks = Transport::ALL.map(|transport| {
            self.mark(Cell {
                from,
                to,
                transport,
            })
        });
        let permitted = if is_permitted(from, to) { "tcp" } else { "-  " };
        format!("{} {} ", marks.concat(), paint::dim(permitted))
    }

    fn mark(&self, cell: Cell) -> String {
        let outcome = &self.outcomes[&cell];
        let mark = match (outcome.passed(), outcome.was_denied()) {
            (true, _) => "✓",
            (_, true) => "✗",
            _ => "?",
        };
        match (self.is_right(cell), outcome.passed()) {
            (false, _) => paint::red(mark),
            (true, true) => paint::green(mark),
            (true, false) => mark.to_owned(),
        }
    }
}

/// A thread for each service and way, as independent clients would.
fn attempts(stage: &Stage, expected: Expected) -> Result<Vec<(Cell, Attempt)>> {
    let work = |from: Service, transport: Transport| {
        let cells =
            Cell::all().filter(move |cell| cell.from == from && cell.transport == transport);
        cells
            .map(|cell| {
                let limit = if expected.passes(cell) {
                    PATIENCE
                } else {
                    IMPATIENCE
                };
                let attempt = stage.attempt(cell, limit);
                Ok((cell, attempt.with_context(|| cell.to_string())?))
            })
            .collect::<Result<Vec<_>>>()
    };
    let clients = Service::ALL
        .into_iter()
        .flat_map(|from| Transport::ALL.map(|transport| (from, transport)));
    thread::scope(|scope| {
        let threads: Vec<_> = clients
            .map(|(from, transport)| scope.spawn(move || work(from, transport)))
            .collect();
        let mut attempts = Vec::with_capacity(Cell::COUNT);
        for thread in threads {
            match thread.join() {
                Ok(done) => attempts.extend(done?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(attempts)
    })
}

fn describe(outcome: &Outcome) -> String {
    let Attempt {
        reply,
        errno,
        elapsed_us,
        ..
    } = &outcome.attempt;
    let what = match (reply, errno) {
        (Some(reply), _) => format!("the answer {reply:?}"),
        (None, Some(errno)) => errno.clone(),
        (None, None) => "neither answer nor error".to_owned(),
    };
    format!("{what} after {elapsed_us} µs; {} arrived", outcome.arrived)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(reply: Option<&str>, errno: Option<&str>, arrived: usize) -> Outcome {
        Outcome {
            attempt: Attempt {
                reply: reply.map(str::to_owned),
                errno: errno.map(str::to_owned),
                ..Attempt::default()
            },
            arrived,
        }
    }

    /// A round that went as the policy says.
    fn right() -> Round {
        let outcomes = Cell::all().map(|cell| {
            let outcome = if cell.permitted() {
                outcome(Some("hello"), None, 1)
            } else {
                outcome(None, Some("EPERM"), 0)
            };
            (cell, outcome)
        });
        Round {
            expected: Expected::Policy,
            outcomes: outcomes.collect(),
        }
    }

    const DENIED: Cell = Cell {
        from: Service::Chat,
        to: Service::Postgres,
        transport: Transport::Tcp4,
    };

    const PERMITTED: Cell = Cell {
        from: Service::Gateway,
        ..DENIED
    };

    #[test]
    fn a_round_that_went_as_the_policy_says_is_right() {
        assert_eq!(right().wrong(), Vec::<String>::new());
    }

    #[test]
    fn a_denial_must_be_told_to_the_caller_and_nothing_may_arrive() {
        let leaks = [
            outcome(Some("hello"), None, 1),
            outcome(None, Some("EPERM"), 1),
            outcome(None, Some("TIMEOUT"), 0),
            outcome(None, Some("ECONNREFUSED"), 0),
        ];
        for leak in leaks {
            let mut round = right();
            let text = describe(&leak);
            round.outcomes.insert(DENIED, leak);
            assert_eq!(round.wrong().len(), 1, "{text}");
        }
    }

    #[test]
    fn what_is_permitted_must_arrive_once_and_be_answered() {
        for failure in [
            outcome(None, Some("EPERM"), 0),
            outcome(None, Some("TIMEOUT"), 1),
            outcome(Some("hello"), None, 0),
            outcome(Some("hello"), None, 2),
        ] {
            let mut round = right();
            round.outcomes.insert(PERMITTED, failure);
            assert_eq!(round.wrong().len(), 1);
        }
    }

    #[test]
    fn where_everything_ought_to_pass_a_denial_is_wrong() {
        let round = Round {
            expected: Expected::Everything,
            ..right()
        };
        assert_eq!(round.wrong().len(), 70);
    }
}
