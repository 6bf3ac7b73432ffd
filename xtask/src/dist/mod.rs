//! What is deployed: what of it is made from the source and kept in the clone, and
//! what is handed to others, in `target/dist`.
//!
//! | file | job |
//! |---|---|
//! | `chart` | the Helm chart, made from the kustomize base |
//! | `image` | the image around the static binary |
//! | `tar` | archives that do not change from one run to the next |

mod chart;
#[cfg(test)]
mod chart_tests;
pub mod image;
mod tar;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::manifests::tools;
use crate::step::Steps;
use crate::suites::TARGET;
use crate::{build, kubernetes, setup, workspace};

/// The definitions of the resources, below the root of the clone.
const DEFINITIONS: &str = "deploy/base/crd.yaml";

const OVERLAYS: &str = "deploy/overlays";

#[derive(clap::Args)]
pub struct Arguments {
    /// Write only what is kept in the clone: definitions of the resources, Helm
    /// chart.
    #[arg(long)]
    kept: bool,
}

pub fn run(steps: &Steps, arguments: &Arguments) -> Result<()> {
    let mut build = workspace::cargo("build");
    steps.run("Build the agent", build.args(["--package", "zt-agent"]))?;
    let path = workspace::root().join(DEFINITIONS);
    steps.check(&format!("Write {DEFINITIONS}"), || write_definitions(&path))?;
    steps.check(&format!("Write {}", chart::PLACE), || {
        chart::write(&workspace::root())
    })?;
    if arguments.kept {
        return Ok(());
    }
    hand_out(steps)
}

fn write_definitions(path: &Path) -> Result<()> {
    let mut agent = workspace::cargo("run");
    agent.args(["--quiet", "--package", "zt-agent", "--", "policy", "crd"]);
    fs::write(path, output(&mut agent)?).with_context(|| path.display().to_string())
}

/// Binary, image, and the manifests as one file each.
fn hand_out(steps: &Steps) -> Result<()> {
    let place = workspace::root().join("target/dist");
    // What an earlier version left there must not be taken for this one's.
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    let built = binary(steps)?;
    fs::copy(&built, place.join("zt-agent")).with_context(|| built.display().to_string())?;
    let version = env!("CARGO_PKG_VERSION");
    steps.check("Write the image", || {
        let archive = image::archive(&fs::read(&built)?)?;
        Ok(fs::write(
            place.join(format!("zt-agent-{version}.oci.tar")),
            archive,
        )?)
    })?;
    image::try_with(steps, &built)?;
    manifests(steps, &place)?;
    steps.note("it is in target/dist");
    Ok(())
}

/// The static agent, with optimisations: what is shipped.
pub fn binary(steps: &Steps) -> Result<PathBuf> {
    let tools = setup::run(steps)?;
    setup::for_static(steps)?;
    let object = build::kernel_programs(steps, &tools, build::Warnings::Allowed)?;
    let mut build = workspace::cargo("build");
    build
        .args(["--release", "--target", TARGET, "--package", "zt-agent"])
        .env(build::OBJECT_VARIABLE, object);
    steps.run("Build the agent, static", &mut build)?;
    Ok(workspace::root().join(format!("target/{TARGET}/release/zt-agent")))
}

/// Nothing where there is no Go, which kubectl and Helm are built with.
fn manifests(steps: &Steps, place: &Path) -> Result<()> {
    let (Some(kubernetes), Some(helm)) = (kubernetes::binary(steps)?, tools::helm(steps)?) else {
        return Ok(());
    };
    for overlay in fs::read_dir(workspace::root().join(OVERLAYS))? {
        let overlay = overlay?;
        let name = overlay.file_name().display().to_string();
        let mut kubectl = Command::new(&kubernetes);
        kubectl.args(["kubectl", "kustomize"]).arg(overlay.path());
        steps.check(&format!("Write {name}.yaml"), || {
            Ok(fs::write(
                place.join(format!("{name}.yaml")),
                output(&mut kubectl)?,
            )?)
        })?;
    }
    let mut package = Command::new(helm);
    package.current_dir(workspace::root());
    package.args(["package", chart::PLACE, "--destination"]);
    steps.run("Pack the chart", package.arg(place))?;
    Ok(())
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let printed = command.output().context(program.clone())?;
    let errors = String::from_utf8_lossy(&printed.stderr);
    ensure!(printed.status.success(), "{program}: {errors}");
    Ok(printed.stdout)
}
