//! The agent's files: what a person would write for these services.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use zt_tests::agent::save;

use super::services::{Service, Transport};
use super::stage::Stage;
use crate::workspace;

/// The seeds' policy, unchanged, from the root of the clone.
const DOCUMENT: &str = "zt-agent/testdata/hanzo-core-policy.yaml";

/// Where the files are, and the policy document.
pub struct Files {
    directory: PathBuf,
    managed: PathBuf,
    pins: PathBuf,
    listen: SocketAddr,
    document: String,
}

impl Files {
    /// Writes them all. `listen` is for health and metrics.
    pub fn write(stage: &Stage, listen: SocketAddr) -> Result<Self> {
        let source = workspace::root().join(DOCUMENT);
        let document = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        let files = Self {
            directory: stage.sandbox().directory(),
            managed: stage.managed().path().to_owned(),
            pins: stage.bpffs().join("zt"),
            listen,
            document,
        };
        fs::create_dir(files.directory.join("policies"))?;
        files.write_config("enforce")?;
        fs::write(files.directory.join("identities.yaml"), identities(stage))?;
        files.write_policy(&files.document)?;
        Ok(files)
    }

    pub fn config(&self) -> PathBuf {
        self.directory.join("config.yaml")
    }

    pub fn policy(&self) -> PathBuf {
        self.directory.join("policies/hanzo-core-policy.yaml")
    }

    pub fn trail(&self) -> PathBuf {
        self.directory.join("audit.jsonl")
    }

    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Writes the configuration with another mode: `enforce` or `audit`.
    pub fn write_config(&self, mode: &str) -> Result<()> {
        let (managed, pins, listen) = (self.managed.display(), self.pins.display(), self.listen);
        let text = format!(
            "node: demo\n\
             mode: {mode}\n\
             cgroupRoot: {managed}\n\
             pinDirectory: {pins}\n\
             stateDirectory: state\n\
             runtimeDirectory: run\n\
             identities: identities.yaml\n\
             policies: [policies/]\n\
             interfaces: {{managed: [\"p*\"]}}\n\
             audit:\n  file: audit.jsonl\n  foldSeconds: 1\n  checkpointSeconds: 2\n\
             listen: {listen}\n"
        );
        fs::write(self.config(), text).context("cannot write the configuration")
    }

    /// Saves the policy document as editors do: all of it or nothing.
    pub fn write_policy(&self, text: &str) -> Result<()> {
        save(&self.policy(), text)
    }

    /// The document as the seeds have it.
    pub fn document(&self) -> &str {
        &self.document
    }

    /// The document with one rule more: chat may reach postgres.
    pub fn document_with_chat_to_postgres(&self) -> Result<String> {
        with_chat_to_postgres(&self.document)
    }
}

fn with_chat_to_postgres(document: &str) -> Result<String> {
    let after = "          ports: [4000]\n";
    ensure!(
        document.matches(after).count() == 1,
        "{DOCUMENT} is not what the demo was written for"
    );
    let rule = format!(
        "{after}        - spiffe: \"{}\"\n          ports: [{}]\n",
        Service::Postgres.spiffe(),
        Service::Postgres.port()
    );
    Ok(document.replace(after, &rule))
}

fn identities(stage: &Stage) -> String {
    let mut text = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n".to_owned();
    for service in Service::ALL {
        let workload = stage.workload(service);
        let address = |transport| stage.address(service, transport).ip();
        let (ipv4, ipv6) = (address(Transport::Tcp4), address(Transport::Tcp6));
        let namespace = workload.netns().map_or("", |netns| netns.name());
        let _ = write!(
            text,
            "  - spiffe: {}\n    cgroup: {}\n    addresses: [{ipv4}, \"{ipv6}\"]\n    networkNamespace: {namespace}\n",
            service.spiffe(),
            workload.cgroup().path().display()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_added_to_chat_s_and_nothing_else_changes() {
        let path = workspace::root().join(DOCUMENT);
        let document = fs::read_to_string(path).unwrap();
        let edited = with_chat_to_postgres(&document).unwrap();
        let rule = "        - spiffe: \"spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres\"\n          ports: [5432]\n";
        let chat = edited.find("hanzo/chat").unwrap();
        let at = edited[chat..].find(rule).unwrap() + chat;
        assert_eq!(
            edited[..at].to_owned() + &edited[at + rule.len()..],
            document
        );
        assert!(with_chat_to_postgres("").is_err());
    }
}
