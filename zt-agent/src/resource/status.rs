//! What the agents say about a policy: its `status`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Whether a policy is enforced, and where it is not.
///
/// Every agent applies its own entry of [`nodes`](Self::nodes) (server-side apply,
/// a field manager for each node: the list is a map by node); what
/// they come to is written by one of them, from all the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `2/3`: on how many of the nodes that have an entry the latest generation
    /// decides, with nothing wrong. For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<String>,
    /// Why not on all of them: what the first of the others says. For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many rules the latest generation has. For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<u32>,
    #[serde(default)]
    pub nodes: Vec<NodeStatus>,
}

/// What one node makes of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The name of the Node.
    pub node: String,
    /// The `metadata.generation` that is in force there: an older one while the
    /// latest is refused. 0: none ever was.
    pub generation: i64,
    /// Whether its rules decide there; in audit mode they only say what they would.
    pub enforced: bool,
    /// Why not, or why not the latest generation. Empty: nothing is wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when that is so.
    pub since: Timestamp,
}
