//! promtool, of Debian's Prometheus, and Helm, built from source.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use zt_tests::cluster::HELM_VARIABLE;

use crate::debian;
use crate::golang::{self, Program};
use crate::step::Steps;

/// Names promtool.
const PROMTOOL: &str = "ZT_PROMTOOL";

const HELM_SOURCES: &str = "tests/helm";
const HELM_MODULE: &str = "helm.sh/helm/v3";

/// What the tests of the manifests run.
#[derive(Clone, Debug)]
pub struct ManifestTools {
    promtool: PathBuf,
    /// Nothing where there is no Go.
    pub helm: Option<PathBuf>,
}

impl ManifestTools {
    /// Builds or downloads what is missing.
    pub fn setup(steps: &Steps) -> Result<Self> {
        Ok(Self {
            promtool: debian::program(steps, "promtool", "prometheus")?,
            helm: helm(steps)?,
        })
    }

    /// Tells a test where they are.
    pub fn hand_over(&self, command: &mut Command) {
        command.env(PROMTOOL, &self.promtool);
        command.envs(self.helm.as_ref().map(|helm| (HELM_VARIABLE, helm)));
    }
}

/// Nothing where there is no Go.
pub fn helm(steps: &Steps) -> Result<Option<PathBuf>> {
    let version = golang::version(HELM_SOURCES, HELM_MODULE)?;
    let program = Program {
        name: "helm",
        title: format!("Build Helm {version} for the tests (2 minutes, once)"),
        sources: HELM_SOURCES,
        files: &["go.mod", "go.sum"],
        package: "helm.sh/helm/v3/cmd/helm",
        linker_flags: linker_flags(&golang::version(HELM_SOURCES, "k8s.io/client-go")?)?,
    };
    program.setup(steps)
}

/// Without them `helm template` believes that every cluster is Kubernetes 1.20.
/// Kubernetes 1.35 is `v0.35` of its client.
fn linker_flags(client: &str) -> Result<String> {
    const PACKAGES: [&str; 2] = ["chartutil", "lint/rules"];
    let minor = client
        .split('.')
        .nth(1)
        .context("the client has no version")?;
    let flags = PACKAGES.map(|package| {
        let variable = format!("-X {HELM_MODULE}/pkg/{package}.k8sVersion");
        format!(" {variable}Major=1 {variable}Minor={minor}")
    });
    Ok(format!("-s -w{}", flags.concat()))
}

/// What a test begins with: the program, or nothing and the test is skipped.
#[cfg(test)]
pub mod here {
    use std::env;
    use std::process::Command;

    use zt_tests::cluster::{HELM_VARIABLE, KUBERNETES_VARIABLE, is_ci};
    use zt_tests::feature;

    #[track_caller]
    pub fn promtool() -> Option<Command> {
        program(super::PROMTOOL)
    }

    #[track_caller]
    pub fn helm() -> Option<Command> {
        program(HELM_VARIABLE)
    }

    #[track_caller]
    pub fn kubectl() -> Option<Command> {
        let mut kubectl = program(KUBERNETES_VARIABLE)?;
        kubectl.arg("kubectl");
        Some(kubectl)
    }

    #[track_caller]
    fn program(variable: &str) -> Option<Command> {
        if let Some(path) = env::var_os(variable) {
            return Some(Command::new(path));
        }
        assert!(
            !is_ci(),
            "{variable} is not set, and in CI nothing is skipped"
        );
        feature::skip(&format!(
            "{variable} is not set; `cargo xtask test` sets it"
        ));
        None
    }

    /// What the command prints; a failure is the test's.
    pub fn output(command: &mut Command) -> String {
        let output = command.output().expect("the program starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}:\n{text}{errors}");
        text
    }
}
