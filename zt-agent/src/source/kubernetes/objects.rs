//! What is kept of the cluster's objects: as little as decides something, so
//! that ten thousand pods take a few megabytes.
//!
//! Nothing that a pod's owner may write (labels, annotations, its name) is
//! here but the name, and that is only for people.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zt_common::codes::Protocol;

use super::tally::Tally;
use crate::{document::SourceFile, model::Mode};

/// The UID of an object: a UUID, which nobody else ever gets again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid(u128);

impl Uid {
    /// Of eight, four, four, four and twelve hexadecimal digits.
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

    #[must_use]
    pub const fn new(number: u128) -> Self {
        Self(number)
    }

    /// Reads the one spelling that it has, lower case, with this between the
    /// groups of digits.
    #[must_use]
    pub fn with_separator(text: &str, separator: char) -> Option<Self> {
        let mut number = 0u128;
        let mut groups = text.split(separator);
        for length in Self::GROUPS {
            let group = groups.next().filter(|group| group.len() == length)?;
            for byte in group.bytes() {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    b'a'..=b'f' => byte - b'a' + 10,
                    _ => return None,
                };
                number = number << 4 | u128::from(digit);
            }
        }
        groups.next().is_none().then_some(Self(number))
    }
}

/// It is no UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no UID: five groups of hexadecimal digits in lower case, with dashes")]
pub struct NoUid;

impl FromStr for Uid {
    type Err = NoUid;

    fn from_str(text: &str) -> Result<Self, NoUid> {
        Self::with_separator(text, '-').ok_or(NoUid)
    }
}

impl TryFrom<String> for Uid {
    type Error = NoUid;

    fn try_from(text: String) -> Result<Self, NoUid> {
        text.parse()
    }
}

impl From<Uid> for String {
    fn from(uid: Uid) -> Self {
        uid.to_string()
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let mut rest = digits.as_str();
        for (place, length) in Self::GROUPS.into_iter().enumerate() {
            let (group, after) = rest.split_at(length);
            write!(f, "{}{group}", if place == 0 { "" } else { "-" })?;
            rest = after;
        }
        Ok(())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An object's `resourceVersion`. Those of one kind can be compared (since
/// Kubernetes 1.35 it is promised, and etcd always counted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(Option<u64>);

impl Version {
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.parse().ok())
    }

    /// Whether what bears it is older than what bears the other. Where that
    /// cannot be told, whatever came last is believed.
    #[must_use]
    pub fn is_before(self, other: Self) -> bool {
        matches!((self.0, other.0), (Some(one), Some(other)) if one < other)
    }
}

/// What every kind has.
pub trait Object {
    fn uid(&self) -> Uid;
    fn version(&self) -> Version;
    /// Whether there is anything new in it; versions differ also where
    /// nothing is that we keep.
    fn says_the_same(&self, other: &Self) -> bool;
}

macro_rules! object {
    ($($kind:ident),+) => {
        $(impl Object for $kind {
            fn uid(&self) -> Uid {
                self.uid
            }

            fn version(&self) -> Version {
                self.version
            }

            fn says_the_same(&self, other: &Self) -> bool {
                self.facts == other.facts
            }
        })+
    };
}

object!(Pod, Node, Namespace, Service, Slice, ServiceRange, Document);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub uid: Uid,
    pub version: Version,
    pub facts: PodFacts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    pub namespace: Arc<str>,
    /// For people.
    pub name: Box<str>,
    /// Empty: it has none (a static pod).
    pub service_account: Arc<str>,
    /// `None`: not scheduled.
    pub node: Option<Arc<str>>,
    pub host_network: bool,
    pub phase: Phase,
    pub addresses: Box<[IpAddr]>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `Pending`, or nobody knows.
    Ahead,
    Running,
    /// `Succeeded` or `Failed`: its addresses may be given to somebody else.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub uid: Uid,
    pub version: Version,
    pub facts: NodeFacts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: Arc<str>,
    /// The ranges of its pods.
    pub ranges: Box<[IpNet]>,
    pub addresses: Box<[IpAddr]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub uid: Uid,
    pub version: Version,
    pub facts: NamespaceFacts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    pub name: Arc<str>,
    pub mode: NamespaceMode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub uid: Uid,
    pub version: Version,
    pub facts: ServiceFacts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Those that the API server gave it, its `clusterIPs`.
    pub addresses: Box<[IpAddr]>,
    /// Others that proxies lead to it, its `externalIPs` and its load balancer's:
    /// they may be anybody's.
    pub outside: Box<[IpAddr]>,
    pub ports: Box<[PortFacts]>,
}

/// A port of a Service, or the one behind it of a slice of its backends. They
/// belong together by name and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFacts {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// An `EndpointSlice`: some of the backends of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub uid: Uid,
    pub version: Version,
    pub facts: SliceFacts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    pub namespace: Arc<str>,
    pub name: Box<str>,
    /// By the label by which proxies find it, too.
    pub service: Arc<str>,
    pub ports: Box<[PortFacts]>,
    /// Those to which a proxy may lead.
    pub addresses: Box<[IpAddr]>,
    /// Otherwise it has an address or a port that cannot be read, and a proxy
    /// may lead somewhere that is not known here.
    pub is_legible: bool,
}

/// A `ServiceCIDR`: where the API server takes the addresses of Services from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    pub uid: Uid,
    pub version: Version,
    pub facts: Box<[IpNet]>,
}

/// A `ServiceAccessPolicy` or an `IdentityGroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub uid: Uid,
    pub version: Version,
    pub facts: DocumentFacts,
    /// What its status says; of a group nothing.
    pub tally: Tally,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentFacts {
    pub name: Arc<str>,
    /// Counts the versions of its `spec`.
    pub generation: i64,
    pub document: SourceFile,
}

/// The annotation of a namespace that says in which mode its pods are.
pub const MODE_ANNOTATION: &str = "zt.hanzo.ai/mode";

/// What a namespace says of the mode of its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceMode {
    /// Nothing: they have the node's.
    Unsaid,
    Said(Mode),
    /// Something else than a mode. Whoever wrote it did not mean "nothing",
    /// so the stricter mode it is.
    Wrong,
}

impl NamespaceMode {
    #[must_use]
    pub fn read(annotation: Option<&str>) -> Self {
        match annotation {
            None => Self::Unsaid,
            Some("enforce") => Self::Said(Mode::Enforce),
            Some("audit") => Self::Said(Mode::Audit),
            Some(_) => Self::Wrong,
        }
    }

    /// `None`: the node's.
    #[must_use]
    pub const fn mode(self) -> Option<Mode> {
        match self {
            Self::Unsaid => None,
            Self::Said(mode) => Some(mode),
            Self::Wrong => Some(Mode::Enforce),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_version_that_is_no_number_is_never_before_another() {
        let version = Version::new;
        assert!(version("9").is_before(version("10")));
        assert!(!version("10").is_before(version("10")));
        assert!(!version("x").is_before(version("10")));
        assert!(!version("9").is_before(version("x")));
    }

    #[test]
    fn a_mode_that_is_none_is_the_stricter_one() {
        let mode = |text| NamespaceMode::read(text).mode();
        assert_eq!(mode(None), None);
        assert_eq!(mode(Some("audit")), Some(Mode::Audit));
        assert_eq!(mode(Some("enforce")), Some(Mode::Enforce));
        for wrong in ["Audit", "", "off", " audit"] {
            assert_eq!(mode(Some(wrong)), Some(Mode::Enforce), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_uid_has_one_spelling(number: u128, text in "[0-9a-fA-F-]{30,38}") {
            let uid = Uid::new(number);
            prop_assert_eq!(uid.to_string().parse(), Ok(uid));
            let upper = uid.to_string().to_uppercase();
            prop_assert_eq!(upper.parse::<Uid>().is_ok(), upper == uid.to_string());
            if let Ok(read) = text.parse::<Uid>() {
                prop_assert_eq!(read.to_string(), text);
            }
        }
    }
}
