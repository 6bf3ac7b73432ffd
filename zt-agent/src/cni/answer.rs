//! What a runtime is told. An error is a JSON object on standard output.

use std::{fmt::Display, io};

use serde::Serialize;
use serde_json::Value;

use super::config::{NEWEST, VERSIONS};
use crate::admin::client::ClientError;

/// What went wrong, by the codes of the specification; those from 100 on are
/// this plugin's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    IncompatibleVersion = 1,
    InvalidEnvironment = 4,
    Io = 5,
    Undecodable = 6,
    InvalidConfig = 7,
    TryAgain = 11,
    NotAvailable = 50,
    Refused = 100,
}

/// Why the runtime does not get what it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    /// What.
    pub message: String,
    /// Why, and what to do.
    pub details: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>, details: impl Display) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.to_string(),
        }
    }

    pub fn io(message: &str, error: &io::Error) -> Self {
        Self::new(Code::Io, message, error)
    }

    /// The agent does not say yes.
    pub fn of_agent(message: &str, error: &ClientError) -> Self {
        let code = match error {
            ClientError::Refused(_) => Code::Refused,
            _ => Code::TryAgain,
        };
        Self::new(code, message, error)
    }

    /// As the runtime reads it. `config`: what it sent.
    pub fn text(&self, config: &[u8]) -> String {
        #[derive(Serialize)]
        struct Text<'a> {
            #[serde(rename = "cniVersion")]
            version: String,
            code: u16,
            msg: &'a str,
            details: &'a str,
        }
        let text = Text {
            version: version_of(config),
            code: self.code as u16,
            msg: &self.message,
            details: &self.details,
        };
        line(&text)
    }
}

/// The version in which the runtime speaks, or else the newest.
fn version_of(config: &[u8]) -> String {
    let config: Option<Value> = serde_json::from_slice(config).ok();
    let said = config.and_then(|config| Some(config.get("cniVersion")?.as_str()?.to_owned()));
    said.filter(|version| !version.is_empty())
        .unwrap_or_else(|| NEWEST.to_owned())
}

/// The versions that are understood.
pub fn versions(config: &[u8]) -> String {
    #[derive(Serialize)]
    struct Text {
        #[serde(rename = "cniVersion")]
        version: String,
        #[serde(rename = "supportedVersions")]
        supported: [&'static str; VERSIONS.len()],
    }
    line(&Text {
        version: version_of(config),
        supported: VERSIONS,
    })
}

/// A JSON text and a line break.
pub fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_an_object_in_the_runtimes_version() {
        let failure = Failure::new(Code::TryAgain, "not covered", "the agent is away");
        assert_eq!(
            failure.text(br#"{"cniVersion":"0.4.0"}"#),
            "{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"not covered\",\"details\":\"the agent is away\"}\n"
        );
        for nothing in [&b"nonsense"[..], b"{}", br#"{"cniVersion":7}"#] {
            assert!(failure.text(nothing).contains(r#""cniVersion":"1.1.0""#));
        }
    }

    #[test]
    fn the_versions_are_told_in_the_one_that_was_asked() {
        assert_eq!(
            versions(br#"{"cniVersion":"0.3.1"}"#),
            "{\"cniVersion\":\"0.3.1\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
        );
    }
}
