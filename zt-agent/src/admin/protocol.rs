//! Requests and replies of the admin socket.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use zt_common::codes::Protocol;

use crate::{
    agent::board::{ClusterFact, InterfaceFact},
    model::Mode,
    source::{
        identities::{Uncovered, Waiting},
        kubernetes::objects::Uid,
        quarantine::SpiffeIdText,
    },
};

/// The first line from a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Audit records as they are made, a line each, until the client hangs
    /// up. `{"lagged":N}`: the client was too slow and N are missing.
    Observe {},
    /// Reply: [`Enrolled`], once it is enforced. Lasts until the client hangs
    /// up.
    Enrol(Enrol),
    /// Take the network namespace whose descriptor comes with the first byte for
    /// a pod's. Reply: [`Attached`], once the pod's interface is covered.
    Attach(Attach),
    /// Whether anything could be attached. Reply: [`Done`].
    Attachable {},
    /// Forget what was attached. Reply: [`Done`], also if that is nothing.
    Detach(Detach),
    /// Read the files again. Reply: [`Applied`].
    Reload {},
    /// Reply: [`AgentStatus`].
    Status {},
}

/// A cgroup to enrol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    pub spiffe_id: SpiffeIdText,
    /// Absolute.
    pub cgroup: PathBuf,
    /// Its own on loopback and on every address of the node.
    #[serde(default)]
    pub ports: Vec<OwnPort>,
    /// `None`: the node's.
    #[serde(default)]
    pub mode: Option<ModeWord>,
}

/// A pod that has a network namespace and no process in it yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    pub pod: Uid,
    /// The pod's.
    pub namespace: String,
    pub name: String,
    /// The runtime's name for what the namespace belongs to.
    pub sandbox: String,
    /// The network that it is made a member of.
    pub network: String,
    /// The interface inside that must be covered.
    pub interface: String,
    /// How long to wait for what may still come, seconds.
    pub timeout: u16,
}

/// What was attached and is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Detach {
    Sandbox(String),
    /// Every sandbox of a network but these.
    Others {
        network: String,
        sandboxes: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ModeWord {
    Enforce,
    Audit,
}

impl From<ModeWord> for Mode {
    fn from(word: ModeWord) -> Self {
        match word {
            ModeWord::Enforce => Self::Enforce,
            ModeWord::Audit => Self::Audit,
        }
    }
}

/// A port with its protocol: `8080/tcp`; without one it is TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OwnPort {
    pub port: u16,
    pub protocol: Protocol,
}

impl FromStr for OwnPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no port; write it like 8080/tcp or 53/udp");
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(bad()),
        };
        let port: u16 = port.parse().map_err(|_| bad())?;
        if port == 0 {
            return Err(bad());
        }
        Ok(Self { port, protocol })
    }
}

impl fmt::Display for OwnPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name().to_lowercase();
        write!(f, "{}/{protocol}", self.port)
    }
}

impl TryFrom<String> for OwnPort {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<OwnPort> for String {
    fn from(port: OwnPort) -> Self {
        port.to_string()
    }
}

/// The reply to everything but `observe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<T> {
    Ok(T),
    /// What is wrong, for a person.
    Error(String),
}

/// A pod's interfaces are covered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The names of the node's ends.
    pub interfaces: Vec<String>,
}

/// There is nothing more to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// A change is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub generation: u32,
    /// Map rows that were written; 0: nothing had to change.
    pub rows: usize,
}

/// The agent's own state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub generation: u32,
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready: Vec<String>,
    /// Why the last change is not in force.
    pub last_error: Option<String>,
    /// RFC 3339.
    pub last_applied: Option<String>,
    pub workloads: usize,
    pub quarantined: usize,
    /// Workloads that are not enrolled, and why.
    pub waiting: Vec<Waiting>,
    /// Interfaces at which frames are decided, or should be.
    pub interfaces: Vec<InterfaceFact>,
    /// Workloads whose frames pass no interface that can be governed.
    pub uncovered: Vec<Uncovered>,
    /// What the default drop dropped, by nftables family, in packets.
    pub dropped: BTreeMap<String, u64>,
    pub observers: usize,
    /// What somebody altered in the kernel and the agent put right, by kind,
    /// since it started.
    #[serde(default)]
    pub repairs: BTreeMap<String, u64>,
    /// The last of them.
    #[serde(default)]
    pub last_repair: Option<String>,
    /// Connections that were ended because they are no longer allowed, by
    /// reason.
    #[serde(default)]
    pub connections_cut: BTreeMap<String, u64>,
    /// Why none can be.
    #[serde(default)]
    pub cannot_cut: Option<String>,
    /// The time (RFC 3339) from which the wall clock was set back, until it
    /// shows that again: grants with deadlines up to then stay lapsed.
    #[serde(default)]
    pub clock_set_back_from: Option<String>,
    /// How the cluster is followed, if identities come from there.
    #[serde(default)]
    pub cluster: Option<ClusterFact>,
    /// Claims of the cluster that are not believed.
    #[serde(default)]
    pub complaints: Vec<String>,
    pub trail: Option<Trail>,
}

/// The audit trail; see [`crate::audit::TrailStatus`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trail {
    pub healthy: bool,
    pub last_error: Option<String>,
    pub consumed: u64,
    pub recorded: u64,
    pub lost: crate::audit::Losses,
    /// Held by folding.
    pub pending: u64,
    /// Handed to the writer and not in the file yet.
    pub unwritten: u64,
    /// In the ring, not consumed yet.
    pub in_ring: u64,
    pub write_errors: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#"{"observe":{}}"#).unwrap(), Request::Observe {});
        assert_eq!(read(r#"{"reload":{}}"#).unwrap(), Request::Reload {});
        assert_eq!(read(r#"{"status":{}}"#).unwrap(), Request::Status {});
        let enrol = read(
            r#"{"enrol":{"spiffe_id":"spiffe://td/a","cgroup":"/x","ports":["8080/tcp"],"mode":null}}"#,
        );
        let Request::Enrol(enrol) = enrol.unwrap() else {
            panic!()
        };
        assert_eq!(enrol.ports[0].to_string(), "8080/tcp");
        assert_eq!(enrol.mode, None);
    }

    #[test]
    fn what_the_plugin_asks_reads_as_documented() {
        let text = r#"{"attach":{"pod":"0f0e0d0c-1111-4222-8333-444455556666","namespace":"shop","name":"web","sandbox":"0123","network":"pods","interface":"eth0","timeout":30}}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert!(matches!(&request, Request::Attach(attach) if attach.timeout == 30));
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        for text in [
            r#"{"detach":{"sandbox":"0123"}}"#,
            r#"{"detach":{"others":{"network":"pods","sandboxes":["0123"]}}}"#,
            r#"{"attachable":{}}"#,
        ] {
            let request: Request = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        for text in [
            r#"{"attach":{"pod":"0F0E0D0C-1111-4222-8333-444455556666","namespace":"shop","name":"web","sandbox":"0123","network":"pods","interface":"eth0","timeout":30}}"#,
            r#"{"detach":{}}"#,
            r#"{"observe":{"from":"x"}}"#,
            r#"{"enrol":{"spiffe_id":"nobody","cgroup":"/x"}}"#,
            r#"{"enrol":{"spiffe_id":"spiffe://td/a","cgroup":"/x","ports":["0/tcp"]}}"#,
            r#"{"enrol":{"spiffe_id":"spiffe://td/a","cgroup":"/x","port":[]}}"#,
            r#"{"obey":{}}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn replies_are_ok_or_error() {
        let ok = Reply::Ok(Applied {
            generation: 3,
            rows: 1,
        });
        let text = serde_json::to_string(&ok).unwrap();
        assert_eq!(text, r#"{"ok":{"generation":3,"rows":1}}"#);
        let error: Reply<Applied> = serde_json::from_str(r#"{"error":"no"}"#).unwrap();
        assert_eq!(error, Reply::Error("no".into()));
    }
}
