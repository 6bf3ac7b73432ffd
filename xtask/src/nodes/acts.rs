//! What is shown, in the order in which an operator would do it.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::matrix::{self, Cell, Round};
use super::place::Place;
use super::services::{self, Way};
use super::stage::Stage;
use super::{agents, latecomers, lives, plugin, reboots, several, upgrades};
use crate::demo::services::Service;
use crate::step::Steps;
use zt_tests::interrupt;

/// What each is called on the command line, in the order in which they are shown.
pub const NAMES: [&str; 16] = [
    "late",
    "matrix",
    "events",
    "probes",
    "identities",
    "slice",
    "several",
    "first",
    "dump",
    "kill",
    "reboot",
    "helm",
    "recycled",
    "cni",
    "anew",
    "cni-removed",
];

/// The first ends with agents that observe, the second with agents that enforce; what
/// comes after them needs no more than that, but for the last two, which need `cni`.
pub fn all(steps: &Steps, stage: &mut Stage, helm: &Path, only: &[String]) -> Result<()> {
    let mut acts = Acts {
        steps,
        only,
        failed: Vec::new(),
    };
    steps.check("Deploy the five services on every node", || {
        services::deploy(stage)
    })?;
    let late = "A node without the agent gets it later";
    acts.show("late", late, || latecomers::late(stage))?;
    if acts.wants("matrix") {
        compare(steps, stage)?;
    } else if NAMES[2..].iter().any(|name| acts.wants(name)) {
        steps.check("kubectl apply: what the acts need", || {
            agents::apply(stage, "enforce")?;
            agents::apply_policy(stage, &Place::ALL)?;
            known(stage, "enforce")
        })?;
    }
    enforcing(&mut acts, stage, helm)?;
    let failed = acts.failed;
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

/// What everybody reaches where nothing is denied, and where something is.
fn compare(steps: &Steps, stage: &mut Stage) -> Result<()> {
    steps.check("kubectl apply -k deploy/overlays/observe", || {
        agents::apply(stage, "observe")
    })?;
    steps.check("kubectl apply -f hanzo-core-policy.yaml", || {
        agents::apply_policy(stage, &Place::ALL)
    })?;
    let pods = services::pods(stage)?;
    steps.check("The agents know every pod by its SPIFFE ID", || {
        known(stage, "audit")
    })?;
    let observed = steps.check("Observe: everybody reaches everybody", || {
        matrix::right(stage, &pods, &Way::ALL, |_, _| false)
    })?;
    steps.check("The audit trail says what would be denied", || {
        would_be_denied(stage, &observed)
    })?;
    steps.check("kubectl apply -k deploy/overlays/enforce", || {
        agents::apply(stage, "enforce")
    })?;
    let enforced = steps.check("Enforce: only what the policy permits", || {
        matrix::right(stage, &pods, &Way::ALL, |_, _| true)
    })?;
    println!("{}", matrix::table(&observed, &enforced));
    Ok(())
}

/// What is shown on nodes that enforce. One that fails does not end the others. Each
/// asks which pods there are: some of them leave others behind.
fn enforcing(acts: &mut Acts<'_>, stage: &mut Stage, helm: &Path) -> Result<()> {
    let pods = services::pods;
    acts.show("events", "Events: denials show on the pods", || {
        events(stage)
    })?;
    acts.show("probes", "Liveness probes reach the pods", || {
        lives::probes(stage)
    })?;
    acts.show(
        "identities",
        "Init containers and pods on the node's network are who they are",
        || lives::identities(stage, &pods(stage)?),
    )?;
    acts.show(
        "slice",
        "An EndpointSlice that names a stranger's pod leads nobody there",
        || lives::foreign_slice(stage, &pods(stage)?),
    )?;
    acts.show(
        "several",
        "Of two behind a Service each gets who may, and is left to its node",
        || several::several(stage, &pods(stage)?),
    )?;
    acts.show(
        "first",
        "Nothing passes from a pod's first instruction on",
        || lives::first_instruction(stage, &pods(stage)?),
    )?;
    acts.show("dump", "bpftool shows who is who on the node", || {
        dump(stage)
    })?;
    acts.show(
        "kill",
        "kill -9 of the agent under loops of connections",
        || {
            upgrades::beside(stage, &pods(stage)?, |stage| {
                upgrades::kill(stage, Place::A)
            })
        },
    )?;
    acts.show(
        "reboot",
        "A node that is reset enforces from its boot on",
        || reboots::reboot(stage, Place::B),
    )?;
    acts.show(
        "helm",
        "Helm's rendered output instead: a rolling update under loops of connections",
        || upgrades::beside(stage, &pods(stage)?, |stage| upgrades::helm(stage, helm)),
    )?;
    acts.show(
        "recycled",
        "An address that somebody else had gives nothing",
        || lives::recycled_address(stage, &pods(stage)?),
    )?;
    acts.show(
        "cni",
        "kubectl apply with deploy/cni: a pod is covered before it starts",
        || plugin::covered(stage),
    )?;
    acts.show(
        "anew",
        "Deleted, and Helm's rendered output afresh: meanwhile no pod starts",
        || plugin::anew(stage, helm),
    )?;
    acts.show(
        "cni-removed",
        "zt-agent cni remove: pods start without the plugin",
        || plugin::removed(stage),
    )
}

struct Acts<'a> {
    steps: &'a Steps,
    /// All, if it names none.
    only: &'a [String],
    failed: Vec<&'static str>,
}

impl Acts<'_> {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|one| one == name)
    }

    /// A step that has something to say about itself. Only an interruption ends all.
    fn show(
        &mut self,
        name: &str,
        title: &'static str,
        work: impl FnOnce() -> Result<String>,
    ) -> Result<()> {
        debug_assert!(NAMES.contains(&name), "{name}");
        if !self.wants(name) {
            return Ok(());
        }
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
    let mut apart = services::pods(stage)?;
    apart.retain(|pod| {
        pod.place == Place::A && [Service::Chat, Service::Redis].contains(&pod.service)
    });
    matrix::right(stage, &apart, &[Way::PodIp], |_, _| true)?;
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

fn known(stage: &mut Stage, mode: &str) -> Result<()> {
    for place in Place::ALL {
        agents::know_all(stage, place, mode)?;
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
