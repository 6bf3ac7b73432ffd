//! kubectl against the cluster.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Cluster;

/// What a kubectl command came to.
#[derive(Clone, Debug)]
pub struct Answer {
    pub succeeded: bool,
    pub output: String,
    pub errors: String,
}

impl Answer {
    /// Its output, or its errors as ours.
    pub fn ok(self) -> Result<String> {
        ensure!(self.succeeded, "kubectl: {}", self.errors.trim());
        Ok(self.output)
    }
}

impl Cluster {
    /// Runs `kubectl` to its end.
    ///
    /// # Errors
    /// When it cannot be run. That it failed is an answer.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Answer> {
        self.kubectl_with(arguments, "")
    }

    /// The same with a text at its standard input, for `-f -`.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<Answer> {
        let mut child = self
            .kubectl_command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has an input")?;
        let input = input.to_owned();
        // Written beside the reading: neither may wait for the other. What kubectl
        // does not read is of no interest to it.
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let finished = child.wait_with_output()?;
        drop(writer.join());
        Ok(Answer {
            succeeded: finished.status.success(),
            output: String::from_utf8_lossy(&finished.stdout).into_owned(),
            errors: String::from_utf8_lossy(&finished.stderr).into_owned(),
        })
    }

    /// Applies the status of a manifest as an agent does: server-side, by a field
    /// manager of its own.
    pub fn apply_status(&self, manager: &str, manifest: &str) -> Result<()> {
        let manager = format!("--field-manager={manager}");
        let apply = ["apply", "--server-side", "--subresource=status", &manager];
        let applied = self.kubectl_with(&[&apply[..], &["-f", "-"]].concat(), manifest)?;
        applied.ok().map(drop)
    }

    /// `kubectl` for this cluster, without arguments.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.programs.part("kubectl");
        command
            .env("KUBECONFIG", self.kubeconfig())
            // Where it keeps what it learnt about the API.
            .env("HOME", self.path());
        command
    }

    /// Applies documents as a person would, without a flag.
    pub fn apply(&self, documents: &str) -> Result<Answer> {
        self.kubectl_with(&["apply", "-f", "-"], documents)
    }

    /// Makes a namespace with the service account that pods get by default: the
    /// controller that makes it otherwise does not run here.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name])?.ok()?;
        let account = ["create", "serviceaccount", "default", "--namespace", name];
        self.kubectl(&account)?.ok()?;
        Ok(())
    }
}
