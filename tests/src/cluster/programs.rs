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
    /// When what was handed over is no file: a typing error must not pass for a
    /// machine without Kubernetes.
    pub fn from_environment() -> Result<Option<Self>> {
        let (Some(kubernetes), Some(etcd)) = (path(KUBERNETES_VARIABLE)?, path(ETCD_VARIABLE)?)
        else {
            return Ok(None);
        };
        Ok(Some(Self { kubernetes, etcd }))
    }

    /// A part of Kubernetes, such as `kubectl`.
    #[must_use]
    pub fn part(&self, name: &str) -> Command {
        let mut command = Command::new(&self.kubernetes);
        command.arg(name);
        command
    }

    /// The same inside a network namespace.
    #[must_use]
    pub fn part_inside(&self, name: &str, netns: &Netns) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", netns.name()])
            .arg(&self.kubernetes)
            .arg(name);
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
