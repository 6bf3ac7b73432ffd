//! Decisions are shown as they are made.

use serde_json::Value;
use zt_tests::process::Running;

use crate::stage::{CLIENT, OTHER, PATIENT, PROMPT, SERVER, Settings, Stage, wait};

/// Starts `observe`, and waits until it listens.
fn observe(stage: &Stage, arguments: &[&str]) -> Running {
    let arguments = [&["observe", "-o", "json"], arguments].concat();
    let running = stage.agent.attend(&arguments, None).unwrap();
    wait(PATIENT, || stage.status()["agent"]["observers"] == 1);
    running
}

/// The first record with this decision by this source.
fn shown(running: &Running, decision: &str, source: &str) -> Value {
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let line = running.wait_for(PROMPT, |line| {
        let record = parse(line);
        record["decision"] == decision && record["source"]["spiffe_id"] == source
    });
    parse(&line.unwrap())
}

#[test]
fn an_allowed_and_a_denied_connection_are_shown_within_a_second() {
    let stage = Stage::running(Settings::default());
    let running = observe(&stage, &[]);
    stage.passes(&stage.client);
    let allowed = shown(&running, "ALLOW", CLIENT);
    assert_eq!(allowed["policy_matched"], "core/rule-1");
    stage.is_denied(&stage.other);
    let denied = shown(&running, "DENY", OTHER);
    assert_eq!(denied["policy_matched"], Value::Null);
    for record in [&allowed, &denied] {
        assert_eq!(record["destination"]["spiffe_id"], SERVER);
        assert_eq!(record["destination"]["port"], 8080);
        assert_eq!(record["protocol"], "TCP");
    }
}

#[test]
fn it_ends_after_as_many_as_were_asked_for() {
    let stage = Stage::running(Settings::default());
    let mut running = observe(&stage, &["--verdict", "deny", "--count", "2"]);
    stage.passes(&stage.client);
    for _ in 0..3 {
        stage.is_denied(&stage.other);
    }
    let (status, lines) = running.finish(PATIENT).unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.contains("\"decision\":\"DENY\"")),
        "{lines:?}"
    );
}
