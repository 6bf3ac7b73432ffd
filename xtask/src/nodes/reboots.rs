//! A node that is rebooted: its pods start again, before its agent does.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::lives::pod_of;
use super::parts::PROBE_IMAGE;
use super::place::Place;
use super::services::{self, NAMESPACE, Pod, Way};
use super::stage::Stage;
use super::{agents, tries};
use crate::demo::services::Service;

const NAME: &str = "hasty";

/// Cuts the power of a node that was prepared for it, and on which chat asks Redis from the
/// first instruction on. Nothing may pass, at no time.
pub fn reboot(stage: &mut Stage, place: Place) -> Result<String> {
    agents::apply_with(stage, "enforce", "boot")?;
    let pods = services::pods(stage)?;
    let redis = pod_of(&pods, Service::Redis, place)?;
    stage.create(&hasty(place, redis))?;
    let before = hasty_address(stage)?;
    ensure!(
        heard(stage, place, &before)? == 0,
        "it passes without a reboot"
    );
    let boot = boot_id(stage, place)?;
    let old = containers(stage, place)?;
    // containerd does not: it never gets rid of a pod whose cached CNI result it
    // finds empty after that.
    stage.node(place)?.sh("sync")?;
    stage.cycle(place)?;
    stage.until("the node has booted", |stage| {
        Ok(boot_id(stage, place)? != boot && stage.is_ready(place)?)
    })?;
    agents::rolled_out(stage)?;
    let count = pods.len();
    // The API server goes on saying for a while what was so before.
    stage.until("its pods run again", |stage| {
        let now = containers(stage, place)?;
        let are_new = now.is_disjoint(&old) && now.len() == old.len();
        Ok(are_new && services::pods(stage)?.len() == count)
    })?;
    stay(stage, place)?;
    let address = hasty_address(stage)?;
    // Long enough for many tries.
    thread::sleep(Duration::from_secs(20));
    let heard = heard(stage, place, &address)?;
    stage
        .kubectl(&["delete", "deployment", NAME, "-n", NAMESPACE, "--now"])?
        .ok()?;
    ensure!(heard == 0, "{heard} forbidden connections");
    let unit = "journalctl --boot --unit zt-agent-boot --output cat | grep 'in force'";
    stage.node(place)?.sh(unit)
}

fn hasty(place: Place, redis: &Pod) -> Value {
    let labels = json!({"app": NAME});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {
                "serviceAccountName": Service::Chat.name(),
                "automountServiceAccountToken": false,
                "dnsPolicy": "Default",
                "nodeSelector": {"kubernetes.io/hostname": place.name()},
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "try", "image": PROBE_IMAGE, "imagePullPolicy": "Never",
                    // By the ClusterIP, which stays what it is; and not so often that
                    // the node has no time left to start the agent.
                    "args": tries::hammer(&redis.at(Way::ClusterIp).to_string(), 3_600_000, 50),
                }],
            },
        }},
    })
}

/// Where it runs, once it does.
fn hasty_address(stage: &mut Stage) -> Result<String> {
    stage.until("it runs", |stage| {
        let ready = "-o=jsonpath={.status.readyReplicas}";
        Ok(stage.get(&["deployment", NAME, "-n", NAMESPACE, ready])? == "1")
    })?;
    let address = "-o=jsonpath={.items[0].status.podIP}";
    stage.get(&["pods", "-n", NAMESPACE, "-l", "app=hasty", address])
}

/// How many connections Redis took from there since it was started. A kubelet that has
/// just come up may be too slow to say it at once.
fn heard(stage: &mut Stage, place: Place, address: &str) -> Result<usize> {
    let heard = Cell::new(0);
    stage.until("Redis says whom it heard", |stage| {
        let pods = services::pods(stage)?;
        let redis = pod_of(&pods, Service::Redis, place)?;
        heard.set(services::took(stage, redis, address)?);
        Ok(true)
    })?;
    Ok(heard.get())
}

/// Waits until the containers stay: after a boot the kubelet may start one once more.
fn stay(stage: &mut Stage, place: Place) -> Result<()> {
    const STAYS: Duration = Duration::from_secs(45);
    let last = RefCell::new((BTreeSet::new(), Instant::now()));
    stage.until("its containers stay", |stage| {
        let now = containers(stage, place)?;
        let mut last = last.borrow_mut();
        if last.0 != now {
            *last = (now, Instant::now());
        }
        Ok(last.1.elapsed() >= STAYS && are_ready(stage, place)?)
    })
}

fn are_ready(stage: &Stage, place: Place) -> Result<bool> {
    let pods = pods(stage, place)?;
    let is_ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
    Ok(pods.iter().all(is_ready))
}

/// The containers of all pods of the services and of ours that are there.
fn containers(stage: &Stage, place: Place) -> Result<BTreeSet<String>> {
    let pods = pods(stage, place)?;
    let containers = pods.iter().map(|pod| {
        let container = &pod["status"]["containerStatuses"][0]["containerID"];
        Ok(services::text(container)?.to_owned())
    });
    containers.collect()
}

fn pods(stage: &Stage, place: Place) -> Result<Vec<Value>> {
    let text = stage.get(&["pods", "-n", NAMESPACE, "-o=json"])?;
    let list: Value = serde_json::from_str(&text)?;
    let pods = list["items"].as_array().context("no list")?;
    let runs_here = |pod: &&Value| {
        pod["spec"]["nodeName"] == place.name() && pod["status"]["phase"] == "Running"
    };
    Ok(pods.iter().filter(runs_here).cloned().collect())
}

fn boot_id(stage: &Stage, place: Place) -> Result<String> {
    let field = "-o=jsonpath={.status.nodeInfo.bootID}";
    stage
        .get(&["node", place.name(), field])
        .context("the node's boot")
}
