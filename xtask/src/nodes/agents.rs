//! The agent as it is deployed, from the manifests of `deploy/` and nothing else.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::place::Place;
use super::services::text;
use super::stage::Stage;
use crate::workspace;

pub const NAMESPACE: &str = "zt-system";

/// The seeds' policy, unchanged.
const POLICY: &str = "zt-agent/testdata/hanzo-core-policy.yaml";

/// Applies an overlay as it is, and waits until an agent with it is ready on every
/// node.
pub fn apply(stage: &mut Stage, overlay: &str) -> Result<()> {
    let path = workspace::root().join("deploy/overlays").join(overlay);
    stage.kubectl(&["apply", "-k", text_of(&path)?])?.ok()?;
    rolled_out(stage)
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
    stage.until("the agents are ready", |stage| {
        let set = stage.get(&["daemonset", "zt-agent", "-n", NAMESPACE, "-o=json"])?;
        let set: Value = serde_json::from_str(&set)?;
        let (status, wanted) = (&set["status"], Place::ALL.len());
        Ok(
            set["metadata"]["generation"] == status["observedGeneration"]
                && status["updatedNumberScheduled"] == wanted
                && status["numberReady"] == wanted
                && status["numberAvailable"] == wanted,
        )
    })
}

/// Applies the policy, and waits until the agents say that their nodes have it.
pub fn apply_policy(stage: &mut Stage) -> Result<()> {
    let path = workspace::root().join(POLICY);
    stage.kubectl(&["apply", "-f", text_of(&path)?])?.ok()?;
    stage.until("every node has the policy", |stage| {
        let policy = stage.get(&["sap", "hanzo-core-policy", "-o=json"])?;
        let policy: Value = serde_json::from_str(&policy)?;
        let nodes = policy["status"]["nodes"].as_array().map_or(0, Vec::len);
        Ok(nodes == Place::ALL.len())
    })
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
