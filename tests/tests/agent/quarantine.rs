//! Who is quarantined stays cut off, whatever becomes of the agent.

use std::time::{Duration, Instant};

use crate::stage::{CLIENT, Settings, Stage};

fn add(stage: &Stage) {
    stage.tell(&["quarantine", "add", CLIENT, "--reason", "odd traffic"]);
}

fn remove(stage: &Stage) {
    stage.tell(&["quarantine", "remove", CLIENT]);
}

#[test]
fn a_live_agent_cuts_off_at_once_and_lets_go_at_once() {
    let stage = Stage::running(Settings::default());
    stage.passes(&stage.client);
    add(&stage);
    stage.is_denied(&stage.client);
    let list = stage.tell(&["quarantine", "list"]).output;
    assert!(
        list.contains(CLIENT) && list.contains("odd traffic"),
        "{list}"
    );
    remove(&stage);
    stage.passes(&stage.client);
}

#[test]
fn a_quarantine_needs_no_agent_and_outlives_a_restart() {
    let mut stage = Stage::running(Settings::default());
    stage.passes(&stage.client);
    stage.agent.kill().unwrap();
    add(&stage);
    stage.is_denied(&stage.client);
    stage.agent.start().unwrap();
    stage.is_denied(&stage.client);
    stage.agent.kill().unwrap();
    remove(&stage);
    stage.passes(&stage.client);
    stage.agent.start().unwrap();
    stage.passes(&stage.client);
}

/// `cleanup` takes all kernel state, as a reboot does; the files stay.
#[test]
fn after_a_reboot_nothing_of_a_quarantined_identity_passes_from_the_first_packet_on() {
    let began = Instant::now();
    let mut stage = Stage::running(Settings::default());
    // Long enough for another start, however slow this machine is.
    let run = Duration::from_millis(5000).max(began.elapsed() * 4);
    add(&stage);
    stage.agent.stop().unwrap();
    stage.tell(&["cleanup"]);
    // Through the start; it passes as long as nothing is attached.
    let talk = stage.looping(&stage.client, run);
    stage.agent.start().unwrap();
    let summary = talk.summary().unwrap();
    stage.is_denied(&stage.client);
    assert!(summary.ok > 0, "it talked before the start: {summary:?}");
    assert!(
        summary.failed.contains_key("EPERM"),
        "and after it: {summary:?}"
    );
    // The kernel's own counters, from the moment of attaching on.
    let source = format!("source=\"{CLIENT}\"");
    let decided = |word| {
        let decision = format!("decision=\"{word}\"");
        stage.metric("zt_decisions_total", &[&decision, &source])
    };
    assert_eq!(decided("allow"), 0.0);
    assert!(decided("deny") > 0.0);
}
