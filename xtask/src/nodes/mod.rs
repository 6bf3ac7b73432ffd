//! The agent on real nodes: `cargo xtask vm --kubernetes`.
//!
//! | file | job |
//! |---|---|
//! | `root` | the root file system of a node, made once |
//! | `parts` | the disk of a run: Kubernetes, modules, images, files |
//! | `files` | what makes a Debian a node of the cluster |
//! | `place` | the nodes and their addresses |
//! | `node` | a virtual machine |
//! | `shell` | a root shell in one |
//! | `relay` | the API server's way to the nodes |
//! | `stage` | control plane and nodes together |
//! | `services`, `agents` | what is deployed on them |
//! | `acts` | what is shown, and in which order |
//! | `matrix`, `tries` | who is asked, and by whom |
//! | `latecomers`, `lives`, `upgrades`, `reboots`, `plugin` | the acts |

mod acts;
mod agents;
mod files;
mod latecomers;
mod lives;
mod matrix;
mod node;
mod parts;
mod place;
mod plugin;
mod reboots;
mod relay;
mod root;
mod services;
mod several;
mod shell;
mod stage;
mod tries;
mod upgrades;

use std::io::Read;

use anyhow::{Context, Result, bail};

use crate::manifests::tools;
use crate::step::Steps;
use crate::vm::{kernels, suite};
use crate::{build, kubernetes, setup};
use stage::{Made, Stage};
use zt_tests::interrupt;

/// The kernel of the nodes.
const SERIES: &str = "6.12";

/// The names of what can be chosen to be shown.
pub const ACTS: &[&str] = &acts::NAMES;

/// Shows on two nodes what the agent does there. `only`: no other acts than these, if
/// there are any.
pub fn run(steps: &Steps, keep: bool, only: &[String]) -> Result<()> {
    let tools = setup::run(steps)?;
    setup::for_machines(steps)?;
    let Some(kubernetes) = kubernetes::setup(steps)? else {
        bail!("there is no Go toolchain (https://go.dev/dl, 1.25 or later), and so no Kubernetes");
    };
    let helm = tools::helm(steps)?.context("no Helm")?;
    let object = build::kernel_programs(steps, &tools, build::Warnings::Allowed)?;
    let programs = suite::programs(steps, &object)?;
    let kernels = kernels::newest(steps, &[SERIES.to_owned()])?;
    let kernel = kernels.first().context("no kernel")?;
    let made = Made {
        kubernetes: &kubernetes,
        kernel,
        programs: &programs,
    };
    let directory = tempfile::Builder::new().prefix("zt-nodes-").tempdir()?;
    interrupt::catch()?;
    let mut stage = Stage::start(steps, &made, directory.path())?;
    let result = acts::all(steps, &mut stage, &helm, only);
    if let Err(error) = &result {
        eprintln!("error: {error:#}");
    }
    if keep {
        wait_for_a_person(&stage)?;
    }
    result
}

/// Until Enter or Ctrl-C.
fn wait_for_a_person(stage: &Stage) -> Result<()> {
    eprintln!("kept: KUBECONFIG={}", stage.cluster.kubeconfig().display());
    for node in &stage.nodes {
        eprintln!(
            "root shell of {}: socat - UNIX-CONNECT:{}",
            node.place,
            node.shell.path().display()
        );
    }
    eprintln!("Enter ends it.");
    // Interrupted is as good as Enter.
    let _ = std::io::stdin().read(&mut [0]);
    Ok(())
}
