//! Helm against the cluster.

use std::env;
use std::process::Command;

use super::{Cluster, is_ci};
use crate::feature;

/// Names Helm.
pub const HELM_VARIABLE: &str = "ZT_HELM";

impl Cluster {
    /// `helm` for this cluster, without arguments. Where it was not built the test
    /// counts as skipped, and must return.
    ///
    /// # Panics
    /// In CI where it was not built.
    #[must_use]
    #[track_caller]
    pub fn helm_command(&self) -> Option<Command> {
        let Some(program) = env::var_os(HELM_VARIABLE) else {
            let probed =
                format!("no {HELM_VARIABLE} in the environment; `cargo xtask test` sets it");
            assert!(!is_ci(), "nothing may be skipped in CI: {probed}");
            feature::skip(&probed);
            return None;
        };
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", self.kubeconfig())
            // Where it keeps what it learnt.
            .env("HOME", self.path());
        Some(command)
    }
}
