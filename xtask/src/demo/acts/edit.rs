//! The policy is edited while the services talk.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{LIMIT, cell, is_refused, milliseconds};
use crate::demo::Demo;
use crate::demo::services::{Service, Transport};

/// A change must be in force within this.
const PROMPT: Duration = Duration::from_secs(1);
/// How long we look, so that a late change is told from none.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("The policy file is edited while the services talk");
    let asked = cell(Service::Chat, Service::Postgres, Transport::Tcp4);
    let talking = cell(Service::Gateway, Service::Postgres, Transport::Tcp6);
    let before = demo.attempt(asked)?;
    demo.check(is_refused(&before), &format!("{asked} is denied"));
    let talk = demo.stage.workload(talking.from).tcp_loop(
        demo.stage.address(talking.to, talking.transport),
        Duration::from_millis(2500),
        Duration::from_millis(5),
        LIMIT,
    )?;
    let edited = demo.agent.files.document_with_chat_to_postgres()?;
    let (start, took) = save(demo, &edited, |demo, start| {
        demo.attempt_until(asked, start, PATIENCE, |attempt| attempt.replied())
    })?;
    verdict(demo, took, "a rule for it is added: it passes");
    let rest = Duration::from_millis(300).saturating_sub(start.elapsed());
    std::thread::sleep(rest);
    let original = demo.agent.files.document().to_owned();
    let (_, took) = save(demo, &original, |demo, start| {
        demo.attempt_until(asked, start, PATIENCE, is_refused)
    })?;
    verdict(demo, took, "the rule is removed: it is denied again");
    let summary = talk.summary()?;
    demo.tally.looped(talking, &summary);
    let (ok, failed) = (summary.ok, &summary.failed);
    demo.check(
        ok > 0 && failed.is_empty(),
        &format!("{talking} connected {ok} times meanwhile, failures: {failed:?}"),
    );
    Ok(())
}

/// Saves the policy, then looks for the effect.
fn save<T>(
    demo: &mut Demo<'_>,
    text: &str,
    look: impl FnOnce(&mut Demo<'_>, Instant) -> Result<T>,
) -> Result<(Instant, T)> {
    let start = Instant::now();
    demo.agent.files.write_policy(text)?;
    Ok((start, look(demo, start)?))
}

fn verdict(demo: &mut Demo<'_>, took: Option<Duration>, claim: &str) {
    let prompt = took.is_some_and(|took| took < PROMPT);
    demo.check(prompt, &format!("{claim}, after {}", milliseconds(took)));
}
