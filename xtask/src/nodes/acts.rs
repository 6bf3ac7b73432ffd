//! What is shown, in the order in which an operator would do it.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::matrix::{self, Cell, Round};
use super::place::Place;
use super::services::{self, Pod};
use super::stage::Stage;
use super::{agents, lives, reboots, upgrades};
use crate::demo::services::Service;
use crate::interrupt;
use crate::step::Steps;

/// How often a question that came out wrong is listed.
const SHOWN: usize = 12;

pub fn all(steps: &Steps, stage: &mut Stage, helm: &Path) -> Result<()> {
    steps.check("Deploy the five services on every node", || {
        services::deploy(stage)
    })?;
    steps.check("kubectl apply -k deploy/overlays/observe", || {
        agents::apply(stage, "observe")
    })?;
    steps.check("kubectl apply -f hanzo-core-policy.yaml", || {
        agents::apply_policy(stage)
    })?;
    let pods = services::pods(stage)?;
    steps.check("The agents know every pod by its SPIFFE ID", || {
        identities(stage)
    })?;
    let observed = steps.check("Observe: everybody reaches everybody", || {
        round(stage, &pods, false)
    })?;
    steps.check("The audit trail says what would be denied", || {
        would_be_denied(stage, &observed)
    })?;
    steps.check("kubectl apply -k deploy/overlays/enforce", || {
        agents::apply(stage, "enforce")
    })?;
    let enforced = steps.check("Enforce: only what the policy permits", || {
        round(stage, &pods, true)
    })?;
    println!("{}", matrix::table(&observed, &enforced));
    enforcing(steps, stage, &pods, helm)
}

/// What is shown on nodes that enforce. One that fails does not end the others.
pub fn enforcing(steps: &Steps, stage: &mut Stage, pods: &[Pod], helm: &Path) -> Result<()> {
    let mut acts = Acts {
        steps,
        failed: Vec::new(),
    };
    acts.show("Events: denials show on the pods", || events(stage))?;
    acts.show("Liveness probes reach every pod", || lives::probes(stage))?;
    acts.show(
        "Init containers and pods on the node's network are who they are",
        || lives::identities(stage, pods),
    )?;
    acts.show(
        "An EndpointSlice that names a stranger's pod leads nobody there",
        || lives::foreign_slice(stage, pods),
    )?;
    acts.show("Nothing passes from a pod's first instruction on", || {
        lives::first_instruction(stage, pods)
    })?;
    acts.show("bpftool shows who is who on the node", || dump(stage))?;
    acts.show("kill -9 of the agent under loops of connections", || {
        upgrades::beside(stage, pods, |stage| upgrades::kill(stage, Place::A))
    })?;
    acts.show("A node that is reset enforces from its boot on", || {
        reboots::reboot(stage, Place::B)
    })?;
    acts.show(
        "Helm's rendered output instead: a rolling update under loops of connections",
        || upgrades::beside(stage, pods, |stage| upgrades::helm(stage, helm)),
    )?;
    acts.show("An address that somebody else had gives nothing", || {
        lives::recycled_address(stage, pods)
    })?;
    let failed = acts.failed;
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

struct Acts<'a> {
    steps: &'a Steps,
    failed: Vec<&'static str>,
}

impl Acts<'_> {
    /// A step that has something to say about itself. Only an interruption ends all.
    fn show(&mut self, title: &'static str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        match self.steps.check(title, work) {
            Ok(said) => said.lines().for_each(|line| self.steps.note(line)),
            Err(error) => {
                self.steps.note(&format!("{error:#}"));
                self.failed.push(title);
            }
        }
        interrupt::check()
    }
}

fn events(stage: &mut Stage) -> Result<String> {
    let denied = |stage: &Stage| -> Result<Option<String>> {
        let columns =
            "-o=custom-columns=TYPE:.type,REASON:.reason,POD:.involvedObject.name,SAYS:.message";
        let said = stage.get(&[
            "events",
            "-n",
            services::NAMESPACE,
            "--field-selector=reason=Denied",
            columns,
        ])?;
        let line = said.lines().find(|line| line.contains("spiffe://"));
        Ok(line.map(str::to_owned))
    };
    stage.until("denials are Events", |stage| Ok(denied(stage)?.is_some()))?;
    Ok(denied(stage)?.unwrap_or_default())
}

fn dump(stage: &mut Stage) -> Result<String> {
    let command = "bpftool map dump pinned /sys/fs/bpf/zt/maps/zt_identity_v1";
    let said = stage.node(Place::A)?.sh(command)?;
    for service in Service::ALL {
        ensure!(said.contains(&service.spiffe()), "no {service} in {said}");
    }
    let row = said.split("},{").find(|row| row.contains("hanzo/redis"));
    let words = row.unwrap_or_default().split_whitespace();
    Ok(words.collect::<Vec<_>>().join(" "))
}

/// A round that is as it has to be.
fn round(stage: &Stage, pods: &[Pod], enforced: bool) -> Result<Round> {
    let round = matrix::ask(stage, pods)?;
    let wrong = round.wrong(enforced);
    if !wrong.is_empty() {
        let shown = wrong.iter().take(SHOWN).cloned().collect::<Vec<_>>();
        bail!(
            "{} of {} are not as they have to be:\n{}",
            wrong.len(),
            round.attempts.len(),
            shown.join("\n")
        );
    }
    Ok(round)
}

fn identities(stage: &mut Stage) -> Result<()> {
    for place in Place::ALL {
        stage.until("every pod is enrolled", |stage| {
            let said = agents::ask(stage, place, &["identities", "-o", "json"])?;
            Ok(Service::ALL
                .iter()
                .all(|service| said.contains(&service.spiffe())))
        })?;
    }
    Ok(())
}

/// Each end that a node governs has a record of every forbidden pair.
fn would_be_denied(stage: &mut Stage, round: &Round) -> Result<()> {
    let forbidden: Vec<Cell> = round
        .attempts
        .keys()
        .copied()
        .filter(|cell| !cell.permitted())
        .collect();
    for place in Place::ALL {
        let of_here: Vec<Cell> = forbidden
            .iter()
            .copied()
            .filter(|cell| cell.from.1 == place)
            .collect();
        let mut missing = Vec::new();
        for _ in 0..30 {
            let records = agents::records(stage, place, "WOULD_DENY")?;
            missing = of_here
                .iter()
                .filter(|cell| !is_recorded(&records, **cell))
                .collect();
            if missing.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        ensure!(
            missing.is_empty(),
            "{} of {} are not recorded on {place}: {:?}",
            missing.len(),
            of_here.len(),
            missing.first()
        );
    }
    Ok(())
}

fn is_recorded(records: &[Value], cell: Cell) -> bool {
    records.iter().any(|record| {
        record["source"]["spiffe_id"] == cell.from.0.spiffe()
            && record["destination"]["spiffe_id"] == cell.to.0.spiffe()
            && record["destination"]["port"] == cell.to.0.port()
    })
}
