//! The policy in force, with `observe` attached.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use zt_tests::process::Running;

use super::{cell, is_refused};
use crate::demo::round::{Expected, Round};
use crate::demo::services::{Cell, Service, Transport};
use crate::demo::trail::Decided;
use crate::demo::{Demo, paint};
use zt_tests::interrupt;

/// How many of the streaming denials are shown.
const SHOWN: usize = 10;

/// A caller that is told later than this was not told at once, in microseconds.
const AT_ONCE_US: u64 = 10_000;

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("The policy in force: zt-agent run, mode enforce");
    demo.say(&paint::dim(&without_comments(demo.agent.files.document())));
    let took = demo.agent.start()?;
    demo.say(&format!("the agent is ready after {} ms", took.as_millis()));
    let observe = demo.agent.observe()?;
    let seen = attach(demo, &observe)?;
    demo.say("zt-agent observe, the first denials as they stream:");
    let round = streaming(demo, &observe, seen)?;
    demo.tally.enforced(&round);
    demo.check_round(
        &round,
        "as the policy says, at the caller and at the receiver",
    );
    check_refusals(demo, &round);
    check_stream(demo, &observe, seen)
}

fn without_comments(document: &str) -> String {
    let said = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
    document.lines().filter(said).collect::<Vec<_>>().join("\n")
}

/// Until `observe` shows decisions. Gives how many lines that took.
fn attach(demo: &mut Demo<'_>, observe: &Running) -> Result<usize> {
    let start = Instant::now();
    while observe.lines().is_empty() {
        if start.elapsed() > Duration::from_secs(5) {
            bail!("`zt-agent observe` shows nothing for 5 s");
        }
        let denied = cell(Service::Redis, Service::Chat, Transport::Tcp4);
        if !is_refused(&demo.attempt(denied)?) {
            bail!("{denied} is not denied although the agent is ready");
        }
        sleep(Duration::from_millis(20));
    }
    Ok(observe.lines().len())
}

/// Runs the round, and prints denials while it runs.
fn streaming(demo: &mut Demo<'_>, observe: &Running, seen: usize) -> Result<Round> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let printer = scope.spawn(|| print_denials(observe, seen, &over));
        let round = Round::run(&mut demo.stage, Expected::Policy);
        over.store(true, Ordering::Release);
        let printed = printer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        demo.checks.say(&paint::dim(&format!("… {printed} shown")));
        round
    })
}

fn print_denials(observe: &Running, mut seen: usize, over: &AtomicBool) -> usize {
    let mut printed = 0;
    loop {
        let last = over.load(Ordering::Acquire);
        let lines = observe.lines();
        for line in &lines[seen..] {
            let denied = Decided::parse(line)
                .ok()
                .filter(|decided| decided.decision == "DENY");
            if let (Some(decided), true) = (denied, printed < SHOWN) {
                println!("   {}", decided.line());
                printed += 1;
            }
        }
        seen = lines.len();
        if last {
            return printed;
        }
        sleep(Duration::from_millis(10));
    }
}

fn check_refusals(demo: &mut Demo<'_>, round: &Round) {
    let median = round.median_refusal_us();
    let text = median.map_or_else(
        || "none was".to_owned(),
        |median| format!("{median} µs in the median"),
    );
    demo.check(
        median.is_some_and(|median| median < AT_ONCE_US),
        &format!("a denied connect() gets EPERM at once: {text}"),
    );
}

/// Every denial must have been in the stream, the last within a second or two.
fn check_stream(demo: &mut Demo<'_>, observe: &Running, seen: usize) -> Result<()> {
    let expected: BTreeSet<Cell> = Cell::all().filter(|cell| !cell.permitted()).collect();
    let start = Instant::now();
    loop {
        interrupt::check()?;
        let (streamed, reasons) = denials(&observe.lines()[seen..])?;
        // The one that `attach` asked about is only repeated.
        let missing: Vec<&Cell> = (expected.difference(&streamed))
            .filter(|missing| **missing != cell(Service::Redis, Service::Chat, Transport::Tcp4))
            .collect();
        if missing.is_empty() || start.elapsed() > Duration::from_secs(3) {
            let mut claim = format!("observe streamed every denial, reasons {reasons:?}");
            if !missing.is_empty() {
                let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
                claim = format!("{claim}; missing: {}", names.join(", "));
            }
            demo.check(missing.is_empty(), &claim);
            let none: Vec<String> = streamed
                .difference(&expected)
                .map(ToString::to_string)
                .collect();
            demo.check(none.is_empty(), &format!("and no other: {none:?}"));
            return Ok(());
        }
        sleep(Duration::from_millis(20));
    }
}

/// The cells that were denied at their clients, and for which reasons.
fn denials(lines: &[String]) -> Result<(BTreeSet<Cell>, BTreeSet<String>)> {
    let mut cells = BTreeSet::new();
    let mut reasons = BTreeSet::new();
    for line in lines {
        let decided = Decided::parse(line)?;
        if decided.decision == "DENY" && decided.is_call() {
            cells.extend(decided.cell());
            reasons.insert(decided.reason);
        }
    }
    Ok((cells, reasons))
}
