//! Decisions made, recorded and lost: what one minus the others is has to be nothing.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zt_agent::kernel::ring::Positions;
use zt_tests::interrupt;

use super::{
    produce::{Case, PEERS, Producers, per_second},
    stage::Stage,
};

/// How long the trail may take to have everything.
const SETTLES: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub case: Case,
    /// Calls a second, of all producers.
    pub rate: f64,
    /// Events a second through the ring, until it was empty.
    pub carried: f64,
    pub decisions: u64,
    pub recorded: u64,
    /// By cause.
    pub lost: Vec<(String, u64)>,
    /// Until the file had everything, after the last call.
    pub settled: f64,
}

impl Outcome {
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.iter().map(|(_, count)| count).sum()
    }

    #[must_use]
    pub fn fits(&self) -> bool {
        self.decisions == self.recorded + self.lost()
    }
}

/// One agent after the other, as each trail is to be read whole.
///
/// # Errors
/// When the agent cannot be started, the trail does not settle or is not sound, and
/// when interrupted.
pub fn run(agent: &Path, cases: &[Case], say: &mut dyn FnMut(&str)) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for case in cases {
        say(&format!(
            "{} decisions by {} at once, {} a second each",
            case.count,
            case.producers,
            if case.rate == 0 {
                "any number".to_owned()
            } else {
                case.rate.to_string()
            }
        ));
        outcomes.push(one(agent, *case)?);
    }
    Ok(outcomes)
}

fn one(agent: &Path, case: Case) -> Result<Outcome> {
    let (mut stage, _) = Stage::new(agent, PEERS, PEERS)?;
    let ring = Positions::open(&stage.pins)?;
    let before = ring.consumed()?;
    let start = Instant::now();
    let producers = Producers::start(&stage.client, case)?;
    let rate = producers.rate()?;
    let end = Instant::now();
    let carried = loop {
        interrupt::check()?;
        let consumed = ring.consumed()?;
        if consumed == ring.emitted()? {
            break per_second(consumed - before, start.elapsed());
        }
        ensure!(end.elapsed() < SETTLES, "the ring is not read to its end");
        thread::sleep(Duration::from_millis(1));
    };
    let status = settle(&stage, end)?;
    let settled = end.elapsed().as_secs_f64();
    let trail = &status["agent"]["trail"];
    let number = |value: &Value| {
        value
            .as_u64()
            .with_context(|| format!("no number in {status}"))
    };
    let lost = trail["lost"]
        .as_object()
        .context("no losses in the status")?;
    let lost = lost
        .iter()
        .filter_map(|(cause, count)| Some((cause.clone(), count.as_u64()?)))
        .filter(|(_, count)| *count > 0);
    let outcome = Outcome {
        case,
        rate,
        carried,
        decisions: number(&status["kernel"]["decisions"])?,
        recorded: number(&trail["recorded"])?,
        lost: lost.collect(),
        settled,
    };
    let asked = case.count * u64::from(case.producers);
    ensure!(
        outcome.decisions >= asked,
        "{} decisions of {asked} calls: they are not all of another flow",
        outcome.decisions
    );
    stage.agent.stop()?;
    let verified = stage.agent.ask(&["audit", "verify"])?;
    ensure!(verified.is_success(), "the trail: {}", verified.summary());
    Ok(outcome)
}

/// Waits until nothing is on its way.
fn settle(stage: &Stage, start: Instant) -> Result<Value> {
    loop {
        interrupt::check()?;
        let status = stage.status()?;
        let trail = &status["agent"]["trail"];
        let on_its_way = |name: &str| trail[name].as_u64();
        let all = ["pending", "unwritten", "in_ring"].map(on_its_way);
        if all == [Some(0); 3] {
            return Ok(status);
        }
        ensure!(
            start.elapsed() < SETTLES,
            "the trail does not settle: {trail}"
        );
        thread::sleep(Duration::from_millis(100));
    }
}
