//! Netlink: what the kernel's network side is asked and told without bpf(2).
//!
//! A thin layer of our own: nf_tables and the socket diagnostics need
//! messages by hand anyway, there are no maintained crates for them without C
//! libraries, and the few route messages weigh less than another three crates.
//!
//! | file | job |
//! |---|---|
//! | `message` | messages and attributes, written and read |
//! | `socket` | requests, dumps and batches, and their answers |
//! | `links` | interfaces, addresses and namespace ids of the caller's namespace |
//! | `watch` | says when links changed |
//! | `traffic_control` | classifiers of the `clsact` queueing discipline |
//! | `nftables` | transactions of nf_tables, and what is there |
//!
//! A socket belongs to the network namespace of the thread that opened it,
//! wherever it is used later.

pub mod links;
pub mod message;
pub mod nftables;
pub mod socket;
pub mod traffic_control;
pub mod watch;

use std::io;

/// What can go wrong with netlink.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("netlink socket for {protocol}: {source}")]
    Socket {
        protocol: &'static str,
        source: io::Error,
    },
    /// The kernel said no; `text` is its explanation, where it gives one.
    #[error("netlink, {what}: {source}{}", explained(text.as_deref()))]
    Refused {
        what: String,
        source: io::Error,
        text: Option<String>,
    },
    /// The answer was not understood: nothing of it is used.
    #[error("netlink, {what}: the kernel's answer is {problem}")]
    Answer { what: String, problem: &'static str },
}

fn explained(text: Option<&str>) -> String {
    text.map(|text| format!(" ({text})")).unwrap_or_default()
}

impl NetlinkError {
    /// The error number, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket { source, .. } | Self::Refused { source, .. } => source.raw_os_error(),
            Self::Answer { .. } => None,
        }
    }

    pub(crate) fn answer(what: &str) -> impl Fn(message::Malformed) -> Self {
        move |_| Self::Answer {
            what: what.to_owned(),
            problem: "malformed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_asked_and_the_kernels_own_words() {
        let refused = |text: Option<&str>| NetlinkError::Refused {
            what: "links".into(),
            source: io::Error::from_raw_os_error(libc::EPERM),
            text: text.map(str::to_owned),
        };
        let plain = refused(None).to_string();
        assert!(
            plain.starts_with("netlink, links: Operation not permitted"),
            "{plain}"
        );
        assert!(refused(Some("why")).to_string().ends_with(" (why)"));
        assert_eq!(refused(None).errno(), Some(libc::EPERM));
    }
}
