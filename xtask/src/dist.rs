//! What is deployed and made from the source: the definitions of the resources.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::step::Steps;
use crate::workspace;

/// Where they lie, below the root of the clone.
const DEFINITIONS: &str = "deploy/base/crd.yaml";

pub fn run(steps: &Steps) -> Result<()> {
    let mut build = workspace::cargo("build");
    steps.run("Build the agent", build.args(["--package", "zt-agent"]))?;
    let path = workspace::root().join(DEFINITIONS);
    steps.check(&format!("Write {DEFINITIONS}"), || write_definitions(&path))
}

fn write_definitions(path: &Path) -> Result<()> {
    let mut agent = workspace::cargo("run");
    agent.args(["--quiet", "--package", "zt-agent", "--", "policy", "crd"]);
    let printed = agent.output().context("cannot run the agent")?;
    let errors = String::from_utf8_lossy(&printed.stderr);
    ensure!(printed.status.success(), "zt-agent policy crd: {errors}");
    fs::write(path, printed.stdout).with_context(|| path.display().to_string())
}
