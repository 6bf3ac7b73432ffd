//! Quarantine, a removed rule, a lapsed deadline.

use std::{thread::sleep, time::Duration};

use zt_tests::{patience::scaled, stay::now};

use crate::{
    scene::{FAR, Scene},
    stage::{CLIENT, Settings, Stage, wait},
};

/// What stays whatever happens.
const KEPT: &str = "    - from: {spiffe: spiffe://t/other}
      to: [{spiffe: spiffe://t/server, ports: any}]
";

fn policy(taken: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: core}}\nspec:\n  rules:\n{KEPT}{taken}"
    )
}

/// What is taken away. `more` is written into the rule.
fn taken(more: &str) -> String {
    format!(
        "    - from: [{{spiffe: spiffe://t/client}}, {{spiffe: {FAR}}}]\n      to:\n        - {{spiffe: spiffe://t/server, ports: any, protocol: [TCP, UDP]}}\n        - {{spiffe: {FAR}, ports: any}}\n{more}"
    )
}

/// Of the three pairs, idle and busy, the governed ends.
const ENDS: usize = 8;

/// Every end was counted under its cause and under no other, and its denial
/// is in the audit trail.
fn is_recorded(stage: &Stage, ends: usize, cause: &str) {
    assert_eq!(ends, ENDS);
    let cut = |labels: &[&str]| stage.metric("zt_connections_cut_total", labels);
    let of_cause = cut(&[&format!("cause=\"{cause}\"")]);
    assert_eq!(of_cause, ends as f64, "{cause}");
    assert_eq!(cut(&[]), of_cause);
    let status = stage.status();
    assert_eq!(status["agent"]["connections_cut"][cause], ends, "{status}");
    let log = stage.agent.log();
    assert_eq!(log.matches("a connection was cut").count(), ends, "{log}");
    let records = stage.records();
    let denied = |record: &&serde_json::Value| {
        record["decision"] == "DENY" && record["reason"] == cause && record["protocol"] == "TCP"
    };
    assert!(records.iter().any(|record| denied(&record)));
}

#[test]
fn a_removed_rule_cuts_what_it_had_allowed() {
    let mut scene = Scene::new(Settings::default(), &policy(&taken("")));
    scene.open();
    let since = now();
    scene.stage.write_policy(&policy(""));
    let (stage, ends) = scene.was_cut("removed rule", since);
    sleep(Duration::from_secs(2));
    is_recorded(&stage, ends, "no-policy");
}

#[test]
fn a_quarantine_cuts_everything_of_an_identity() {
    let mut scene = Scene::new(Settings::default(), &policy(&taken("")));
    scene.open();
    let since = now();
    for id in [CLIENT, FAR] {
        scene.stage.tell(&["quarantine", "add", id]);
    }
    let (stage, ends) = scene.was_cut("quarantine", since);
    sleep(Duration::from_secs(2));
    is_recorded(&stage, ends, "quarantined");
}

#[test]
fn a_lapsed_deadline_cuts_what_it_had_granted() {
    let mut scene = Scene::new(Settings::default(), &policy(&taken("")));
    scene.open();
    // Granted from now on, no longer for good: nothing ends yet.
    let generation = scene.stage.metric("zt_generation", &[]);
    let end = Duration::from_secs(wall().as_secs()) + scaled(Duration::from_secs(6));
    let expires = stamp(end);
    let granted = taken(&format!("      expires: {expires}\n"));
    scene.stage.write_policy(&policy(&granted));
    wait(Duration::from_secs(5), || {
        scene.stage.metric("zt_generation", &[]) > generation
    });
    assert_eq!(scene.stage.metric("zt_connections_cut_total", &[]), 0.0);
    let left = end.checked_sub(wall()).expect("the grant came too late");
    let since = now() + u64::try_from(left.as_nanos()).unwrap();
    sleep(left);
    let (stage, ends) = scene.was_cut("lapsed deadline", since);
    sleep(Duration::from_secs(2));
    is_recorded(&stage, ends, "grant-expired");
}

#[test]
fn in_audit_mode_nothing_is_cut() {
    let settings = Settings {
        mode: "audit",
        ..Settings::default()
    };
    let mut scene = Scene::new(settings, &policy(&taken("")));
    scene.open();
    scene.stage.write_policy(&policy(""));
    let generation = scene.stage.metric("zt_generation", &[]);
    wait(Duration::from_secs(5), || {
        scene.stage.metric("zt_generation", &[]) > generation
            || scene
                .stage
                .metric("zt_decisions_by_reason_total", &["no-policy"])
                > 0.0
    });
    let stage = scene.goes_on();
    assert_eq!(stage.metric("zt_connections_cut_total", &[]), 0.0);
}

/// Since the Unix epoch.
pub fn wall() -> Duration {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap()
}

/// RFC 3339, whole seconds, UTC.
pub fn stamp(since_epoch: Duration) -> String {
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap();
    jiff::Timestamp::from_second(seconds).unwrap().to_string()
}
