//! What happens to pods under enforcement: their probes, the node's own network,
//! init containers, their first instruction, somebody else's old address.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use zt_tests::report::TIMEOUT;

use super::place::Place;
use super::services::{self, NAMESPACE, Pod, Way};
use super::stage::Stage;
use super::tries::{self, Try};
use crate::demo::services::Service;

/// A service's pod on a node.
pub fn pod_of(pods: &[Pod], service: Service, place: Place) -> Result<&Pod> {
    let found = pods
        .iter()
        .find(|pod| pod.service == service && pod.place == place);
    found.with_context(|| format!("no pod of {service} on {place}"))
}

/// The kubelet reaches every pod it has to probe: none was started anew.
pub fn probes(stage: &Stage) -> Result<String> {
    let text = stage.get(&["pods", "-n", NAMESPACE, "-o=json"])?;
    let list: Value = serde_json::from_str(&text)?;
    let pods = list["items"].as_array().context("no list")?;
    // Where a few failures count.
    let here = |pod: &&Value| pod["spec"]["nodeName"] == Place::A.name();
    let pods: Vec<&Value> = pods.iter().filter(here).collect();
    for pod in &pods {
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(
            status["restartCount"] == 0 && status["ready"] == true,
            "{}: {status}",
            pod["metadata"]["name"]
        );
    }
    ensure!(pods.len() >= Service::ALL.len(), "{} pods", pods.len());
    Ok(format!(
        "{} pods of {}, none of them started anew",
        pods.len(),
        Place::A
    ))
}

/// A gateway, which may reach PostgreSQL and not Redis: as an init container, and
/// in the node's network.
pub fn identities(stage: &mut Stage, pods: &[Pod]) -> Result<String> {
    let mut told = Vec::new();
    let targets = |way| -> Result<Vec<(&str, String)>> {
        [("postgres", Service::Postgres), ("redis", Service::Redis)]
            .into_iter()
            .map(|(name, service)| Ok((name, pod_of(pods, service, Place::A)?.at(way).to_string())))
            .collect()
    };
    for (name, init, host_network) in [("init", true, false), ("on-the-host", false, true)] {
        let said = Try {
            namespace: NAMESPACE,
            name,
            account: Service::Gateway,
            place: Place::A,
            host_network,
            arguments: tries::reach(&targets(Way::PodIp)?),
            init,
        }
        .run(stage)?;
        let (may, may_not) = (
            tries::outcome(&said, "postgres")?,
            tries::outcome(&said, "redis")?,
        );
        ensure!(
            may.replied(),
            "{name} is not taken for the gateway: {may:?}"
        );
        ensure!(
            !may_not.connected,
            "{name} is not taken for the gateway: {may_not:?}"
        );
        told.push(format!(
            "{name}: postgres answers, redis {}",
            may_not.errno.unwrap_or_default()
        ));
    }
    Ok(told.join("; "))
}

/// Chat may not reach Redis: not from its first instruction on, on its own node or
/// on the other.
pub fn first_instruction(stage: &mut Stage, pods: &[Pod]) -> Result<String> {
    let mut told = Vec::new();
    for place in Place::ALL {
        let redis = pod_of(pods, Service::Redis, place)?;
        let name = format!("hasty-on-{place}");
        let said = Try::hasty(&name, Place::A, redis).run(stage)?;
        let count = tries::refused(&said)?;
        told.push(format!("{place}: 0 of {count}"));
    }
    Ok(told.join(", "))
}

/// A Service of a tenant's own whose EndpointSlice names somebody else's pod.
pub fn foreign_slice(stage: &mut Stage, pods: &[Pod]) -> Result<String> {
    let mut told = Vec::new();
    const NAME: &str = "trap";
    let redis = pod_of(pods, Service::Redis, Place::A)?;
    let port = json!([{"name": "main", "port": redis.service.port()}]);
    stage.create(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"ports": port},
    }))?;
    stage.create(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME},
        },
        "addressType": "IPv4", "ports": port,
        "endpoints": [{"addresses": [redis.address], "conditions": {"ready": true}}],
    }))?;
    let trap = stage.get(&[
        "service",
        NAME,
        "-n",
        NAMESPACE,
        "-o=jsonpath={.spec.clusterIP}",
    ])?;
    let at = format!("{trap}:{}", redis.service.port());
    let ask = |stage: &Stage, from: &Pod| {
        let target = format!("trap={at}");
        let command = [
            "exec",
            "-n",
            NAMESPACE,
            &from.name,
            "--",
            "/usr/bin/zt-probe",
            "reach",
        ];
        let said = stage.kubectl(&[&command[..], &[&target]].concat())?.ok()?;
        tries::outcome(&said, "trap")
    };
    // Whoever may reach Redis may do so here: the trap works.
    let iam = pod_of(pods, Service::Iam, Place::A)?;
    stage.until("the Service leads to Redis", |stage| {
        Ok(ask(stage, iam)?.replied())
    })?;
    for place in Place::ALL {
        let chat = pod_of(pods, Service::Chat, place)?;
        let asked = ask(stage, chat)?;
        ensure!(!asked.connected, "chat on {place}: {asked:?}");
        told.push(format!("{place}: {}", asked.errno.unwrap_or_default()));
    }
    Ok(format!("chat by the Service on {}", told.join(", ")))
}

/// A namespace in which nothing is denied: its pods' packets leave their node.
const LOOSE: &str = "loose";

/// IAM may reach PostgreSQL. Its pod on the other node goes, and a pod of a namespace
/// that only observes gets its address: PostgreSQL's node refuses it, from its first
/// packet on.
pub fn recycled_address(stage: &mut Stage, pods: &[Pod]) -> Result<String> {
    let iam = pod_of(pods, Service::Iam, Place::B)?.clone();
    let postgres = pod_of(pods, Service::Postgres, Place::A)?.clone();
    stage.create(&json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": LOOSE, "annotations": {"zt.hanzo.ai/mode": "audit"},
        }},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
            "name": Service::Chat.name(), "namespace": LOOSE,
        }},
    ]}))?;
    scale(stage, "--replicas=0")?;
    let name = iam.name.clone();
    stage.until("IAM's pod is gone", move |stage| {
        let pod = stage.kubectl(&["get", "pod", &name, "-n", NAMESPACE])?;
        Ok(!pod.succeeded)
    })?;
    // The plugin gives addresses out in turn: it is told to begin there again.
    let before = Ipv4Addr::from(u32::from(iam.address) - 1);
    let turn = format!("printf {before} >/var/lib/cni/networks/pods/last_reserved_ip.0");
    stage.node(Place::B)?.sh(&turn)?;
    let heir = Try {
        namespace: LOOSE,
        arguments: tries::hammer(&postgres.at(Way::PodIp).to_string(), 10_000, 5),
        ..Try::hasty("heir", Place::B, &postgres)
    };
    stage.create(&heir.object())?;
    let said = heir.wait(stage);
    let address = stage.get(&["pod", "heir", "-n", LOOSE, "-o=jsonpath={.status.podIP}"])?;
    stage
        .kubectl(&["delete", "namespace", LOOSE, "--wait=false"])?
        .ok()?;
    scale(stage, "--replicas=1")?;
    let count = pods.len();
    stage.until("IAM is back", |stage| {
        Ok(services::pods(stage)?.len() == count)
    })?;
    ensure!(
        address == iam.address.to_string(),
        "it got {address}, not {}",
        iam.address
    );
    let summary = tries::summary(&said?)?;
    let left = summary.failed.get(TIMEOUT).copied().unwrap_or(0);
    ensure!(
        summary.ok == 0 && left > 0,
        "with IAM's address: {summary:?}"
    );
    Ok(format!("0 of {left} that left their node with {address}"))
}

fn scale(stage: &Stage, count: &str) -> Result<()> {
    stage
        .kubectl(&["scale", "deployment/iam-b", "-n", NAMESPACE, count])?
        .ok()?;
    Ok(())
}
