//! What the runtime says on standard input: the plugin's object of the network's
//! list, and what the plugins before it did.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::answer::{Code, Failure};

/// Versions of the specification, the oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
pub const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// Where an agent of the DaemonSet listens.
pub const SOCKET: &str = "/run/zt-agent/agent.sock";
/// How long to wait for what may still come, seconds. Runtimes give a pod's
/// sandbox minutes.
pub const TIMEOUT: u16 = 30;

/// Fields that are others' business are not read.
#[derive(Debug, Deserialize)]
pub struct NetworkConfig {
    #[serde(rename = "cniVersion", default)]
    version: String,
    /// Of the network.
    pub name: String,
    #[serde(default = "socket")]
    pub socket: PathBuf,
    #[serde(
        rename = "timeoutSeconds",
        default = "timeout",
        deserialize_with = "seconds"
    )]
    pub timeout: u16,
    #[serde(rename = "prevResult")]
    pub previous: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub valid: Vec<ValidAttachment>,
}

/// One that a runtime knows.
#[derive(Debug, Deserialize)]
pub struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container: String,
}

fn socket() -> PathBuf {
    SOCKET.into()
}

fn timeout() -> u16 {
    TIMEOUT
}

fn seconds<'de, D: Deserializer<'de>>(text: D) -> Result<u16, D::Error> {
    let seconds = u16::deserialize(text)?;
    if (1..=300).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(serde::de::Error::custom(
            "timeoutSeconds is from 1 to 300 seconds",
        ))
    }
}

impl NetworkConfig {
    /// Reads it. `oldest`: the version with which the command came.
    pub fn read(text: &[u8], oldest: &str) -> Result<Self, Failure> {
        let config: Self = serde_json::from_slice(text).map_err(|error| {
            let message = "the network's configuration is not understood";
            Failure::new(Code::Undecodable, message, error)
        })?;
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        let Some(version) = place(&config.version) else {
            return Err(Failure::new(
                Code::IncompatibleVersion,
                format!("the CNI version {:?} is not supported", config.version),
                format_args!("set cniVersion to one of {}", VERSIONS.join(", ")),
            ));
        };
        if Some(version) < place(oldest) {
            return Err(Failure::new(
                Code::IncompatibleVersion,
                format!("CNI {} has no such command", config.version),
                format_args!("it came with {oldest}"),
            ));
        }
        Ok(config)
    }

    /// What the plugins before this one did, in the configuration's version.
    pub fn previous(&self) -> Result<&Value, Failure> {
        let previous = self.previous.as_ref().ok_or_else(|| {
            Failure::new(
                Code::InvalidConfig,
                "no plugin comes before this one",
                "zt-agent-cni makes no interfaces: put it behind the plugins that do, in the network's list (a .conflist file)",
            )
        })?;
        match previous.get("cniVersion").and_then(Value::as_str) {
            Some(version) if version == self.version => Ok(previous),
            other => Err(Failure::new(
                Code::InvalidConfig,
                "what the plugin before this one said is of another version",
                format_args!(
                    "it has cniVersion {}, and the configuration {}",
                    other.unwrap_or("none"),
                    self.version
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NetworkConfig, Failure> {
        NetworkConfig::read(text.as_bytes(), "0.3.1")
    }

    #[test]
    fn only_the_name_and_a_known_version_are_needed() {
        let config =
            read(r#"{"cniVersion":"1.0.0","name":"pods","type":"zt-agent-cni","ipMasq":true}"#);
        let config = config.unwrap();
        assert_eq!((config.timeout, config.name.as_str()), (30, "pods"));
        assert_eq!(config.socket, PathBuf::from("/run/zt-agent/agent.sock"));
        for (text, code) in [
            (r#"{"name":"pods"}"#, Code::IncompatibleVersion),
            (
                r#"{"cniVersion":"0.2.0","name":"pods"}"#,
                Code::IncompatibleVersion,
            ),
            (
                r#"{"cniVersion":"2.0.0","name":"pods"}"#,
                Code::IncompatibleVersion,
            ),
            (r#"{"cniVersion":"1.0.0"}"#, Code::Undecodable),
            (
                r#"{"cniVersion":"1.0.0","name":"pods","timeoutSeconds":0}"#,
                Code::Undecodable,
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"pods","timeoutSeconds":301}"#,
                Code::Undecodable,
            ),
            ("nonsense", Code::Undecodable),
        ] {
            assert_eq!(read(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn a_command_that_is_newer_than_the_configuration_is_refused() {
        let old = br#"{"cniVersion":"0.4.0","name":"pods"}"#;
        assert!(NetworkConfig::read(old, "0.4.0").is_ok());
        let failure = NetworkConfig::read(old, "1.1.0").unwrap_err();
        assert_eq!(failure.code, Code::IncompatibleVersion);
    }

    #[test]
    fn what_came_before_must_be_there_and_of_the_same_version() {
        let with = |previous: &str| {
            read(&format!(
                r#"{{"cniVersion":"1.0.0","name":"pods","prevResult":{previous}}}"#
            ))
        };
        let good = with(r#"{"cniVersion":"1.0.0","ips":[]}"#).unwrap();
        assert_eq!(good.previous().unwrap()["ips"], serde_json::json!([]));
        for bad in ["null", "{}", r#"{"cniVersion":"0.4.0"}"#] {
            let failure = with(bad).unwrap().previous().unwrap_err();
            assert_eq!(failure.code, Code::InvalidConfig, "{bad}");
        }
    }
}
