//! What is shown, in the order in which an operator would do it.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::agents;
use super::matrix::{self, Cell, Round};
use super::place::Place;
use super::services::{self, Pod};
use super::stage::Stage;
use crate::demo::services::Service;
use crate::step::Steps;

/// How often a question that came out wrong is listed.
const SHOWN: usize = 12;

pub fn all(steps: &Steps, stage: &mut Stage) -> Result<()> {
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
    Ok(())
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
