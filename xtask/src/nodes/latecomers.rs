//! A node with the agent, and one that gets it later.

use anyhow::Result;

use super::agents;
use super::matrix::{self, Cell, End};
use super::place::Place;
use super::services::{self, NAMESPACE, Pod, Way};
use super::stage::Stage;
use crate::demo::services::Service;

const EARLY: Place = Place::A;
const LATE: Place = Place::B;

/// A node cannot be kept from the DaemonSet as it is, and a kubelet puts its labels
/// back: what it has not is the image, which is nowhere else.
const REMOVE: &str = "ctr -n k8s.io images rm $(ctr -n k8s.io images ls -q name~=zt-agent)";
const IMPORT: &str = "ctr -n k8s.io images import /parts/images/agent.tar";

/// The mode of a namespace, stronger than the nodes' own.
const MODE: &str = "zt.hanzo.ai/mode";

/// Installs the agent on one node, and then on the other, while the services'
/// namespace enforces: what the one governs holds at once, what only the other could
/// govern when it does. In the end nothing is enforced, and both have their agents.
pub fn late(stage: &mut Stage) -> Result<String> {
    let pods = matrix::few(&services::pods(stage)?);
    matrix::right(stage, &pods, &[Way::PodIp], |_, _| false)?;
    let shown = one_then_both(stage, &pods);
    // Whatever came of it: what follows begins with agents that observe.
    stage.node(LATE)?.sh(IMPORT)?;
    annotate(stage, &format!("{MODE}-"))?;
    shown
}

fn one_then_both(stage: &mut Stage, pods: &[Pod]) -> Result<String> {
    annotate(stage, &format!("{MODE}=enforce"))?;
    stage.node(LATE)?.sh(REMOVE)?;
    agents::apply_on(stage, "observe", &[EARLY])?;
    agents::apply_policy(stage, &[EARLY])?;
    agents::know_all(stage, EARLY, "enforce")?;
    let one = matrix::right(stage, pods, &[Way::PodIp], is_governed)?;
    stage.node(LATE)?.sh(IMPORT)?;
    agents::restart(stage, LATE)?;
    agents::rolled_out(stage)?;
    agents::have_policy(stage, &Place::ALL)?;
    agents::know_all(stage, LATE, "enforce")?;
    let both = matrix::right(stage, pods, &[Way::PodIp], |_, _| true)?;
    let mut told = Vec::new();
    for (from, to) in [(EARLY, EARLY), (EARLY, LATE), (LATE, EARLY), (LATE, LATE)] {
        let cell = Cell {
            from: (Service::Redis, from),
            to: (Service::Iam, to),
            way: Way::PodIp,
        };
        let (one, both) = (one.outcome(cell), both.outcome(cell));
        told.push(format!("redis@{from} → iam@{to}: {one}, then {both}"));
    }
    Ok(told.join("\n"))
}

/// Whether the agent that is there first has one of the two.
fn is_governed(from: End, to: End) -> bool {
    [from.1, to.1].contains(&EARLY)
}

fn annotate(stage: &Stage, annotation: &str) -> Result<()> {
    let namespace = [
        "annotate",
        "--overwrite",
        "namespace",
        NAMESPACE,
        annotation,
    ];
    stage.kubectl(&namespace)?.ok()?;
    Ok(())
}
