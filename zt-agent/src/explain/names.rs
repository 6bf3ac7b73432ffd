//! Numbers into words.

use std::collections::{BTreeMap, HashMap};

use zt_common::identity::{Number, RESERVED};

use crate::model::{Name, Numbers, Party, SpiffeId};

/// The words for all numbers of a node.
#[derive(Clone, Debug, Default)]
pub struct Words {
    identities: BTreeMap<Number, String>,
    rules: BTreeMap<u32, String>,
}

impl Words {
    /// `full`: whole SPIFFE IDs; otherwise the shortest ending that no other
    /// identity of this node has.
    #[must_use]
    pub fn new(numbers: &Numbers, full: bool) -> Self {
        let endings = endings(numbers);
        let word = |name: &Name| match name {
            Name::Spiffe(id) if !full => shortest(id, &endings).to_owned(),
            Name::Service(service) if !full => service.text(|party| match party {
                Party::Workload(id) => shortest(id, &endings).to_owned(),
                other => other.to_string(),
            }),
            other => other.to_string(),
        };
        Self {
            identities: (numbers.names())
                .map(|(name, number)| (number, word(name)))
                .collect(),
            rules: (numbers.rules())
                .map(|(rule, number)| (number, rule.to_string()))
                .collect(),
        }
    }

    /// An identity, reserved identity or class; `number-N` if it has no name.
    #[must_use]
    pub fn identity(&self, number: Number) -> String {
        if let Some((_, name)) = RESERVED.iter().find(|(known, _)| *known == number) {
            return (*name).to_owned();
        }
        let known = self.identities.get(&number).cloned();
        known.unwrap_or_else(|| format!("number-{number}"))
    }

    /// A rule; `None` for 0, which is none.
    #[must_use]
    pub fn rule(&self, number: u32) -> Option<String> {
        let known = || self.rules.get(&number).cloned();
        (number != 0).then(|| known().unwrap_or_else(|| format!("rule number {number}")))
    }
}

fn endings(numbers: &Numbers) -> HashMap<&str, usize> {
    let mut endings = HashMap::new();
    for (name, _) in numbers.names() {
        if let Name::Spiffe(id) = name {
            for ending in endings_of(id) {
                *endings.entry(ending).or_default() += 1;
            }
        }
    }
    endings
}

/// `c`, `b/c`, `a/b/c`, … of `spiffe://td/a/b/c`.
fn endings_of(id: &SpiffeId) -> impl Iterator<Item = &str> {
    let text = id.as_str();
    let path = text.len() - id.segments().map(|s| s.len() + 1).sum::<usize>();
    text.rmatch_indices('/')
        .map(|(at, _)| at)
        .take_while(move |at| *at >= path)
        .map(|at| &text[at + 1..])
}

fn shortest<'a>(id: &'a SpiffeId, endings: &HashMap<&str, usize>) -> &'a str {
    let unique = |ending: &&str| endings.get(ending).is_none_or(|count| *count == 1);
    endings_of(id).find(unique).unwrap_or_else(|| id.as_str())
}

/// The names of `known` that are most like `wanted`, best first, at most three.
#[must_use]
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    const LIKE: f64 = 0.6;
    let ending = |text: &'a str| text.rsplit('/').next().unwrap_or(text);
    let last = wanted.rsplit('/').next().unwrap_or(wanted);
    let mut scored: Vec<(f64, &str)> = (known.into_iter())
        .map(|name| {
            let ends = strsim::jaro_winkler(last, ending(name));
            let whole = strsim::jaro_winkler(wanted, name);
            // What is no whole ID is compared with the endings only.
            let score = if wanted.contains("://") {
                whole.min(ends)
            } else {
                ends
            };
            (score, name)
        })
        .filter(|(score, _)| *score > LIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(ids: &[&str]) -> Numbers {
        let mut numbers = Numbers::default();
        for id in ids {
            numbers.intern(&Name::Spiffe(id.parse().unwrap())).unwrap();
        }
        numbers
    }

    #[test]
    fn a_short_name_is_the_shortest_ending_of_its_own() {
        let numbers = numbers(&["spiffe://td/a/db", "spiffe://td/b/db", "spiffe://td/b/web"]);
        let words = Words::new(&numbers, false);
        let all: Vec<String> = (256..259).map(|number| words.identity(number)).collect();
        assert_eq!(all, ["a/db", "b/db", "web"]);
        assert_eq!(
            Words::new(&numbers, true).identity(258),
            "spiffe://td/b/web"
        );
    }

    #[test]
    fn an_ending_shared_across_trust_domains_takes_the_whole_id() {
        let numbers = numbers(&["spiffe://one/db", "spiffe://two/db"]);
        assert_eq!(Words::new(&numbers, false).identity(256), "spiffe://one/db");
    }

    #[test]
    fn what_has_no_name_is_still_told() {
        let words = Words::default();
        assert_eq!(words.identity(4), "world");
        assert_eq!(words.identity(999), "number-999");
        assert_eq!(words.rule(0), None);
        assert_eq!(words.rule(9), Some("rule number 9".into()));
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour() {
        let known = ["spiffe://td/ns/gateway", "spiffe://td/ns/postgres"];
        assert_eq!(
            nearest("spiffe://td/ns/gatway", known),
            ["spiffe://td/ns/gateway"]
        );
        assert_eq!(nearest("spiffe://td/ns/zzz", known), [""; 0]);
    }
}
