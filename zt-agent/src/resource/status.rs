//! What the agents say about a policy: its `status`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Whether a policy is enforced, and where it is not.
///
/// Every agent applies its own entry of [`nodes`](Self::nodes) (server-side apply,
/// a field manager for each node: the list is a map by node); the two numbers for
/// people are written by one of them, from all the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `2/3`: on how many of the nodes that have an entry the latest generation
    /// decides, with nothing wrong. For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<String>,
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

impl PolicyStatus {
    /// What [`enforced`](Self::enforced) shall say for a policy of this
    /// `metadata.generation`.
    #[must_use]
    pub fn summary(&self, generation: i64) -> String {
        // A group that the policy names may be older there than the policy.
        let decides = |node: &&NodeStatus| {
            node.enforced && node.generation == generation && node.reason.is_empty()
        };
        let enforced = self.nodes.iter().filter(decides).count();
        format!("{enforced}/{}", self.nodes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_generation_counts_as_enforced() {
        let node = |name: &str, generation, enforced| NodeStatus {
            node: name.to_owned(),
            generation,
            enforced,
            reason: String::new(),
            since: Timestamp::UNIX_EPOCH,
        };
        let status = PolicyStatus {
            nodes: vec![node("a", 2, true), node("b", 1, true), node("c", 2, false)],
            ..PolicyStatus::default()
        };
        assert_eq!(status.summary(2), "1/3");
        let mut with_old_group = status;
        with_old_group.nodes[0].reason = "identitygroup/g: too long".to_owned();
        assert_eq!(with_old_group.summary(2), "0/3");
        assert_eq!(PolicyStatus::default().summary(1), "0/0");
    }
}
