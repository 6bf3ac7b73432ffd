//! On how many nodes a policy is enforced, from what each of them says in its
//! status, and which of them writes that. Pure.
//!
//! The first node (by name) of those that have an entry does. Any other would
//! write the same; each waits longer than the one before it, for where the
//! first one's agent does not run.

use std::{collections::BTreeSet, sync::Arc};

use serde::Deserialize;
use serde_json::Value;

/// What a policy's status says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    enforced: Option<Box<str>>,
    reason: Option<Box<str>>,
    nodes: Box<[Entry]>,
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    node: Arc<str>,
    generation: i64,
    enforced: bool,
    reason: Box<str>,
}

/// What it should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// `2/3`
    pub enforced: String,
    /// Why not on all; empty: it is on all.
    pub reason: String,
    /// Nodes that have an entry and do not exist any more.
    pub gone: BTreeSet<Arc<str>>,
}

/// A status as the API server sends it.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    enforced: Option<Box<str>>,
    reason: Option<Box<str>>,
    nodes: Vec<WireEntry>,
}

#[derive(Deserialize)]
struct WireEntry {
    node: String,
    generation: i64,
    enforced: bool,
    #[serde(default)]
    reason: Box<str>,
}

impl Tally {
    /// `status` of an object. One that is not understood says nothing: it is
    /// for people, and must not be in the way of the policy.
    #[must_use]
    pub fn read(status: &Value, mut name: impl FnMut(&str) -> Arc<str>) -> Self {
        let wire = Wire::deserialize(status).unwrap_or_default();
        let nodes = wire.nodes.into_iter().map(|entry| Entry {
            node: name(&entry.node),
            generation: entry.generation,
            enforced: entry.enforced,
            reason: entry.reason,
        });
        Self {
            nodes: nodes.collect(),
            enforced: wire.enforced,
            reason: wire.reason,
        }
    }

    #[must_use]
    pub fn enforced(&self) -> Option<&str> {
        self.enforced.as_deref()
    }

    #[must_use]
    pub fn has(&self, node: &str) -> bool {
        self.nodes.iter().any(|entry| &*entry.node == node)
    }

    /// How many nodes come before this one among those that have an entry and
    /// exist. `None`: it is none of them.
    #[must_use]
    pub fn rank(&self, node: &str, existing: &BTreeSet<&str>) -> Option<usize> {
        let is_one = self.has(node) && existing.contains(node);
        let before = self.those_of(existing).filter(|entry| &*entry.node < node);
        is_one.then(|| before.count())
    }

    /// What it should say of a policy of this `metadata.generation`; `None`:
    /// it says that.
    #[must_use]
    pub fn correction(&self, generation: i64, existing: &BTreeSet<&str>) -> Option<Sum> {
        let sum = self.sum(generation, existing);
        let says_so = self.enforced() == Some(&*sum.enforced)
            && self.reason.as_deref().unwrap_or_default() == sum.reason
            && sum.gone.is_empty();
        (!says_so).then_some(sum)
    }

    fn sum(&self, generation: i64, existing: &BTreeSet<&str>) -> Sum {
        let decides = |entry: &&Entry| entry.decides(generation);
        let others = self.those_of(existing).filter(|entry| !decides(entry));
        let first = others.min_by_key(|entry| &entry.node);
        let gone = (self.nodes.iter()).filter(|entry| !existing.contains(&*entry.node));
        Sum {
            enforced: format!(
                "{}/{}",
                self.those_of(existing).filter(decides).count(),
                self.those_of(existing).count()
            ),
            reason: first.map_or_else(String::new, |entry| entry.why(generation)),
            gone: gone.map(|entry| entry.node.clone()).collect(),
        }
    }

    fn those_of(&self, existing: &BTreeSet<&str>) -> impl Iterator<Item = &Entry> {
        let is_there = |entry: &&Entry| existing.contains(&*entry.node);
        self.nodes.iter().filter(is_there)
    }
}

impl Entry {
    /// A group that the policy names may be older there than the policy: then
    /// there is a reason.
    fn decides(&self, generation: i64) -> bool {
        self.enforced && self.generation == generation && self.reason.is_empty()
    }

    fn why(&self, generation: i64) -> String {
        let (node, reason) = (&self.node, &self.reason);
        if reason.is_empty() {
            return format!(
                "{node}: generation {generation} is not in force yet, but {}",
                self.generation
            );
        }
        format!("{node}: {reason}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(node: &str, generation: i64, enforced: bool, reason: &str) -> Value {
        json!({"node": node, "generation": generation, "enforced": enforced, "reason": reason,
               "since": "2026-11-21T00:00:00Z"})
    }

    fn tally(enforced: Option<&str>, reason: &str, nodes: &[Value]) -> Tally {
        let status = json!({"enforced": enforced, "reason": reason, "rules": 1, "nodes": nodes});
        Tally::read(&status, |node| node.into())
    }

    fn existing<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
        names.iter().copied().collect()
    }

    fn sum(tally: &Tally, names: &[&str]) -> (String, String) {
        let sum = tally.sum(2, &existing(names));
        (sum.enforced, sum.reason)
    }

    #[test]
    fn only_the_latest_generation_counts_and_the_first_other_node_says_why_not() {
        let nodes = [
            entry("d", 2, false, "nothing is"),
            entry("a", 2, true, ""),
            entry("b", 1, true, ""),
        ];
        let expected = (
            "1/3".to_owned(),
            "b: generation 2 is not in force yet, but 1".to_owned(),
        );
        assert_eq!(sum(&tally(None, "", &nodes), &["a", "b", "d"]), expected);
        let old_group = [entry("a", 2, true, "identitygroup/g: too long")];
        let expected = ("0/1".to_owned(), "a: identitygroup/g: too long".to_owned());
        assert_eq!(sum(&tally(None, "", &old_group), &["a"]), expected);
        let all = [entry("a", 2, true, "")];
        assert_eq!(
            sum(&tally(None, "", &all), &["a"]),
            ("1/1".into(), String::new())
        );
    }

    #[test]
    fn a_status_that_says_it_needs_no_correction() {
        let nodes = [entry("a", 2, true, ""), entry("b", 1, true, "bad")];
        let right = tally(Some("1/2"), "b: bad", &nodes);
        let both = existing(&["a", "b"]);
        assert_eq!(right.correction(2, &both), None);
        assert!(right.correction(1, &both).is_some(), "another generation");
        for wrong in [
            tally(None, "b: bad", &nodes),
            tally(Some("2/2"), "b: bad", &nodes),
            tally(Some("1/2"), "", &nodes),
        ] {
            assert!(wrong.correction(2, &both).is_some(), "{wrong:?}");
        }
        let one = right.correction(2, &existing(&["a"])).unwrap();
        let gone = BTreeSet::from(["b".into()]);
        assert_eq!((&*one.enforced, &*one.reason, one.gone), ("1/1", "", gone));
    }

    #[test]
    fn the_first_by_name_that_exists_and_has_an_entry_writes_before_the_others() {
        let nodes = ["c", "a", "b"].map(|name| entry(name, 2, true, ""));
        let tally = tally(None, "", &nodes);
        let rank = |node| tally.rank(node, &existing(&["aa", "b", "c"]));
        assert_eq!([rank("b"), rank("c")], [Some(0), Some(1)]);
        assert_eq!([rank("a"), rank("aa")], [None, None]);
    }

    #[test]
    fn a_status_that_is_not_understood_says_nothing() {
        for status in [json!(null), json!({"nodes": 5}), json!("text")] {
            assert_eq!(Tally::read(&status, |node| node.into()), Tally::default());
        }
    }
}
