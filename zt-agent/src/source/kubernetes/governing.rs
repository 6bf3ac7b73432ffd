//! Which nodes' agents say that they enforce all of their node, by the Leases that
//! they renew. Pure.
//!
//! A lease counts for as long as it was renewed by its own clock, which is not
//! ours: what counts is when a renewal was first seen here. Times of others are
//! believed only at the first look, or a restart would make everybody wait.
//!
//! Who cannot ask the API server does not see renewals either, and nobody can
//! renew while it is away: what was known stays, and of the time without an answer
//! next to nothing counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

/// How long a lease lasts without being renewed.
pub const LASTS: Duration = Duration::from_secs(40);
/// No more counts of the time between two answers: twice what it should be.
const STEP: Duration = Duration::from_secs(20);

/// A lease as the API server tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub node: Arc<str>,
    /// Otherwise its agent gave it up.
    pub is_held: bool,
    pub renewed: Timestamp,
}

/// What is known of the leases.
#[derive(Debug, Default)]
pub struct Governing {
    known: BTreeMap<Arc<str>, Known>,
    answered: Option<Instant>,
    /// The time that counted until then.
    counted: Duration,
}

#[derive(Debug)]
struct Known {
    is_held: bool,
    renewed: Timestamp,
    /// What had counted when that was new here. `None`: it was too old at the first
    /// look.
    seen: Option<Duration>,
}

impl Governing {
    /// The API server answered with these. `clock` is this node's time of day.
    pub fn heard(&mut self, leases: Vec<Lease>, now: Instant, clock: Timestamp) {
        let since = self.answered.replace(now).unwrap_or(now);
        self.counted += now.duration_since(since).min(STEP);
        let mut before = std::mem::take(&mut self.known);
        for lease in leases {
            let known = match before.remove(&lease.node) {
                // An API server that lags behind tells of the past.
                Some(known) if lease.renewed <= known.renewed => known,
                Some(_) => Known::new(&lease, Some(self.counted)),
                None => {
                    let age = lease.renewed.duration_until(clock).unsigned_abs();
                    Known::new(&lease, (age < LASTS).then_some(self.counted))
                }
            };
            self.known.insert(lease.node, known);
        }
    }

    /// Whether the API server ever answered.
    pub const fn was_heard(&self) -> bool {
        self.answered.is_some()
    }

    /// Those that are governed.
    pub fn nodes(&self) -> BTreeSet<Arc<str>> {
        let lasts = |known: &Known| {
            let seen = known.seen.filter(|_| known.is_held);
            seen.is_some_and(|seen| self.counted - seen < LASTS)
        };
        let nodes = self.known.iter().filter(|(_, known)| lasts(known));
        nodes.map(|(node, _)| node.clone()).collect()
    }
}

impl Known {
    const fn new(lease: &Lease, seen: Option<Duration>) -> Self {
        Self {
            is_held: lease.is_held,
            renewed: lease.renewed,
            seen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab {
        governing: Governing,
        start: Instant,
    }

    impl Lab {
        fn new() -> Self {
            Self {
                governing: Governing::default(),
                start: Instant::now(),
            }
        }

        fn at(second: i64) -> Timestamp {
            Timestamp::from_second(1_800_000_000 + second).unwrap()
        }

        /// Leases of a node, held or not, and renewed at that second of its clock.
        fn hear(&mut self, second: u64, leases: &[(&str, bool, i64)]) -> Vec<String> {
            let leases = leases.iter().map(|(node, is_held, renewed)| Lease {
                node: (*node).into(),
                is_held: *is_held,
                renewed: Self::at(*renewed),
            });
            let now = self.start + Duration::from_secs(second);
            let clock = Self::at(i64::try_from(second).unwrap());
            self.governing.heard(leases.collect(), now, clock);
            let nodes = self.governing.nodes();
            nodes.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn a_lease_counts_while_it_is_held_and_renewed_and_is_there() {
        let mut lab = Lab::new();
        assert_eq!(lab.hear(0, &[("a", true, 0), ("b", false, 0)]), ["a"]);
        assert_eq!(lab.hear(20, &[("a", true, 0)]), ["a"]);
        assert_eq!(lab.hear(39, &[("a", true, 0)]), ["a"]);
        assert_eq!(lab.hear(40, &[("a", true, 0)]), [""; 0]);
        assert_eq!(lab.hear(50, &[("a", true, 50)]), ["a"]);
        assert_eq!(lab.hear(60, &[("a", false, 60)]), [""; 0], "given up");
        assert_eq!(lab.hear(61, &[("a", true, 50)]), [""; 0], "the past");
        assert_eq!(lab.hear(62, &[("a", true, 62)]), ["a"]);
        assert_eq!(lab.hear(63, &[]), [""; 0]);
    }

    #[test]
    fn at_the_first_look_its_time_counts_and_then_only_that_it_is_later() {
        let mut lab = Lab::new();
        let leases = [("old", true, -41), ("ahead", true, 41), ("new", true, -30)];
        assert_eq!(lab.hear(0, &leases), ["new"]);
        let renewed = [("old", true, -31), ("ahead", true, 51), ("new", true, -30)];
        assert_eq!(lab.hear(10, &renewed), ["ahead", "new", "old"]);
    }

    #[test]
    fn while_nobody_answers_what_was_known_stays_and_not_for_ever_after() {
        let mut lab = Lab::new();
        let late = [("a", true, 0), ("b", true, 0)];
        assert_eq!(lab.hear(0, &late), ["a", "b"]);
        // It answers, and nobody had the time to renew.
        assert_eq!(lab.hear(3600, &late), ["a", "b"]);
        let one = [("a", true, 3605), ("b", true, 0)];
        assert_eq!(lab.hear(3610, &one), ["a", "b"]);
        assert_eq!(lab.hear(3620, &one), ["a"]);
        // One that answers only now and then makes nobody last.
        assert_eq!(lab.hear(3700, &one), ["a"]);
        assert_eq!(lab.hear(3800, &one), [""; 0]);
    }
}
