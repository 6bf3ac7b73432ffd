//! What zt-probe says about what it tried: one JSON object a line.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// The name in place of an errno where nothing came before the deadline. The
/// kernel's own giving up is `ETIMEDOUT`.
pub const TIMEOUT: &str = "TIMEOUT";

/// The name in place of an errno where the peer closed the connection in order.
pub const EOF: &str = "EOF";

/// One attempt to reach something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// `connect`, `bind` or `socket` succeeded; for `sendto`, the send.
    pub connected: bool,
    /// What came back; by an echo server `NAME:PAYLOAD`.
    pub reply: Option<String>,
    /// The name of the first error, for example `EPERM`, or [`TIMEOUT`].
    pub errno: Option<String>,
    /// Until the reply or the error, in microseconds.
    pub elapsed_us: u64,
}

impl Attempt {
    /// A request arrived and its reply came back.
    pub fn replied(&self) -> bool {
        self.reply.is_some()
    }
}

/// An attempt to reach one of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    pub name: String,
    pub attempt: Attempt,
}

/// Many connections, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub ok: u64,
    /// Failures by the name of the error.
    pub failed: BTreeMap<String, u64>,
}

impl Summary {
    pub fn count(&mut self, attempt: &Attempt) {
        match &attempt.errno {
            None => self.ok += 1,
            Some(errno) => *self.failed.entry(errno.clone()).or_default() += 1,
        }
    }
}

/// The name of an error as the manual pages write it.
pub fn name_of(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        // What a socket with a time limit answers when it is over.
        Some(Errno::EAGAIN | Errno::EINPROGRESS) => TIMEOUT.to_owned(),
        Some(errno) => format!("{errno:?}"),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof => EOF.to_owned(),
            kind => kind.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_names_of_the_manual_pages() {
        let name = |errno: Errno| name_of(&errno.into());
        assert_eq!(name(Errno::EPERM), "EPERM");
        assert_eq!(name(Errno::ETIMEDOUT), "ETIMEDOUT");
        assert_eq!(name(Errno::EAGAIN), TIMEOUT);
    }
}
