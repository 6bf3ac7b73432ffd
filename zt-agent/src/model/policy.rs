//! Policies as plain data: what a `ServiceAccessPolicy` says, parsed.

use std::{fmt, ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;
use zt_common::{codes::Protocol, identity::Number};

use super::spiffe::SpiffePattern;

/// Where something stands in a document. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One `ServiceAccessPolicy`. A copy shares its rules, which can be many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: Arc<str>,
    pub mode: PolicyMode,
    pub rules: Arc<Vec<Rule>>,
    pub at: Position,
}

/// Whether a policy's rules decide, or only say what they would decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyMode {
    Enforce,
    Audit,
}

/// One element of `spec.rules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Counts from 1 within its policy.
    pub number: u32,
    pub action: RuleAction,
    /// Who opens the connection. Empty: nobody.
    pub from: Vec<Selector>,
    /// To whom, and where. Empty: nobody.
    pub to: Vec<Target>,
    /// Wall-clock time, nanoseconds since the Unix epoch, after which the
    /// rule no longer allows. Only on [`RuleAction::Allow`].
    pub expires: Option<u64>,
    pub at: Position,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleAction {
    Allow,
    Deny,
}

/// One element of a rule's `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Empty: nobody.
    pub selectors: Vec<Selector>,
    pub protocols: Vec<Protocol>,
    pub ports: Ports,
    pub at: Position,
}

/// Whom a rule means. Groups are resolved into patterns when a document is
/// parsed, so none are left here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    Spiffe(SpiffePattern),
    /// The far end's address, as the governed end sees it. At most one end of
    /// a rule may be a CIDR.
    Cidr(IpNet),
    /// `host`, `nodes`, `apiserver`, `world` or `masqueraded`, as its number.
    Reserved(Number),
}

/// Destination ports; meaningless for ICMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// 1 to 65535.
    Any,
    /// Sorted, disjoint, non-empty, no port 0.
    Ranges(Vec<RangeInclusive<u16>>),
}

/// The name of a rule: `policy/rule-N`, as in the audit record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    pub policy: Arc<str>,
    pub number: u32,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/rule-{}", self.policy, self.number)
    }
}

impl Policy {
    #[must_use]
    pub fn rule_ref(&self, rule: &Rule) -> RuleRef {
        RuleRef {
            policy: self.name.clone(),
            number: rule.number,
        }
    }
}
