//! What is tested, and how it is built: once, statically, for this kernel and for
//! virtual machines.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use zt_tests::cluster::is_ci;

use crate::{build, workspace};

/// As what is shipped: it needs no libraries, which the machines do not have.
pub const TARGET: &str = "x86_64-unknown-linux-musl";

/// The same wherever it is built or run: of another selection the crates get other
/// features, and everything is built anew.
pub const SELECTION: [&str; 3] = ["--workspace", "--exclude=zt-ebpf", "--exclude=zt-floor"];

const PROFILE: &str = "tested";

/// The package of the integration tests.
const INTEGRATION: &str = "zt-tests";

/// A cargo command for what is tested, with the kernel programs inside.
pub fn cargo(subcommand: &str, object: &Path) -> Command {
    let mut command = workspace::cargo(subcommand);
    command
        .args(["--profile", PROFILE, "--target", TARGET])
        .env(build::OBJECT_VARIABLE, object);
    if is_ci() {
        // Nothing is built there a second time.
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// Where it puts a program.
pub fn program(name: &str) -> PathBuf {
    let directory = workspace::root().join("target").join(TARGET);
    directory.join(PROFILE).join(name)
}

/// The names of the workspace's test binaries.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// That need this kernel, and root.
    pub integration: Vec<String>,
    pub others: Vec<String>,
}

impl Names {
    pub fn ask() -> Result<Self> {
        let mut command = workspace::cargo("metadata");
        command.args(["--no-deps", "--format-version", "1"]);
        let output = command.output().context("cargo metadata")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cargo metadata: {errors}");
        let names = Self::of(serde_json::from_slice(&output.stdout).context("cargo metadata")?);
        ensure!(!names.integration.is_empty(), "{INTEGRATION} has no tests");
        Ok(names)
    }

    fn of(metadata: Metadata) -> Self {
        let (mut integration, mut others) = (Vec::new(), Vec::new());
        for package in metadata.packages {
            let names = if package.name == INTEGRATION {
                &mut integration
            } else {
                &mut others
            };
            let tests = package.targets.into_iter();
            let tests = tests.filter(|target| target.kind.iter().any(|kind| kind == "test"));
            names.extend(tests.map(|target| target.name));
        }
        Self {
            integration,
            others,
        }
    }
}

/// How cargo is told to take these test binaries.
pub fn tests(names: &[String]) -> impl Iterator<Item = String> {
    names.iter().map(|name| format!("--test={name}"))
}

/// The part of cargo's metadata that we know.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_integration_tests_are_told_from_the_others() {
        let text = r#"{"packages": [
            {"name": "zt-fuzz", "targets": [
                {"name": "zt_fuzz", "kind": ["lib"]}, {"name": "corpus", "kind": ["test"]}]},
            {"name": "zt-tests", "targets": [
                {"name": "frames", "kind": ["test"]}, {"name": "zt-probe", "kind": ["bin"]}]}
        ]}"#;
        let names = Names::of(serde_json::from_str(text).unwrap());
        let expected = Names {
            integration: vec!["frames".into()],
            others: vec!["corpus".into()],
        };
        assert_eq!(names, expected);
    }
}
