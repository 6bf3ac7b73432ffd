//! Audit mode passes everything and says what it would deny, save a quarantine.

use std::time::Duration;

use serde_json::Value;
use zt_tests::report::Attempt;

use crate::stage::{CLIENT, OTHER, SERVER, Settings, Stage, is_refused};

/// Decisions of a source at its own end, by their word.
fn decided(stage: &Stage, source: &str, word: &str) -> Vec<Value> {
    let mut records = stage.records();
    records.retain(|record| {
        record["decision"] == word
            && record["source"]["spiffe_id"] == source
            && record["direction"] == "egress"
    });
    records
}

#[test]
fn a_node_in_audit_mode_passes_all_but_the_quarantined() {
    let mut stage = Stage::running(Settings {
        mode: "audit",
        ..Settings::default()
    });
    stage.passes(&stage.client);
    stage.passes(&stage.other);
    stage.tell(&["quarantine", "add", CLIENT]);
    stage.is_denied(&stage.client);
    stage.agent.stop().unwrap();
    assert_eq!(decided(&stage, CLIENT, "ALLOW").len(), 1);
    assert_eq!(decided(&stage, CLIENT, "WOULD_DENY").len(), 0);
    let denied = decided(&stage, CLIENT, "DENY");
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0]["reason"], "quarantined");
    let would = decided(&stage, OTHER, "WOULD_DENY");
    assert_eq!(would.len(), 1, "{:?}", stage.records());
    assert_eq!(would[0]["reason"], "no-policy");
    assert_eq!(would[0]["destination"]["spiffe_id"], SERVER);
}

#[test]
fn a_denial_is_real_if_one_of_both_ends_enforces() {
    let mut stage = Stage::running(Settings {
        audited: &[OTHER, SERVER],
        ..Settings::default()
    });
    let to_another_port = |from: &zt_tests::Workload| -> Attempt {
        let to = (stage.to().ip(), 8081).into();
        from.tcp(to, Duration::from_millis(500)).unwrap()
    };
    stage.passes(&stage.other);
    let other = to_another_port(&stage.other);
    assert_eq!(
        other.errno.as_deref(),
        Some("ECONNREFUSED"),
        "it passed: {other:?}"
    );
    let client = to_another_port(&stage.client);
    assert!(is_refused(&client), "{client:?}");
    stage.agent.stop().unwrap();
    assert_eq!(decided(&stage, OTHER, "WOULD_DENY").len(), 2);
    assert_eq!(decided(&stage, OTHER, "DENY").len(), 0);
    assert_eq!(decided(&stage, CLIENT, "DENY").len(), 1);
}
