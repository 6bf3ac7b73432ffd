//! Decisions made, recorded and lost: what one minus the others is has to be nothing.

use std::env;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zt_tests::interrupt;

use super::{produce::Produced, stage::Stage};

const PEERS: u32 = 8_192;
/// How long the trail may take to have everything.
const SETTLES: Duration = Duration::from_secs(120);
/// How long the producers may.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    pub producers: u32,
    /// Of each.
    pub count: u64,
    /// Of each, a second; 0: as fast as it can.
    pub rate: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub case: Case,
    /// Calls a second, of all producers.
    pub rate: f64,
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
pub fn run(cases: &[Case], say: &mut dyn FnMut(&str)) -> Result<Vec<Outcome>> {
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
        outcomes.push(one(*case)?);
    }
    Ok(outcomes)
}

fn one(case: Case) -> Result<Outcome> {
    let (mut stage, _) = Stage::new(PEERS, PEERS)?;
    let mut producers = Vec::new();
    for number in 0..case.producers {
        let mut command = Command::new(env::current_exe()?);
        command.arg("produce");
        for value in [
            u64::from(number) * case.count,
            case.count,
            case.rate,
            u64::from(PEERS),
        ] {
            command.arg(value.to_string());
        }
        producers.push(stage.run(&mut command)?);
    }
    let mut rate = 0.0;
    for producer in &producers {
        let line = producer
            .wait_for(PATIENCE, |_| true)
            .context("a producer")?;
        let produced: Produced = serde_json::from_str(&line).context(line)?;
        #[expect(clippy::cast_precision_loss, reason = "millions")]
        let calls = produced.calls as f64;
        rate += calls / produced.seconds;
    }
    let start = Instant::now();
    let status = settle(&stage, start)?;
    let settled = start.elapsed().as_secs_f64();
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
