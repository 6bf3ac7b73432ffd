//! What the agent answers when it is asked.

use anyhow::Result;

use crate::demo::Demo;
use crate::demo::services::Service;
use crate::demo::tally::Decision;

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("The counters, and why something is denied");
    metrics(demo)?;
    status(demo)?;
    explain(demo, Service::Chat, Service::Postgres)?;
    explain(demo, Service::Gateway, Service::Postgres)
}

/// The kernel's counters count every decision: a denial is one, at the caller;
/// what is allowed is decided again at the receiver.
fn metrics(demo: &mut Demo<'_>) -> Result<()> {
    let text = demo.agent.metrics()?;
    let denied = demo.tally.total(Decision::Deny);
    let allowed = demo.tally.total(Decision::Allow);
    let mut wrong = false;
    for (label, seen, ends) in [("deny", denied, 1), ("allow", allowed, 2)] {
        let counted = sum(&text, &format!("decision=\"{label}\""));
        let right = counted == seen * ends && seen > 0;
        wrong |= !right;
        let claim = format!(
            "/metrics: zt_decisions_total{{decision=\"{label}\"}} is {counted}: {seen} seen by clients, each decided {ends}×"
        );
        demo.check(right, &claim);
    }
    if wrong {
        demo.say(&samples(&text).take(5).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

fn samples(metrics: &str) -> impl Iterator<Item = &str> {
    metrics
        .lines()
        .filter(|line| line.starts_with("zt_decisions_total{"))
}

/// The sum of the samples of `zt_decisions_total` with a label.
fn sum(metrics: &str, label: &str) -> u64 {
    let samples = samples(metrics).filter(|line| line.contains(label));
    let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

fn status(demo: &mut Demo<'_>) -> Result<()> {
    let status = demo.agent.ask(&["status"])?;
    demo.say(&status.output);
    demo.check(status.is_success(), "zt-agent status finds nothing wrong");
    if !status.is_success() {
        demo.say(&status.summary());
    }
    Ok(())
}

/// Its exit code is the answer: 0 allowed, 1 denied.
fn explain(demo: &mut Demo<'_>, from: Service, to: Service) -> Result<()> {
    let (source, destination) = (from.spiffe(), to.spiffe());
    let port = to.port().to_string();
    let question = [
        "policy",
        "explain",
        "--from",
        &source,
        "--to",
        &destination,
        "--port",
        &port,
    ];
    let answer = demo.agent.ask(&question)?;
    demo.say(&answer.output);
    let permitted = crate::demo::services::is_permitted(from, to);
    let word = if permitted { "allowed" } else { "denied" };
    let right = answer.code == i32::from(!permitted);
    let mut claim = format!("zt-agent policy explain: {from} → {to}:{port} is {word}");
    if !right {
        claim = format!("{claim} ({})", answer.summary());
    }
    demo.check(right, &claim);
    Ok(())
}
