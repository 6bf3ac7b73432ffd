//! Where the programs of the control plane are.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::netns::Netns;

/// Names the binary that has all parts of Kubernetes in it.
pub const KUBERNETES_VARIABLE: &str = "ZT_KUBERNETES";
/// Names etcd.
pub const ETCD_VARIABLE: &str = "ZT_ETCD";
/// Go programs collect garbage less often: they live for seconds, and processors are
/// what the tests are short of.
const GARBAGE: (&str, &str) = ("GOGC", "400");

/// What a control plane is started from.
#[derive(Clone, Debug)]
pub struct Programs {
    pub kubernetes: PathBuf,
    pub etcd: PathBuf,
}

impl Programs {
    /// Those that were handed over; `None` where there are none.
    ///
    /// # Errors
    /// When only one was handed over, or what was handed over is no file: a typing
    /// error must not pass for a machine without Kubernetes.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::both(path(KUBERNETES_VARIABLE)?, path(ETCD_VARIABLE)?)
    }

    fn both(kubernetes: Option<PathBuf>, etcd: Option<PathBuf>) -> Result<Option<Self>> {
        let missing = match (kubernetes, etcd) {
            (Some(kubernetes), Some(etcd)) => return Ok(Some(Self { kubernetes, etcd })),
            (None, None) => return Ok(None),
            (None, Some(_)) => KUBERNETES_VARIABLE,
            (Some(_), None) => ETCD_VARIABLE,
        };
        bail!(
            "{missing} is missing: set both {KUBERNETES_VARIABLE} and {ETCD_VARIABLE}, or neither"
        )
    }

    /// A part of Kubernetes, such as `kubectl`.
    #[must_use]
    pub fn part(&self, name: &str) -> Command {
        let mut command = Command::new(&self.kubernetes);
        command.arg(name).env(GARBAGE.0, GARBAGE.1);
        command
    }

    /// The same inside a network namespace.
    #[must_use]
    pub fn part_inside(&self, name: &str, netns: &Netns) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", netns.name()])
            .arg(&self.kubernetes)
            .arg(name)
            .env(GARBAGE.0, GARBAGE.1);
        command
    }
}

fn path(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = env::var_os(variable).map(PathBuf::from) else {
        return Ok(None);
    };
    if !path.is_file() {
        bail!("{variable} names {}, and that is no file", path.display());
    }
    Ok(Some(path))
}

/// Whether nothing may be left out for want of a tool.
#[must_use]
pub fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_without_the_other_is_no_machine_without_kubernetes() {
        let there = || Some(PathBuf::from("/bin/true"));
        assert!(Programs::both(None, None).unwrap().is_none());
        assert!(Programs::both(there(), there()).unwrap().is_some());
        for (one, other, missing) in [
            (there(), None, ETCD_VARIABLE),
            (None, there(), KUBERNETES_VARIABLE),
        ] {
            let error = Programs::both(one, other).unwrap_err().to_string();
            assert!(error.starts_with(missing), "{error}");
        }
    }
}
