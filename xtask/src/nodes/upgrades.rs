//! The agent goes and comes while pods connect again and again.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use zt_tests::report::Summary;

use super::lives::pod_of;
use super::place::Place;
use super::services::{NAMESPACE, Pod, Way};
use super::stage::Stage;
use super::{agents, tries};
use crate::demo::services::Service;

/// Who is asked meanwhile, by whom, and whether that is permitted: on a node, and
/// across.
const PAIRS: [(Service, Place, Service, Place, bool); 4] = [
    (Service::Iam, Place::A, Service::Redis, Place::A, true),
    (Service::Chat, Place::A, Service::Redis, Place::A, false),
    (Service::Iam, Place::B, Service::Postgres, Place::A, true),
    (Service::Chat, Place::B, Service::Postgres, Place::A, false),
];

/// Connects again and again while something is done, and a while before and after.
/// Not one of the forbidden may succeed, and not one of the others fail.
pub fn beside(
    stage: &mut Stage,
    pods: &[Pod],
    seconds: u32,
    done: impl FnOnce(&mut Stage) -> Result<()>,
) -> Result<String> {
    let cluster = Arc::clone(&stage.cluster);
    let loops: Vec<_> = PAIRS
        .into_iter()
        .map(|(from, at, to, there, _)| {
            let from = pod_of(pods, from, at)?.name.clone();
            let to = pod_of(pods, to, there)?.at(Way::PodIp).to_string();
            let cluster = Arc::clone(&cluster);
            Ok(thread::spawn(move || {
                let milliseconds = (seconds * 1000).to_string();
                let answer = cluster.kubectl(&[
                    "exec",
                    "-n",
                    NAMESPACE,
                    &from,
                    "--",
                    "/usr/bin/zt-probe",
                    "tcp-loop",
                    "--connect",
                    &to,
                    "--for-ms",
                    &milliseconds,
                    "--pause-ms",
                    "50",
                    "--timeout-ms",
                    "10000",
                ])?;
                tries::summary(&answer.ok()?)
            }))
        })
        .collect::<Result<_>>()?;
    thread::sleep(Duration::from_secs(5));
    let result = done(stage);
    let ended_early = loops.iter().any(thread::JoinHandle::is_finished);
    let mut told = Vec::new();
    for (pair, one) in PAIRS.iter().zip(loops) {
        let joined = one
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let summary = joined.with_context(|| format!("{pair:?}"))?;
        told.push(judge(*pair, &summary)?);
    }
    result?;
    ensure!(
        !ended_early,
        "it took longer than the {seconds} s of the loops"
    );
    Ok(told.join(", "))
}

fn judge(pair: (Service, Place, Service, Place, bool), summary: &Summary) -> Result<String> {
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

/// `kubectl rollout restart`, to its end.
pub fn roll(stage: &mut Stage) -> Result<()> {
    stage
        .kubectl(&[
            "rollout",
            "restart",
            "daemonset/zt-agent",
            "-n",
            agents::NAMESPACE,
        ])?
        .ok()?;
    agents::rolled_out(stage)
}
