//! What a cluster needs when there are nodes: a way for them to the API server and
//! back, users for them, and what schedules pods and makes them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Child;

use anyhow::{Context, Result};
use serde_json::json;

use super::Cluster;
use super::child;

/// What lies outside of the control plane.
#[derive(Clone, Debug)]
pub struct Outside {
    /// Where the nodes find the API server; its port is the one on loopback.
    pub address: Ipv4Addr,
    /// A Unix socket that takes HTTP CONNECT: the way to the nodes, for the logs of
    /// pods and for commands in them.
    pub relay: PathBuf,
    pub users: Vec<User>,
}

/// Somebody with a token.
#[derive(Clone, Debug)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
    pub token: String,
}

impl User {
    /// # Errors
    /// When there are no random numbers.
    pub fn new(name: &str, groups: &[&str]) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            token: super::servers::random_token()?,
        })
    }

    /// Of the API server's file of tokens.
    pub(super) fn row(&self) -> String {
        let Self {
            name,
            groups,
            token,
        } = self;
        format!("{token},{name},{name},\"{}\"\n", groups.join(","))
    }
}

/// Controllers and scheduler. Dropping it ends them.
#[derive(Debug)]
pub struct Controllers(Vec<Child>);

impl Drop for Controllers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if let Err(error) = child::end(child) {
                eprintln!("a controller is not gone: {error:#}");
            }
        }
    }
}

impl Cluster {
    /// Starts what makes pods of Deployments and DaemonSets and places them.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_controllers(&self) -> Result<Controllers> {
        let mut controllers = Controllers(Vec::new());
        for (part, own) in [
            (
                "kube-controller-manager",
                vec![
                    ("root-ca-file", self.certificate_authority()),
                    (
                        "service-account-private-key-file",
                        self.service_account_key(),
                    ),
                ],
            ),
            ("kube-scheduler", Vec::new()),
        ] {
            let mut command = self.programs.part(part);
            let kubeconfig = self.kubeconfig();
            for (name, path) in own.iter().chain([&("kubeconfig", kubeconfig)]) {
                command.arg(format!("--{name}={}", path.display()));
            }
            // One of each, and nobody asks them anything.
            command.args(["--leader-elect=false", "--secure-port=0"]);
            controllers.0.push(self.spawn(command, part)?);
        }
        Ok(controllers)
    }

    /// How a user outside of the control plane finds it.
    ///
    /// # Errors
    /// When the API server's certificate cannot be read.
    pub fn kubeconfig_of(&self, user: &User, address: Ipv4Addr) -> Result<String> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};

        let path = self.certificate_authority();
        let authority = fs::read(&path).with_context(|| path.display().to_string())?;
        let name = &user.name;
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{address}:{}", self.api_port()),
                "certificate-authority-data": STANDARD.encode(authority),
            }}],
            "users": [{"name": name, "user": {"token": user.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        })
        .to_string())
    }

    /// The API server's file that says how to reach what.
    pub(super) fn egress(&self) -> PathBuf {
        self.directory.join("egress.json")
    }

    pub(super) fn write_egress(&self, outside: &Outside) -> Result<()> {
        let selection = json!({
            "apiVersion": "apiserver.k8s.io/v1beta1",
            "kind": "EgressSelectorConfiguration",
            "egressSelections": [{"name": "cluster", "connection": {
                "proxyProtocol": "HTTPConnect",
                "transport": {"uds": {"udsName": outside.relay}},
            }}],
        });
        Ok(fs::write(self.egress(), selection.to_string())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_row_with_its_groups_as_one_field() {
        let user = User {
            name: "system:node:a".to_owned(),
            groups: vec!["system:nodes".to_owned(), "x".to_owned()],
            token: "t".to_owned(),
        };
        assert_eq!(
            user.row(),
            "t,system:node:a,system:node:a,\"system:nodes,x\"\n"
        );
    }
}
