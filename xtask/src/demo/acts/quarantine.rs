//! A quarantine cuts an open connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use zt_tests::report::Attempt;
use zt_tests::workload::Held;

use super::{LIMIT, cell, ending, is_refused};
use crate::demo::Demo;
use crate::demo::services::{Cell, Service, Transport};

/// An answer later than this after the command's end comes over a connection
/// that was not cut.
const PROMPT: Duration = Duration::from_millis(100);
/// How long the connection is watched.
const WATCHED: Duration = Duration::from_millis(1500);

const OPEN: Cell = Cell {
    from: Service::Gateway,
    to: Service::Postgres,
    transport: Transport::Tcp4,
};

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("Quarantine of gateway, with an open connection");
    demo.agent.files.write_config("enforce")?;
    demo.agent.start()?;
    let gateway = Service::Gateway.spiffe();
    cut(demo, &gateway)?;
    let list = demo.agent.ask(&["quarantine", "list"])?;
    demo.say(&list.output);
    demo.check(
        list.is_success() && list.output.contains(&gateway),
        "zt-agent quarantine list names it",
    );
    check_new(demo, false)?;
    let removed = demo.agent.ask(&["quarantine", "remove", &gateway])?;
    demo.check(
        removed.is_success(),
        &with_errors("zt-agent quarantine remove", &removed),
    );
    check_new(demo, true)
}

/// Quarantines while the connection is in use, and watches it stop.
fn cut(demo: &mut Demo<'_>, gateway: &str) -> Result<()> {
    let to = demo.stage.address(OPEN.to, OPEN.transport);
    let mut held = demo.stage.workload(OPEN.from).tcp_held(to, LIMIT)?;
    demo.tally.attempt(OPEN, &held.first);
    ensure!(
        held.first.replied(),
        "{OPEN} cannot be opened: {}",
        ending(&held.first)
    );
    let over = AtomicBool::new(false);
    let (added, start, end, watched) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&mut held, &over));
        sleep(Duration::from_millis(300));
        let start = Instant::now();
        let added = demo
            .agent
            .ask(&["quarantine", "add", gateway, "--reason", "demo"]);
        let end = Instant::now();
        sleep(WATCHED);
        over.store(true, Ordering::Release);
        let watched = watcher
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (added, start, end, watched)
    });
    let (added, watched) = (added?, watched?);
    demo.check(
        added.is_success(),
        &with_errors("zt-agent quarantine add", &added),
    );
    let last = watched.last_answer;
    let before = watched.answers > 1 && last > start - Duration::from_millis(200);
    demo.check(
        before,
        &format!("the connection was in use: {} answers", watched.answers),
    );
    let late = last.saturating_duration_since(start).as_secs_f64() * 1000.0;
    let command = (end - start).as_secs_f64() * 1000.0;
    demo.check(
        last < end + PROMPT && watched.silent > 0,
        &format!(
            "it is cut: the last answer came {late:.1} ms after the command was given, which took {command:.1} ms; \
             then {} attempts without an answer ({})",
            watched.silent,
            watched.last.map_or_else(|| "none".to_owned(), |last| ending(&last))
        ),
    );
    Ok(())
}

struct Watched {
    answers: u64,
    last_answer: Instant,
    /// Attempts after the last answer.
    silent: u64,
    last: Option<Attempt>,
}

/// Uses the connection until told to stop.
fn watch(held: &mut Held, over: &AtomicBool) -> Result<Watched> {
    let mut watched = Watched {
        answers: 1,
        last_answer: Instant::now(),
        silent: 0,
        last: None,
    };
    while !over.load(Ordering::Acquire) {
        let attempt = held.again()?;
        if attempt.replied() {
            watched.answers += 1;
            watched.last_answer = Instant::now();
            watched.silent = 0;
        } else {
            watched.silent += 1;
        }
        watched.last = Some(attempt);
        sleep(Duration::from_millis(1));
    }
    Ok(watched)
}

/// New connections from it and to it.
fn check_new(demo: &mut Demo<'_>, pass: bool) -> Result<()> {
    let word = if pass { "passes again" } else { "is denied" };
    for new in [
        OPEN,
        cell(Service::Gateway, Service::Iam, Transport::Tcp6),
        cell(Service::Chat, Service::Gateway, Transport::Tcp4),
        cell(Service::Chat, Service::Gateway, Transport::Tcp6),
    ] {
        let attempt = demo.attempt(new)?;
        let right = if pass {
            attempt.replied()
        } else {
            is_refused(&attempt)
        };
        demo.check(right, &format!("{new} {word}: {}", ending(&attempt)));
    }
    let other = cell(Service::Iam, Service::Redis, Transport::Tcp4);
    let attempt = demo.attempt(other)?;
    demo.check(
        attempt.replied(),
        &format!("{other} is not concerned: {}", ending(&attempt)),
    );
    Ok(())
}

fn with_errors(claim: &str, answer: &crate::demo::agent::Answer) -> String {
    if answer.is_success() {
        claim.to_owned()
    } else {
        format!("{claim} ({})", answer.summary())
    }
}
