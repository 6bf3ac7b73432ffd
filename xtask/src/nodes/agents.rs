//! The agent as it is deployed, from the manifests of `deploy/` and nothing else.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::place::Place;
use super::services::text;
use super::stage::Stage;
use crate::demo::services::Service;
use crate::workspace;

pub const NAMESPACE: &str = "zt-system";

/// The seeds' policy, unchanged.
const POLICY: &str = "zt-agent/testdata/hanzo-core-policy.yaml";

/// Applies an overlay as it is, and waits until an agent with it is ready on every
/// node.
pub fn apply(stage: &mut Stage, overlay: &str) -> Result<()> {
    apply_on(stage, overlay, &Place::ALL)
}

/// The same where only some nodes are to have one.
pub fn apply_on(stage: &mut Stage, overlay: &str, places: &[Place]) -> Result<()> {
    let path = path_of(overlay);
    stage.kubectl(&["apply", "-k", text_of(&path)?])?.ok()?;
    rolled_out_on(stage, places)
}

/// Deletes everything that an overlay makes, the definitions and with them the
/// policies included, and waits until it is gone.
pub fn delete(stage: &Stage, overlay: &str) -> Result<()> {
    let path = path_of(overlay);
    let how = ["delete", "--ignore-not-found", "--timeout=600s", "-k"];
    stage
        .kubectl(&[&how[..], &[text_of(&path)?]].concat())?
        .ok()?;
    Ok(())
}

fn path_of(overlay: &str) -> PathBuf {
    workspace::root().join("deploy/overlays").join(overlay)
}

/// The same with a component of `deploy/`.
pub fn apply_with(stage: &mut Stage, overlay: &str, component: &str) -> Result<()> {
    // It names others by the way from where it is.
    let deploy = workspace::root().join("deploy");
    let here = tempfile::Builder::new()
        .prefix("zt-nodes-")
        .tempdir_in(&deploy)?;
    let text = format!("resources: [../overlays/{overlay}]\ncomponents: [../{component}]\n");
    std::fs::write(here.path().join("kustomization.yaml"), text)?;
    stage
        .kubectl(&["apply", "-k", text_of(here.path())?])?
        .ok()?;
    rolled_out(stage)
}

/// Waits until every node has an agent of the newest generation that is ready.
pub fn rolled_out(stage: &mut Stage) -> Result<()> {
    rolled_out_on(stage, &Place::ALL)
}

/// Has a node try at once what its kubelet would try again by and by.
pub fn restart(stage: &Stage, place: Place) -> Result<()> {
    let on_node = format!("--field-selector=spec.nodeName={}", place.name());
    let pod = ["delete", "pod", "-n", NAMESPACE, "--wait=false", &on_node];
    stage.kubectl(&pod)?.ok()?;
    Ok(())
}

/// Waits until some nodes, and no others, have one.
pub fn rolled_out_on(stage: &mut Stage, places: &[Place]) -> Result<()> {
    stage.until("the agents are ready", |stage| {
        let set = stage.get(&["daemonset", "zt-agent", "-n", NAMESPACE, "-o=json"])?;
        let set: Value = serde_json::from_str(&set)?;
        let (status, wanted) = (&set["status"], places.len());
        Ok(
            set["metadata"]["generation"] == status["observedGeneration"]
                && status["desiredNumberScheduled"] == Place::ALL.len()
                && status["updatedNumberScheduled"] == Place::ALL.len()
                && status["numberReady"] == wanted
                && status["numberAvailable"] == wanted,
        )
    })
}

/// Applies the policy, and waits until the agents say that their nodes have it.
pub fn apply_policy(stage: &mut Stage, places: &[Place]) -> Result<()> {
    let path = workspace::root().join(POLICY);
    stage.kubectl(&["apply", "-f", text_of(&path)?])?.ok()?;
    have_policy(stage, places)
}

/// Waits until some nodes, and no others, say that they have the policy.
pub fn have_policy(stage: &mut Stage, places: &[Place]) -> Result<()> {
    stage.until("every node with an agent has the policy", |stage| {
        let policy = stage.get(&["sap", "hanzo-core-policy", "-o=json"])?;
        let policy: Value = serde_json::from_str(&policy)?;
        let nodes = policy["status"]["nodes"].as_array().map_or(0, Vec::len);
        Ok(nodes == places.len())
    })
}

/// Waits until the agent of a node has enrolled the pod of every service there, in a
/// mode.
pub fn know_all(stage: &mut Stage, place: Place, mode: &str) -> Result<()> {
    stage.until(
        &format!("every pod of {place} is in mode {mode}"),
        |stage| {
            let said = ask(stage, place, &["identities", "-o", "json"])?;
            let rows: Vec<Value> = serde_json::from_str(&said).with_context(|| said.clone())?;
            Ok(Service::ALL
                .iter()
                .all(|service| is_enrolled(&rows, *service, mode)))
        },
    )
}

fn is_enrolled(rows: &[Value], service: Service, mode: &str) -> bool {
    rows.iter().any(|row| {
        row["spiffe_id"] == service.spiffe() && row["state"] == "enrolled" && row["mode"] == mode
    })
}

/// How many pods of a node the container runtime showed to its agent before they
/// began.
pub fn attached(stage: &Stage, place: Place) -> Result<u64> {
    let said = ask(stage, place, &["status", "-o", "json"])?;
    let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let count = &status["agent"]["cluster"]["attached"];
    count
        .as_u64()
        .with_context(|| format!("no count in {said}"))
}

/// The agent's pod on a node.
pub fn pod(stage: &Stage, place: Place) -> Result<String> {
    let field = format!("--field-selector=spec.nodeName={place},status.phase=Running");
    let pods = stage.get(&["pods", "-n", NAMESPACE, "-o=json", &field])?;
    let pods: Value = serde_json::from_str(&pods)?;
    let all = pods["items"].as_array().context("no list")?;
    let living: Vec<&Value> = (all.iter())
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .collect();
    ensure!(living.len() == 1, "{} agents on {place}", living.len());
    Ok(text(&living[0]["metadata"]["name"])?.to_owned())
}

/// What the agent of a node answers on its command line. A finding is an answer, too.
pub fn ask(stage: &Stage, place: Place, question: &[&str]) -> Result<String> {
    let pod = pod(stage, place)?;
    let command = ["exec", "-n", NAMESPACE, &pod, "--", "/usr/bin/zt-agent"];
    let answer = stage.kubectl(&[&command, question].concat())?;
    ensure!(
        answer.succeeded || !answer.output.is_empty(),
        "zt-agent {question:?} on {place}: {}",
        answer.errors
    );
    Ok(answer.output)
}

/// The records of a node's audit trail that contain a text.
pub fn records(stage: &Stage, place: Place, containing: &str) -> Result<Vec<Value>> {
    let command = format!("grep -h '{containing}' /var/log/zt-agent/audit.jsonl || true");
    let said = stage.node(place)?.sh(&command)?;
    said.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn text_of(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("not UTF-8")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_of_another_node_or_in_another_mode_is_not_enrolled_here() {
        let row = |state: &str, mode: &str| {
            vec![json!({"spiffe_id": Service::Chat.spiffe(), "state": state, "mode": mode})]
        };
        let is = |rows: &[Value]| is_enrolled(rows, Service::Chat, "enforce");
        assert!(is(&row("enrolled", "enforce")));
        assert!(!is(&row("enrolled", "audit")));
        assert!(!is(&row("elsewhere", "enforce")));
        assert!(!is_enrolled(
            &row("enrolled", "enforce"),
            Service::Redis,
            "enforce"
        ));
    }
}
