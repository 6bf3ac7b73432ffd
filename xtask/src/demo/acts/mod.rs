//! The acts of the demo, in their order.

mod audit_mode;
mod before;
mod beneath;
mod edit;
mod end;
mod enforce;
mod quarantine;
mod questions;
mod restart;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use zt_tests::report::Attempt;

use super::Demo;
use super::services::{Cell, Service, Transport};
use super::tally::is_refused;
use zt_tests::interrupt;

type Act = fn(&mut Demo<'_>) -> Result<()>;

pub const ALL: [Act; 9] = [
    before::play,
    enforce::play,
    questions::play,
    beneath::play,
    edit::play,
    restart::play,
    audit_mode::play,
    quarantine::play,
    end::play,
];

/// What a single attempt may take; denials are immediate, answers quick.
const LIMIT: Duration = Duration::from_millis(400);

fn cell(from: Service, to: Service, transport: Transport) -> Cell {
    Cell {
        from,
        to,
        transport,
    }
}

impl Demo<'_> {
    /// One attempt, counted as one that is made under enforcement.
    fn attempt(&mut self, cell: Cell) -> Result<Attempt> {
        interrupt::check()?;
        let attempt = self.stage.attempt(cell, LIMIT)?;
        self.tally.attempt(cell, &attempt);
        Ok(attempt)
    }

    /// Repeats an attempt until it ends as wanted. Gives the time since `start`,
    /// or nothing if that took longer than `limit`.
    fn attempt_until(
        &mut self,
        cell: Cell,
        start: Instant,
        limit: Duration,
        wanted: impl Fn(&Attempt) -> bool,
    ) -> Result<Option<Duration>> {
        while start.elapsed() < limit {
            if wanted(&self.attempt(cell)?) {
                return Ok(Some(start.elapsed()));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(None)
    }
}

/// What an attempt ended with, for a claim.
fn ending(attempt: &Attempt) -> String {
    match (&attempt.reply, &attempt.errno) {
        (Some(reply), _) => format!("answered {reply:?}"),
        (None, Some(errno)) => format!("{errno} after {} µs", attempt.elapsed_us),
        (None, None) => "no answer and no error".to_owned(),
    }
}

fn milliseconds(duration: Option<Duration>) -> String {
    duration.map_or_else(
        || "not within the limit".to_owned(),
        |duration| format!("{:.0} ms", duration.as_secs_f64() * 1000.0),
    )
}
