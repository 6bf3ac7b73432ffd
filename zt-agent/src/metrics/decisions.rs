//! The kernel's exact counters, with names for numbers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use prometheus::{
    core::{Collector, Desc},
    proto::MetricFamily,
};
use zt_common::{
    codes::{Direction, Reason, Verdict},
    identity::Number,
    state::CountKey,
};

use super::family::Spec;
use crate::{
    agent::board::Board,
    audit::{Names, names::Identity},
    kernel::counters::Counters,
};

const BY_PAIR: Spec = Spec {
    name: "zt_decisions_total",
    help: "Decisions by verdict and the identities of both ends, since the maps were made. Pairs beyond the limit are summed as \"other\".",
    labels: &["decision", "source", "dest"],
};
const BY_REASON: Spec = Spec {
    name: "zt_decisions_by_reason_total",
    help: "Decisions by verdict, reason and direction, since the maps were made.",
    labels: &["decision", "reason", "direction"],
};
pub(super) const ALL: [Spec; 2] = [BY_PAIR, BY_REASON];
/// Series of [`BY_PAIR`] with names of their own.
const SERIES: usize = 2000;
const OTHER: &str = "other";

/// Reads the counters at every scrape.
pub struct Decisions {
    counters: Counters,
    board: Arc<Board>,
    descriptions: [Desc; 2],
    /// The pairs that have a series of their own: a counter must not change
    /// from one series to another.
    shown: RwLock<BTreeMap<Pair, ()>>,
}

type Pair = (u8, Number, Number);

impl Decisions {
    #[must_use]
    pub fn new(counters: Counters, board: Arc<Board>) -> Self {
        Self {
            counters,
            board,
            descriptions: ALL.map(|spec| spec.desc()),
            shown: RwLock::default(),
        }
    }
}

impl Collector for Decisions {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counting = self.board.counting();
        let counts = match self.counters.counts() {
            Ok(counts) => counts,
            Err(error) => {
                tracing::error!(%error, "no decision counters in this scrape");
                return Vec::new();
            }
        };
        let names = self.board.names.borrow().clone();
        drop(counting);
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        vec![
            BY_PAIR.counters(by_pair(&counts, &names, &mut shown)),
            BY_REASON.counters(by_reason(&counts)),
        ]
    }
}

fn by_pair(
    counts: &BTreeMap<CountKey, u64>,
    names: &Names,
    shown: &mut BTreeMap<Pair, ()>,
) -> BTreeMap<Vec<String>, u64> {
    let mut series = BTreeMap::new();
    let pairs = counts
        .keys()
        .map(|key| (key.verdict, key.source, key.destination));
    let pairs: BTreeSet<Pair> = pairs.collect();
    // Those whose numbers were given back make room.
    shown.retain(|pair, ()| pairs.contains(pair));
    for (key, count) in counts {
        let pair = (key.verdict, key.source, key.destination);
        if shown.len() < SERIES {
            shown.insert(pair, ());
        }
        let (source, dest) = if shown.contains_key(&pair) {
            (name(names, key.source), name(names, key.destination))
        } else {
            (OTHER.to_owned(), OTHER.to_owned())
        };
        *series
            .entry(vec![verdict(key.verdict), source, dest])
            .or_default() += count;
    }
    series
}

fn by_reason(counts: &BTreeMap<CountKey, u64>) -> BTreeMap<Vec<String>, u64> {
    let mut series = BTreeMap::new();
    for (key, count) in counts {
        let reason = Reason::from_code(key.reason).map(Reason::name);
        let direction = Direction::from_code(key.direction).map(Direction::name);
        let labels = vec![
            verdict(key.verdict),
            word(reason, key.reason),
            word(direction, key.direction),
        ];
        *series.entry(labels).or_default() += count;
    }
    series
}

/// In lower case, as the label has always been written; records shout.
fn verdict(code: u8) -> String {
    word(Verdict::from_code(code).map(Verdict::name), code).to_lowercase()
}

fn word(name: Option<&'static str>, code: u8) -> String {
    name.map_or_else(|| format!("unknown-{code}"), ToOwned::to_owned)
}

fn name(names: &Names, number: Number) -> String {
    match names.identity(number) {
        Identity::Spiffe(text) | Identity::Other(text) => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: Number, reason: Reason) -> CountKey {
        CountKey {
            source,
            destination: 4,
            verdict: Verdict::Deny as u8,
            reason: reason as u8,
            direction: Direction::Egress as u8,
            zero: 0,
        }
    }

    #[test]
    fn reasons_of_one_pair_are_summed() {
        let counts = BTreeMap::from([
            (key(0, Reason::NoPolicy), 2),
            (key(0, Reason::Unenrolled), 3),
        ]);
        let pairs = by_pair(&counts, &Names::default(), &mut BTreeMap::new());
        let labels = ["deny", "unenrolled", "world"].map(str::to_owned).to_vec();
        assert_eq!(pairs, BTreeMap::from([(labels, 5)]));
        assert_eq!(by_reason(&counts).len(), 2);
    }

    #[test]
    fn beyond_the_limit_pairs_are_one_series_and_none_is_lost() {
        let mut shown = BTreeMap::new();
        let count = |range: std::ops::Range<u32>| -> BTreeMap<CountKey, u64> {
            range
                .map(|n| (key(1000 + n, Reason::NoPolicy), 1))
                .collect()
        };
        by_pair(&count(5000..5001), &Names::default(), &mut shown);
        let counts = count(0..5001);
        let pairs = by_pair(&counts, &Names::default(), &mut shown);
        assert_eq!(pairs.len(), SERIES + 1);
        assert_eq!(pairs.values().sum::<u64>(), 5001);
        // The pair that had a series keeps it.
        let labels = ["deny", "number-6000", "world"].map(str::to_owned).to_vec();
        assert_eq!(pairs[&labels], 1);
    }
}
