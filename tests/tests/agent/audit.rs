//! The audit trail notices tampering, and survives a full disk.

use std::{
    fs,
    net::UdpSocket,
    path::Path,
    time::{Duration, Instant},
};

use nix::mount::{MsFlags, mount};
use serde_json::Value;
use zt_tests::{feature::skip, patience::scaled};

use crate::stage::{PATIENT, Settings, Stage, wait};

#[test]
fn one_changed_byte_is_found_and_its_line_named() {
    let mut stage = Stage::running(Settings {
        fold_seconds: 0,
        ..Settings::default()
    });
    for _ in 0..5 {
        stage.passes(&stage.client);
        stage.is_denied(&stage.other);
    }
    stage.agent.stop().unwrap();
    let sound = stage.tell(&["audit", "verify"]);
    assert!(sound.output.contains("every line fits"), "{sound:?}");

    let text = fs::read_to_string(stage.trail()).unwrap();
    let is_denial = |line: &&str| line.contains("\"decision\":\"DENY\"");
    let number = text.lines().position(|line| is_denial(&line)).unwrap() + 1;
    // A denial becomes somebody else's.
    let at = text.find("\"decision\":\"DENY\"").unwrap();
    let at = at + text[at..].find("spiffe://t/other").unwrap() + "spiffe://t/othe".len();
    let mut bytes = text.into_bytes();
    bytes[at] = b'x';
    fs::write(stage.trail(), bytes).unwrap();
    let found = stage.ask(&["audit", "verify"]);
    assert_eq!(found.code, 1, "{found:?}");
    let place = format!("audit.jsonl:{number}: ");
    assert!(found.output.contains(&place), "{place} is not in {found:?}");
}

fn tmpfs(at: &Path, options: &str, flags: MsFlags) {
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options)).unwrap();
}

fn lost(stage: &Stage, cause: &str) -> u64 {
    stage.status()["agent"]["trail"]["lost"][cause]
        .as_u64()
        .unwrap_or(0)
}

/// Lines that wait for the disk before one is lost.
const QUEUE: u64 = 65_536;

fn decisions(stage: &Stage) -> u64 {
    let decisions = &stage.status()["kernel"]["decisions"];
    decisions.as_u64().unwrap()
}

/// Whether the queue cannot be filled in a minute, going by the first flood; the
/// test is skipped then.
fn is_too_slow(stage: &Stage) -> bool {
    let (before, started) = (decisions(stage), Instant::now());
    flood(stage);
    let made = decisions(stage) - before;
    let needed = started.elapsed() * u32::try_from(QUEUE / made.max(1)).unwrap();
    let slow = needed > Duration::from_secs(60);
    if slow {
        skip(&format!(
            "measured the flood that fills the audit queue: it would take {} s",
            needed.as_secs()
        ));
    }
    slow
}

/// Forbidden connections, as many as two processes can try in a second or so.
fn flood(stage: &Stage) {
    let start = |_| {
        let (run, no_pause) = (Duration::from_millis(1500), Duration::ZERO);
        let to = stage.to();
        stage.other.tcp_loop(to, run, no_pause, PATIENT).unwrap()
    };
    let loops: Vec<_> = (0..2).map(start).collect();
    for one in loops {
        let summary = one.summary().unwrap();
        assert_eq!(summary.ok, 0, "{summary:?}");
    }
}

#[test]
fn a_full_disk_stops_no_enforcement_and_what_is_lost_is_counted() {
    let mut stage = Stage::new(Settings {
        fold_seconds: 0,
        audit_file: "small/audit.jsonl",
        ..Settings::default()
    });
    let small = stage.directory().join("small");
    fs::create_dir(&small).unwrap();
    tmpfs(&small, "size=64k", MsFlags::empty());
    stage.agent.start().unwrap();
    if is_too_slow(&stage) {
        return;
    }
    // More decisions than fit into the writer's queue, however fast this is.
    let deadline = Instant::now() + scaled(Duration::from_secs(30));
    while lost(&stage, "sink-error") == 0 {
        assert!(Instant::now() < deadline, "nothing is lost");
        flood(&stage);
    }
    let said = stage.agent.readiness().unwrap();
    assert_eq!(said.0, 503);
    assert!(said.1.contains("audit trail cannot be written"), "{said:?}");
    assert_eq!(stage.ask(&["status"]).code, 1);
    stage.passes(&stage.client);

    tmpfs(&small, "size=256m", MsFlags::MS_REMOUNT);
    wait(Duration::from_secs(20), || {
        stage.agent.readiness().unwrap().0 == 200
    });
    stage.passes(&stage.client);
    stage.agent.stop().unwrap();
    let count = |record: &Value| record["count"].as_u64().unwrap();
    let records = stage.records();
    let sum = |kind: &str| -> u64 {
        let of_kind = records.iter().filter(|record| record["kind"] == kind);
        of_kind.map(count).sum()
    };
    let is_sink = |record: &&Value| record["kind"] == "loss" && record["cause"] == "sink-error";
    assert!(records.iter().any(|record| is_sink(&record)));
    let decided = stage.status()["kernel"]["decisions"].as_u64().unwrap();
    assert_eq!(sum("decision") + sum("loss"), decided);
    let verified = stage.tell(&["audit", "verify"]);
    assert!(verified.output.contains("sink-error"), "{verified:?}");
}

#[test]
fn the_later_fragments_of_denied_datagrams_are_one_record_with_a_count() {
    let stage = Stage::running(Settings {
        on_the_bridge: true,
        fold_seconds: 2,
        ..Settings::default()
    });
    let outside = stage.network.join("outside", 40).unwrap();
    let to = stage.to();
    let send = |datagrams: usize| {
        let work = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..datagrams {
                socket.send_to(&[0x2a; 8000], to)?;
            }
            Ok(())
        };
        outside.enter(work).unwrap();
    };
    // Lines of later fragments, and how many fragments they stand for.
    let fragments = || {
        let records = stage.records();
        let of_fragments = records
            .iter()
            .filter(|record| record["reason"] == "fragment" && record["hook"] == "tc/to-workload");
        let counts: Vec<u64> = of_fragments
            .map(|record| record["count"].as_u64().unwrap())
            .collect();
        (counts.len(), counts.iter().sum::<u64>())
    };
    // 8008 bytes are six packets, of which the first has the ports.
    send(1);
    wait(PATIENT * 4, || fragments().1 == 5);
    assert_eq!(fragments().0, 2, "the first, and all others in one");
    send(20);
    wait(PATIENT * 4, || fragments().1 == 105);
    // A window may have ended in between.
    assert!(fragments().0 <= 2 + 3, "{:?}", fragments());
}
