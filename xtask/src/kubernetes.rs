//! A real control plane for the tests: Kubernetes built from source into one
//! binary, and Debian's etcd. Both are kept outside the clone.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use zt_tests::cluster::{ETCD_VARIABLE, KUBERNETES_VARIABLE};

use crate::golang::{self, Program};
use crate::step::Steps;
use crate::{debian, setup};

/// What the binary is built from, below the root of the clone.
const SOURCES: &str = "tests/kubernetes";
const SOURCE_FILES: [&str; 3] = ["main.go", "go.mod", "go.sum"];

/// What makes the key that signs service accounts' tokens.
const PACKAGES: [setup::Package; 1] = [("openssl", "openssl")];

/// What the tests of a cluster start.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// All parts of Kubernetes; the first argument says which.
    pub binary: PathBuf,
    pub etcd: PathBuf,
}

impl Kubernetes {
    /// Tells a test where they are.
    pub fn hand_over(&self, command: &mut Command) {
        command.env(KUBERNETES_VARIABLE, &self.binary);
        command.env(ETCD_VARIABLE, &self.etcd);
    }
}

/// Builds or downloads what is missing. Nothing where there is no Go.
pub fn setup(steps: &Steps) -> Result<Option<Kubernetes>> {
    let Some(binary) = binary(steps)? else {
        return Ok(None);
    };
    setup::packages(steps, &PACKAGES)?;
    let etcd = debian::program(steps, "etcd", "etcd-server")?;
    Ok(Some(Kubernetes { binary, etcd }))
}

/// All parts of Kubernetes, kubectl among them. Nothing where there is no Go.
pub fn binary(steps: &Steps) -> Result<Option<PathBuf>> {
    let version = golang::version(SOURCES, "k8s.io/kubernetes")?;
    let program = Program {
        name: "kubernetes",
        title: format!("Build Kubernetes {version} for the tests (5 to 10 minutes, once)"),
        sources: SOURCES,
        files: &SOURCE_FILES,
        package: ".",
        linker_flags: linker_flags(&version)?,
    };
    program.setup(steps)
}

/// Without them every part says that it is v0.0.0, and clients warn.
fn linker_flags(version: &str) -> Result<String> {
    const PACKAGE: &str = "k8s.io/component-base/version";
    let mut numbers = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("{version:?} is no version of Kubernetes");
    };
    Ok(format!(
        "-s -w -X {PACKAGE}.gitVersion={version} -X {PACKAGE}.gitMajor={major} -X {PACKAGE}.gitMinor={minor}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_told_its_version() {
        let flags = linker_flags("v1.35.4").unwrap();
        for flag in ["gitVersion=v1.35.4", "gitMajor=1", "gitMinor=35"] {
            assert!(flags.contains(flag), "{flags}");
        }
        assert!(linker_flags("latest").is_err());
    }
}
