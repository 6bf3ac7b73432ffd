//! Memory and processor of an agent with many identities and rules.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use zt_agent::{
    admin::{client, protocol::Enrol},
    source::quarantine::SpiffeIdText,
};
use zt_tests::{cgroup::Cgroup, interrupt, node::identity};

use super::stage::Stage;
use crate::PORTS;

const IDENTITIES: u32 = 10_000;
const ENTRIES: u32 = 65_536;
/// Workloads that come, and go, each second.
const CHURN: u32 = 100;
/// Who makes them come and go: so many that none comes late because another waits.
const HANDS: u32 = 64;

/// Durations in seconds, memory in KiB, processors as parts of one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Size {
    pub identities: u32,
    pub entries: u64,
    pub ready: f64,
    pub idle_resident: u64,
    pub idle_processor: f64,
    pub churn_seconds: f64,
    /// Workloads that came and went, each second.
    pub churned: f64,
    pub churn_resident: u64,
    pub churn_processor: f64,
    /// The most that was ever resident.
    pub most_resident: u64,
    /// From the request until it was in force, milliseconds.
    pub enrolled: Vec<f64>,
}

/// # Errors
/// When the agent cannot be started or refuses a workload, and when interrupted.
pub fn run(agent: &Path, seconds: u64, say: &mut dyn FnMut(&str)) -> Result<Size> {
    say(&format!(
        "an agent with {IDENTITIES} identities and {ENTRIES} entries"
    ));
    let (stage, ready) = Stage::new(agent, IDENTITIES, ENTRIES / u32::from(PORTS))?;
    let mut size = Size {
        identities: IDENTITIES,
        entries: entries(&stage)?,
        ready: ready.as_secs_f64(),
        ..Size::default()
    };
    let window = Duration::from_secs(seconds);
    say("idle");
    // What the start left over.
    wait(Duration::from_secs(2))?;
    let before = stage.processor()?;
    wait(window)?;
    size.idle_processor = (stage.processor()? - before).as_secs_f64() / window.as_secs_f64();
    size.idle_resident = stage.kibibytes("VmRSS:")?;
    say(&format!("{CHURN} workloads a second come and go"));
    let before = stage.processor()?;
    let start = Instant::now();
    size.enrolled = churn(&stage, window)?;
    let took = start.elapsed().as_secs_f64();
    size.churn_processor = (stage.processor()? - before).as_secs_f64() / took;
    size.churn_seconds = took;
    size.churned = f64::from(u32::try_from(size.enrolled.len())?) / took;
    size.churn_resident = stage.kibibytes("VmRSS:")?;
    size.most_resident = stage.kibibytes("VmHWM:")?;
    Ok(size)
}

fn wait(window: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < window {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn entries(stage: &Stage) -> Result<u64> {
    let status = stage.status()?;
    let maps = status["kernel"]["maps"].as_array();
    let maps = maps.context("no maps in the status")?;
    let policy = maps.iter().find(|map| map["name"] == "zt_policy_v1");
    let used = policy.and_then(|map| map["rows"].as_u64());
    used.with_context(|| format!("no zt_policy_v1 in {maps:?}"))
}

/// Several at once, each at its time.
fn churn(stage: &Stage, window: Duration) -> Result<Vec<f64>> {
    let socket = stage.socket();
    let next = AtomicU32::new(0);
    let start = Instant::now();
    let hand = |hand: u32| -> Result<Vec<f64>> {
        let mut took = Vec::new();
        loop {
            interrupt::check()?;
            let number = next.fetch_add(1, Ordering::Relaxed);
            let due = Duration::from_secs(1) / CHURN * number;
            if due > window || start.elapsed() > window {
                return Ok(took);
            }
            thread::sleep(due.saturating_sub(start.elapsed()));
            let cgroup = stage.managed.child(&format!("churn-{hand}-{number}"))?;
            took.push(come_and_go(&socket, &cgroup, number)?);
        }
    };
    thread::scope(|scope| {
        let hands: Vec<_> = (0..HANDS)
            .map(|number| scope.spawn(move || hand(number)))
            .collect();
        let mut all = Vec::new();
        for hand in hands {
            let took = hand.join().map_err(|_| anyhow!("a thread panicked"))?;
            all.extend(took?);
        }
        Ok(all)
    })
}

/// Milliseconds until it was enrolled.
fn come_and_go(socket: &Path, cgroup: &Cgroup, number: u32) -> Result<f64> {
    let request = Enrol {
        spiffe_id: SpiffeIdText(identity(&format!("churn/{}", number % 64)).parse()?),
        cgroup: cgroup.path().to_owned(),
        ports: Vec::new(),
        mode: None,
    };
    let start = Instant::now();
    let held = client::enrol(socket, request)?;
    let took = start.elapsed();
    drop(held);
    fs::remove_dir(cgroup.path()).with_context(|| cgroup.path().display().to_string())?;
    Ok(took.as_secs_f64() * 1_000.0)
}
