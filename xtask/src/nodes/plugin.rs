//! The CNI plugin: the container runtime calls it, pods wait for it, and it goes again.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::lives::pod_of;
use super::place::Place;
use super::services::{self, NAMESPACE, Way};
use super::stage::Stage;
use super::tries::{self, Try};
use super::{agents, matrix, upgrades};
use crate::demo::services::Service;

/// As the runtime calls it.
const PLUGIN: &str = "zt-agent-cni";
const LIST: &str = "/etc/cni/net.d/10-pods.conflist";

/// As `deploy/cni` says that one removes it, from the program that it left.
const REMOVE: &str = "ln -s /opt/cni/bin/zt-agent-cni /tmp/zt-agent && \
    /tmp/zt-agent cni remove && rm /tmp/zt-agent";

/// Installs it, and has the runtime start a gateway, which tries to reach Redis from
/// its first instruction on and then asks PostgreSQL, as it may.
pub fn covered(stage: &mut Stage) -> Result<String> {
    agents::apply_with(stage, "enforce", "cni")?;
    for place in Place::ALL {
        let names = format!("grep {PLUGIN} {LIST}");
        stage.node(place)?.sh(&names)?;
    }
    let before = agents::attached(stage, Place::A)?;
    let pods = services::pods(stage)?;
    let redis = pod_of(&pods, Service::Redis, Place::A)?;
    let postgres = pod_of(&pods, Service::Postgres, Place::A)?;
    const NAME: &str = "covered";
    let mut pod = Try {
        account: Service::Gateway,
        init: true,
        ..Try::hasty(NAME, Place::A, redis)
    }
    .object();
    pod["spec"]["containers"][0]["args"] = json!([
        "tcp-loop",
        "--connect",
        postgres.at(Way::PodIp).to_string(),
        "--for-ms",
        "3600000",
        "--pause-ms",
        "500",
        "--timeout-ms",
        "20000",
    ]);
    stage.create(&pod)?;
    stage.until("the pod runs", |stage| {
        let phase = "-o=jsonpath={.status.phase}";
        Ok(stage.get(&["pod", NAME, "-n", NAMESPACE, phase])? == "Running")
    })?;
    let logs = ["logs", NAME, "-n", NAMESPACE, "-c", "try"];
    let refused = tries::refused(&stage.kubectl(&logs)?.ok()?)?;
    let address = "-o=jsonpath={.status.podIP}";
    let address = stage.get(&["pod", NAME, "-n", NAMESPACE, address])?;
    // Somebody may have had the address before.
    let others = services::took(stage, postgres, &address)?;
    stage.until("PostgreSQL hears of it", |stage| {
        Ok(services::took(stage, postgres, &address)? > others)
    })?;
    let attached = agents::attached(stage, Place::A)?;
    delete(stage, NAME)?;
    ensure!(
        attached > before,
        "{before} pods were shown to the agent before and {attached} after it"
    );
    Ok(format!(
        "attached: {attached}; redis: 0 of {refused}; postgres answers"
    ))
}

/// Deletes everything, so that no pod starts on nodes that have the plugin, and
/// installs it anew from what Helm renders, without the plugin: whoever waited starts.
pub fn anew(stage: &mut Stage, helm: &Path) -> Result<String> {
    agents::delete(stage, "enforce")?;
    for place in Place::ALL {
        let left = stage.node(place)?.sh("pidof zt-agent || true")?;
        ensure!(left.is_empty(), "an agent is left on {place}: {left}");
    }
    let pods = services::pods(stage)?;
    let redis = pod_of(&pods, Service::Redis, Place::A)?;
    let waiting = Try::hasty("waiting", Place::A, redis);
    stage.create(&waiting.object())?;
    // The agents come back whatever the events say.
    let said = waits(stage, waiting.name);
    let fresh = ["--include-crds", "--set=createNamespace=true"];
    let documents = upgrades::rendered(helm, &fresh)?;
    stage.cluster.apply(&documents)?.ok()?;
    agents::rolled_out(stage)?;
    agents::apply_policy(stage, &Place::ALL)?;
    for place in Place::ALL {
        agents::know_all(stage, place, "enforce")?;
    }
    let said = said?;
    let refused = tries::refused(&waiting.wait(stage)?)?;
    delete(stage, waiting.name)?;
    let few = matrix::few(&services::pods(stage)?);
    let round = matrix::right(stage, &few, &[Way::PodIp], |_, _| true)?;
    Ok(format!(
        "{said}\nthen redis: 0 of {refused}, and {} questions are as they have to be",
        round.attempts.len()
    ))
}

/// Until the events of a pod say that the plugin failed. It must not have started.
fn waits(stage: &mut Stage, name: &str) -> Result<String> {
    let of_pod =
        format!("--field-selector=reason=FailedCreatePodSandBox,involvedObject.name={name}");
    let told = |stage: &Stage| -> Result<Option<String>> {
        let messages = r#"-o=jsonpath={range .items[*]}{.message}{"\n"}{end}"#;
        let said = stage.get(&["events", "-n", NAMESPACE, &of_pod, messages])?;
        Ok(said.lines().find_map(of_plugin).map(str::to_owned))
    };
    stage.until("the pod's events name the plugin", |stage| {
        Ok(told(stage)?.is_some())
    })?;
    let phase = "-o=jsonpath={.status.phase}";
    let phase = stage.get(&["pod", name, "-n", NAMESPACE, phase])?;
    ensure!(phase == "Pending", "it is {phase}");
    told(stage)?.context("the event is gone")
}

/// What the plugin said in what the runtime and the kubelet say around it.
fn of_plugin(message: &str) -> Option<&str> {
    let at = message.find(PLUGIN)?;
    message
        .get(at..)
        .filter(|said| said.contains("not covered"))
}

/// Takes it away again: the list is what it was, and the next pod needs no plugin.
pub fn removed(stage: &mut Stage) -> Result<String> {
    for place in Place::ALL {
        let node = stage.node(place)?;
        node.sh(REMOVE)?;
        node.sh(&format!("cmp /parts/nodes/{place}{LIST} {LIST}"))?;
        node.sh(&format!("! test -e /opt/cni/bin/{PLUGIN}"))?;
    }
    let pods = services::pods(stage)?;
    let redis = pod_of(&pods, Service::Redis, Place::A)?;
    let said = Try::hasty("without", Place::A, redis).run(stage)?;
    Ok(format!("it starts; redis: 0 of {}", tries::refused(&said)?))
}

fn delete(stage: &Stage, name: &str) -> Result<()> {
    let pod = format!("pod/{name}");
    stage
        .kubectl(&["delete", &pod, "-n", NAMESPACE, "--wait=false"])?
        .ok()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_plugin_said_is_found_and_no_other_failure_is_taken_for_it() {
        let message = r#"Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "0123": plugin type="zt-agent-cni" failed (add): the interface eth0 of pod hanzo/waiting is not covered, so the pod must not start; the agent is not running"#;
        let said = of_plugin(message).unwrap();
        assert!(said.starts_with("zt-agent-cni\" failed (add)"), "{said}");
        assert!(said.ends_with("the agent is not running"), "{said}");
        let other = r#"failed to find plugin "zt-agent-cni" in path [/opt/cni/bin]"#;
        assert_eq!(of_plugin(other), None);
        assert_eq!(of_plugin("plugin type=\"bridge\" failed (add)"), None);
    }
}
