//! The trail is checked against what the clients saw, and all is removed.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;

use super::{LIMIT, cell, ending};
use crate::demo::Demo;
use crate::demo::services::{Service, Transport};
use crate::demo::tally::{Decision, Kind};
use crate::demo::trail::Trail;

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("The audit trail, and the end");
    demo.agent.stop()?;
    verify(demo)?;
    let trail = Trail::read(&demo.agent.files.trail())?;
    reconcile(demo, &trail);
    cleanup(demo)
}

fn verify(demo: &mut Demo<'_>) -> Result<()> {
    let answer = demo.agent.ask(&["audit", "verify"])?;
    demo.say(&answer.output);
    let mut claim = "zt-agent audit verify: the trail is sound".to_owned();
    if !answer.is_success() {
        claim = format!("{claim} ({})", answer.summary());
    }
    demo.check(answer.is_success(), &claim);
    Ok(())
}

/// Every decision of a client's call is one that the client saw, and the other
/// way round, save for what the trail itself calls lost.
fn reconcile(demo: &mut Demo<'_>, trail: &Trail) {
    let lost = trail.lost();
    demo.say(&format!(
        "{} decisions recorded; lost: {lost} {:?}",
        trail.recorded, trail.lost
    ));
    let anomalies = &trail.anomalies;
    demo.check(
        anomalies.is_empty(),
        &format!("the trail tells of no anomaly: {anomalies:?}"),
    );
    let kinds: BTreeSet<Kind> = demo.tally.kinds().chain(trail.calls.kinds()).collect();
    let mut missing = 0;
    let mut wrong = Vec::new();
    for kind in kinds {
        let (seen, recorded) = (demo.tally.get(kind), trail.calls.get(kind));
        missing += seen.saturating_sub(recorded);
        if recorded > seen || (lost == 0 && recorded < seen) {
            wrong.push(format!("{kind}: {seen} seen, {recorded} recorded"));
        }
    }
    for decision in [Decision::Allow, Decision::Deny, Decision::WouldDeny] {
        let (seen, recorded) = (demo.tally.total(decision), trail.calls.total(decision));
        demo.say(&format!(
            "{:<10} {seen:>6} seen by clients, {recorded:>6} recorded",
            decision.name()
        ));
    }
    for kind in &wrong {
        demo.check(false, kind);
    }
    demo.check(
        wrong.is_empty() && missing <= lost,
        &format!("the trail holds what the clients saw, by source, destination, protocol and decision; {missing} are among the lost"),
    );
}

fn cleanup(demo: &mut Demo<'_>) -> Result<()> {
    let answer = demo.agent.ask(&["cleanup"])?;
    demo.say(&answer.output);
    demo.check(
        answer.is_success(),
        &format!("zt-agent cleanup: exit code {}", answer.code),
    );
    if !answer.is_success() {
        demo.say(&answer.summary());
    }
    let pins = demo.agent.files.pins();
    let left: Vec<_> = fs::read_dir(pins)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    demo.check(left.is_empty(), &format!("no pins are left: {left:?}"));
    let forbidden = cell(Service::Chat, Service::Postgres, Transport::Tcp4);
    let attempt = demo.stage.attempt(forbidden, LIMIT)?;
    demo.check(
        attempt.replied(),
        &format!(
            "{forbidden} passes, as before everything: {}",
            ending(&attempt)
        ),
    );
    Ok(())
}
