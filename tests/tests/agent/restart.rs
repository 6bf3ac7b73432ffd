//! The agent ends, in order or not, and another takes over.

use std::{
    collections::BTreeMap,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use zt_agent::kernel::{names::NameMaps, pins::Pins};
use zt_tests::{patience, report::Summary};

use crate::stage::{CLIENT, OTHER, PATIENT, SERVER, Settings, Stage, both, wait};

/// The numbers of the identities, by name.
fn numbers(pins: &Path) -> BTreeMap<String, u32> {
    let numbers = NameMaps::open(&Pins::new(pins)).unwrap().read().unwrap();
    (numbers.names())
        .map(|(name, number)| (format!("{name:?}"), number))
        .collect()
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[track_caller]
fn only_passed(summary: &Summary) {
    assert!(summary.ok > 100 && summary.failed.is_empty(), "{summary:?}");
}

#[track_caller]
fn only_refused(summary: &Summary) {
    let refused = summary.failed.get("EPERM").copied().unwrap_or(0);
    assert!(
        summary.ok == 0 && refused > 100 && summary.failed.len() == 1,
        "{summary:?}"
    );
}

/// Every decision is recorded, lost and said so, or on its way.
#[track_caller]
fn adds_up(stage: &Stage) {
    let balance = || {
        let status = stage.status();
        let (kernel, trail) = (&status["kernel"], &status["agent"]["trail"]);
        let lost: u64 = (trail["lost"].as_object().unwrap().values())
            .map(number)
            .sum();
        let known = ["recorded", "pending", "unwritten", "in_ring"]
            .map(|name| number(&trail[name]))
            .iter()
            .sum::<u64>();
        (
            number(&kernel["decisions"]),
            known + lost,
            status.to_string(),
        )
    };
    let (decisions, known, status) = balance();
    assert_eq!(decisions, known, "{status}");
}

#[test]
fn a_killed_agent_is_not_missed_and_the_next_one_takes_over() {
    let began = Instant::now();
    let mut stage = Stage::running(Settings {
        fold_seconds: 30,
        ..Settings::default()
    });
    // Long enough for another start, however slow this machine is.
    let run = patience::scaled(Duration::from_secs(5)).max(began.elapsed() * 6);
    let before = stage.status();
    let known = numbers(&stage.pins());
    assert!(
        [CLIENT, OTHER, SERVER]
            .iter()
            .all(|id| known.keys().any(|name| name.contains(id))),
        "{known:?}"
    );
    let started = Instant::now();
    let good = stage.looping(&stage.client, run);
    let bad = stage.looping(&stage.other, run);
    sleep(Duration::from_millis(500));
    stage.agent.kill().unwrap();
    sleep(Duration::from_millis(700));
    let dead = stage.status();
    assert_eq!(dead["running"], false);
    stage.agent.start().unwrap();
    let after = stage.status();
    assert!(started.elapsed() < run, "the loops ran through all of it");
    only_passed(&good.summary().unwrap());
    only_refused(&bad.summary().unwrap());
    let own = stage.network.ipv4(11).to_string();
    assert!(!stage.received().iter().any(|line| line.contains(&own)));

    let kernel = |status: &Value, name: &str| status["kernel"][name].clone();
    assert_eq!(kernel(&before, "epoch"), kernel(&after, "epoch"));
    // Nothing had changed, so nothing was written; the next change goes on.
    let generation = number(&kernel(&before, "generation"));
    assert_eq!(number(&kernel(&after, "generation")), generation);
    assert_eq!(known, numbers(&stage.pins()));

    // Identical decisions were being folded for seconds when it was killed.
    wait(PATIENT, || {
        stage.metric("zt_audit_lost_total", &["killed"]) > 0.0
    });
    adds_up(&stage);
    stage.write_policy(&both());
    stage.until_other(true);
    assert_eq!(
        number(&kernel(&stage.status(), "generation")),
        generation + 1
    );
    assert!(numbers(&stage.pins()).iter().eq(known.iter()));
    stage.agent.stop().unwrap();
    let records = stage.records();
    let starts: Vec<&str> = (records.iter())
        .filter(|record| record["kind"] == "start")
        .map(|record| record["kernel"].as_str().unwrap())
        .collect();
    assert_eq!(starts, ["fresh", "adopted"]);
    let was_killed = |record: &Value| record["kind"] == "loss" && record["cause"] == "killed";
    assert!(records.iter().any(was_killed), "{records:?}");
    let lost: u64 = (records.iter())
        .filter(|record| record["kind"] == "loss")
        .inspect(|record| {
            // Emulated, the next agent takes so long to start that the ring fills.
            let slow = patience::factor() > 1 && record["cause"] == "ring-full";
            assert!(slow || record["cause"] == "killed", "{record}");
        })
        .map(|record| number(&record["count"]))
        .sum();
    let recorded: u64 = (records.iter())
        .filter(|record| record["kind"] == "decision")
        .map(|record| number(&record["count"]))
        .sum();
    assert_eq!(
        number(&stage.status()["kernel"]["decisions"]),
        recorded + lost
    );
    stage.tell(&["audit", "verify"]);
}

#[test]
fn an_agent_that_is_asked_to_end_has_written_everything_and_enforcement_stays() {
    let mut stage = Stage::running(Settings {
        fold_seconds: 30,
        ..Settings::default()
    });
    for _ in 0..5 {
        stage.passes(&stage.client);
        stage.is_denied(&stage.other);
    }
    stage.agent.stop().unwrap();
    let decided = number(&stage.status()["kernel"]["decisions"]);
    let records = stage.records();
    assert!(records.iter().all(|record| record["kind"] != "loss"));
    let recorded: u64 = (records.iter())
        .filter(|record| record["kind"] == "decision")
        .map(|record| number(&record["count"]))
        .sum();
    assert!(decided >= 15, "5 × (client, server, refused): {decided}");
    assert_eq!(recorded, decided);
    stage.tell(&["audit", "verify"]);
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
}

#[test]
fn cleanup_is_refused_under_an_agent_and_leaves_nothing_afterwards() {
    let mut stage = Stage::running(Settings::default());
    let refused = stage.ask(&["cleanup"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.errors.contains("is running"), "{refused:?}");
    assert!(!stage.pinned().is_empty());
    stage.is_denied(&stage.other);
    stage.agent.stop().unwrap();
    stage.tell(&["cleanup"]);
    assert!(stage.pinned().is_empty(), "{:?}", stage.pinned());
    stage.passes(&stage.other);
    let again = stage.tell(&["cleanup"]);
    assert!(again.output.starts_with("nothing was pinned"), "{again:?}");
}

#[test]
fn a_second_agent_changes_nothing() {
    let mut stage = Stage::running(Settings::default());
    let before = (stage.status(), stage.pinned());
    let second = stage.ask(&["run"]);
    assert_eq!(second.code, 3, "{second:?}");
    assert!(second.errors.contains("already running, pid"), "{second:?}");
    let after = (stage.status(), stage.pinned());
    for what in ["pid", "kernel"] {
        assert_eq!(before.0[what], after.0[what]);
    }
    assert_eq!(before.1, after.1);
    assert_eq!(stage.agent.readiness().unwrap().0, 200);
    stage.is_denied(&stage.other);
    stage.agent.stop().unwrap();
}

#[test]
fn an_agent_whose_port_is_taken_changes_nothing() {
    let stage = Stage::new(Settings::default());
    let _taken = std::net::TcpListener::bind(stage.listen).unwrap();
    let refused = stage.ask(&["run"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.errors.contains("listen"), "{refused:?}");
    assert!(stage.pinned().is_empty(), "{:?}", stage.pinned());
    stage.passes(&stage.other);
}
