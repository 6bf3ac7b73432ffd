//! The agent goes and comes while pods connect again and again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use zt_tests::report::Summary;

use super::lives::pod_of;
use super::place::Place;
use super::services::{NAMESPACE, Pod, Way};
use super::stage::Stage;
use super::{agents, matrix, tries};
use crate::demo::services::Service;
use crate::workspace;

type Pair = (Service, Place, Service, Place, bool);

/// Who is asked meanwhile, by whom, and whether that is permitted: on a node, and
/// across.
const PAIRS: [Pair; 4] = [
    (Service::Iam, Place::A, Service::Redis, Place::A, true),
    (Service::Chat, Place::A, Service::Redis, Place::A, false),
    (Service::Iam, Place::B, Service::Postgres, Place::A, true),
    (Service::Chat, Place::B, Service::Postgres, Place::A, false),
];

/// A loop that ends with its input, should it not be told before.
const AT_MOST_MS: &str = "1200000";
/// How long it runs before and after what is done.
const AROUND: Duration = Duration::from_secs(10);

/// Connects again and again while something is done, and a while before and after.
/// Not one of the forbidden may succeed, and not one of the others fail.
pub fn beside(
    stage: &mut Stage,
    pods: &[Pod],
    done: impl FnOnce(&mut Stage) -> Result<()>,
) -> Result<String> {
    let loops = PAIRS
        .into_iter()
        .map(|pair| Ok((pair, start(stage, pods, pair)?)))
        .collect::<Result<Vec<_>>>()?;
    for (from, at, to, there, permitted) in PAIRS {
        if permitted {
            // Each was started when its first connection is there.
            let from = pod_of(pods, from, at)?.clone();
            let to = pod_of(pods, to, there)?.clone();
            let before = matrix::heard(stage, &from, &to)?;
            stage.until("the loops run", |stage| {
                Ok(matrix::heard(stage, &from, &to)? > before)
            })?;
        }
    }
    thread::sleep(AROUND);
    let result = done(stage);
    thread::sleep(AROUND);
    let mut told = Vec::new();
    for (pair, mut one) in loops {
        // Its end: the loop's input is closed.
        drop(one.stdin.take());
        let ended = one.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stdout);
        let summary = tries::summary(&said).with_context(|| format!("{pair:?}"))?;
        told.push(judge(pair, &summary)?);
    }
    result?;
    Ok(told.join(", "))
}

fn start(stage: &Stage, pods: &[Pod], pair: Pair) -> Result<Child> {
    let (from, at, to, there, _) = pair;
    let from = &pod_of(pods, from, at)?.name;
    let to = pod_of(pods, to, there)?.at(Way::PodIp).to_string();
    let mut command = stage.cluster.kubectl_command();
    command
        .args(["exec", "-i", "-n", NAMESPACE, from, "--"])
        .args(["/usr/bin/zt-probe", "tcp-loop", "--until-closed"])
        .args(["--connect", &to, "--for-ms", AT_MOST_MS])
        .args(["--pause-ms", "50", "--timeout-ms", "20000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    Ok(command.spawn()?)
}

fn judge(pair: Pair, summary: &Summary) -> Result<String> {
    let (from, _, to, _, permitted) = pair;
    let failed: u64 = summary.failed.values().sum();
    let (right, wrong) = if permitted {
        (summary.ok, failed)
    } else {
        (failed, summary.ok)
    };
    ensure!(wrong == 0 && right > 0, "{from} to {to}: {summary:?}");
    let what = if permitted { "passed" } else { "refused" };
    Ok(format!("{from} → {to}: {right} {what}"))
}

/// `kill -9` of a node's agent; the kubelet starts it anew.
pub fn kill(stage: &mut Stage, place: Place) -> Result<()> {
    let restarts = |stage: &Stage| -> Result<String> {
        let pod = agents::pod(stage, place)?;
        let count = "-o=jsonpath={.status.containerStatuses[0].restartCount}";
        stage.get(&["pod", &pod, "-n", agents::NAMESPACE, count])
    };
    let before = restarts(stage)?;
    stage.node(place)?.sh("kill -9 $(pidof zt-agent)")?;
    stage.until("the agent was started anew", |stage| {
        Ok(restarts(stage)? != before)
    })?;
    agents::rolled_out(stage)
}

/// Puts what Helm renders in the place of the overlay: the agents are replaced node by
/// node, and the configuration is the same.
pub fn helm(stage: &mut Stage, helm: &Path) -> Result<()> {
    stage.cluster.apply(&rendered(helm, &[])?)?.ok()?;
    agents::rolled_out(stage)
}

/// What Helm renders for a cluster that is to be enforced.
pub fn rendered(helm: &Path, options: &[&str]) -> Result<String> {
    let rendered = Command::new(helm)
        .current_dir(workspace::root())
        .args([
            "template",
            "zt-agent",
            "deploy/chart",
            "--set=config.mode=enforce",
        ])
        .args(["--namespace", agents::NAMESPACE])
        .args(options)
        .output()
        .context("helm")?;
    let errors = String::from_utf8_lossy(&rendered.stderr);
    ensure!(rendered.status.success(), "helm: {errors}");
    Ok(String::from_utf8(rendered.stdout)?)
}
