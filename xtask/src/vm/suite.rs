//! The integration tests and the programs they start, as static binaries.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::step::Steps;
use crate::suites::{self, Names};

/// Test binaries that are about no kernel: what they need is not in the machines.
const ELSEWHERE: [&str; 1] = ["cluster"];

/// What tests start, and the first process of a machine.
const PROGRAMS: [&str; 3] = ["zt-agent", "zt-guest", "zt-probe"];

/// What cargo built.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Suite {
    /// The test binaries, by the names of their sources.
    pub tests: Vec<Executable>,
    /// What the tests start, and the machine's first process.
    pub programs: Vec<Executable>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    pub name: String,
    pub path: PathBuf,
}

impl Suite {
    /// Takes a test binary away.
    pub fn leave_out(&mut self, name: &str) -> Result<()> {
        let at = self.tests.iter().position(|test| test.name == name);
        // A typing error must not pass for a binary that is left out.
        let at = at.with_context(|| format!("there is no test binary {name}"))?;
        self.tests.remove(at);
        Ok(())
    }

    pub fn program(&self, name: &str) -> Result<&Executable> {
        let mut programs = self.programs.iter();
        let found = programs.find(|program| program.name == name);
        found.with_context(|| format!("cargo built no {name}"))
    }
}

/// Builds the agent and what the tests start, without the tests.
pub fn programs(steps: &Steps, object: &Path) -> Result<Suite> {
    let cargo = || {
        let mut command = suites::cargo("build", object);
        command.args(["--package", "zt-agent", "--package", "zt-tests", "--bins"]);
        command
    };
    steps.run("Build the agent and the probe, static", &mut cargo())?;
    Ok(executables(&messages(cargo())?))
}

/// Builds them with the kernel programs inside.
pub fn build(steps: &Steps, object: &Path) -> Result<Suite> {
    let names = Names::ask()?;
    let cargo = || {
        let mut command = suites::cargo("build", object);
        command.args(suites::SELECTION).arg("--bins");
        command.args(suites::tests(&names.integration));
        command
    };
    steps.run("Build the tests, static", &mut cargo())?;
    let suite = executables(&messages(cargo())?);
    if suite.tests.is_empty() {
        bail!("cargo built no test");
    }
    Ok(suite)
}

/// What cargo says of a build in which everything is fresh.
fn messages(mut cargo: Command) -> Result<String> {
    let output = cargo
        .arg("--message-format=json")
        .output()
        .context("cargo")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo build: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The part of cargo's messages that we know.
#[derive(Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn executables(messages: &str) -> Suite {
    let mut suite = Suite::default();
    for line in messages.lines() {
        let Ok(Artifact { target, executable }) = serde_json::from_str(line) else {
            continue;
        };
        let Some(path) = executable else { continue };
        let list = match target.kind.first().map(String::as_str) {
            Some("test") if ELSEWHERE.contains(&target.name.as_str()) => continue,
            Some("test") => &mut suite.tests,
            Some("bin") if PROGRAMS.contains(&target.name.as_str()) => &mut suite.programs,
            _ => continue,
        };
        list.push(Executable {
            name: target.name,
            path,
        });
    }
    suite
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_programs_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"attacks"},"executable":"/t/attacks-1"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"cluster"},"executable":"/t/cluster-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"zt-probe"},"executable":"/t/zt-probe"}
{"reason":"build-finished","success":true}"#;
        let suite = executables(messages);
        assert_eq!(suite.tests.len(), 1);
        assert_eq!(suite.tests[0].name, "attacks");
        assert_eq!(
            suite.program("zt-probe").unwrap().path,
            PathBuf::from("/t/zt-probe")
        );
        assert!(suite.program("zt-agent").is_err());
        let mut suite = suite;
        assert!(suite.leave_out("attack").is_err());
        suite.leave_out("attacks").unwrap();
        assert!(suite.tests.is_empty());
    }
}
