//! Folding: identical decisions within a window become one record. Pure.
//!
//! The first of its kind passes at once and opens a window. Repeats are held,
//! and when the window ends they are one record with a count. While repeats
//! keep coming the next window follows; a window without any closes the key.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use zt_common::{
    address::Ip,
    codes::{Direction, Protocol},
    event::Event,
};

use super::record::{Record, Time};

/// What makes two decisions identical. Only the opener's port may differ: it
/// is new for every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    cgroup: u64,
    remote: Ip,
    source: u32,
    destination: u32,
    generation: u32,
    rule: u32,
    would_rule: u32,
    destination_port: u16,
    protocol: u8,
    hook: u8,
    direction: u8,
    verdict: u8,
    reason: u8,
    would_verdict: u8,
}

impl Key {
    fn of(event: &Event) -> Self {
        let destination_port = if event.protocol == Protocol::Icmp as u8 {
            0 // the echo identifier, new for every ping
        } else if event.direction == Direction::Ingress as u8 {
            event.local_port
        } else {
            event.remote_port
        };
        Self {
            cgroup: event.cgroup,
            remote: event.remote,
            source: event.source,
            destination: event.destination,
            generation: event.generation,
            rule: event.rule,
            would_rule: event.would_rule,
            destination_port,
            protocol: event.protocol,
            hook: event.hook,
            direction: event.direction,
            verdict: event.verdict,
            reason: event.reason,
            would_verdict: event.would_verdict,
        }
    }
}

/// Repeats held back.
#[derive(Clone, Debug)]
struct Held {
    count: u64,
    first: Time,
    last: Arc<Record>,
}

impl Held {
    fn into_record(self) -> Arc<Record> {
        let mut record = Arc::unwrap_or_clone(self.last);
        record.latency_us = None;
        record.count = self.count;
        if self.count > 1 {
            record.first = Some(self.first);
            record.last = Some(record.timestamp);
            record.source.port = None;
        }
        Arc::new(record)
    }
}

/// The fold buffer.
#[derive(Debug)]
pub struct Fold {
    /// Nanoseconds; 0: nothing is folded.
    window: u64,
    /// Most keys open at once; beyond it decisions pass unfolded.
    limit: usize,
    open: HashMap<Key, Option<Held>>,
    /// One entry per open key, by the time its window ends.
    ends: VecDeque<(u64, Key)>,
    pending: u64,
}

impl Fold {
    #[must_use]
    pub fn new(window: u64, limit: usize) -> Self {
        Self {
            window,
            limit,
            open: HashMap::new(),
            ends: VecDeque::new(),
            pending: 0,
        }
    }

    /// Decisions held.
    #[must_use]
    pub const fn pending(&self) -> u64 {
        self.pending
    }

    /// Whether the decision is to be written now; otherwise it is held, in words.
    pub fn passes(&mut self, event: &Event, record: &mut dyn FnMut() -> Arc<Record>) -> bool {
        if self.window == 0 {
            return true;
        }
        let key = Key::of(event);
        if let Some(held) = self.open.get_mut(&key) {
            let last = record();
            let held = held.get_or_insert_with(|| Held {
                count: 0,
                first: last.timestamp,
                last: last.clone(),
            });
            held.count += 1;
            held.last = last;
            self.pending += 1;
            return false;
        }
        if self.open.len() < self.limit {
            self.open.insert(key, None);
            self.ends
                .push_back((event.time.saturating_add(self.window), key));
        }
        true
    }

    /// The repeats of a window that has ended by `now` (`CLOCK_BOOTTIME` ns).
    /// Call until `None`.
    pub fn due(&mut self, now: u64) -> Option<Arc<Record>> {
        while let Some((end, key)) = self.ends.front().copied() {
            if end > now {
                return None;
            }
            self.ends.pop_front();
            match self.open.remove(&key).flatten() {
                None => {}
                Some(held) => {
                    self.open.insert(key, None);
                    self.ends.push_back((now.saturating_add(self.window), key));
                    self.pending -= held.count;
                    return Some(held.into_record());
                }
            }
        }
        None
    }

    /// Everything held, whatever its window. Closes all keys.
    pub fn flush(&mut self) -> Vec<Arc<Record>> {
        self.pending = 0;
        let ends = std::mem::take(&mut self.ends);
        let mut open = std::mem::take(&mut self.open);
        ends.iter()
            .filter_map(|(_, key)| open.remove(key).flatten())
            .map(Held::into_record)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{at, distinct, event};
    use super::*;

    fn passes(fold: &mut Fold, event: Event, time: u64) -> bool {
        let (event, record) = at(event, time);
        fold.passes(&event, &mut || record.clone())
    }

    #[test]
    fn the_first_appears_at_once_and_repeats_are_one_record_at_the_windows_end() {
        let mut fold = Fold::new(100, 10);
        assert!(passes(&mut fold, event(), 1000));
        for time in [1010, 1020, 1030] {
            assert!(!passes(&mut fold, event(), time));
        }
        assert_eq!(fold.pending(), 3);
        assert_eq!(fold.due(1099), None);
        let record = fold.due(1100).unwrap();
        assert_eq!(record.count, 3);
        assert_eq!(record.first, Some(Time(1010)));
        assert_eq!(record.last, Some(Time(1030)));
        assert_eq!(record.timestamp, Time(1030));
        assert_eq!((record.latency_us, record.source.port), (None, None));
        assert_eq!((fold.due(1100), fold.pending()), (None, 0));
    }

    #[test]
    fn a_window_without_repeats_closes_the_key() {
        let mut fold = Fold::new(100, 10);
        assert!(passes(&mut fold, event(), 1000));
        assert!(!passes(&mut fold, event(), 1001));
        assert!(fold.due(1100).is_some());
        assert!(!passes(&mut fold, event(), 1150), "the next window is open");
        assert_eq!(fold.due(1200).map(|record| record.count), Some(1));
        assert_eq!(fold.due(1300), None);
        assert!(passes(&mut fold, event(), 1301));
    }

    #[test]
    fn a_single_repeat_keeps_its_port_and_has_no_interval() {
        let mut fold = Fold::new(100, 10);
        passes(&mut fold, event(), 1000);
        let mut again = event();
        again.local_port = 40_001;
        assert!(!passes(&mut fold, again, 1010));
        let record = fold.due(1100).unwrap();
        assert_eq!((record.source.port, record.count), (Some(40_001), 1));
        assert_eq!((record.first, record.last), (None, None));
    }

    #[test]
    fn what_differs_in_anything_but_the_openers_port_is_not_folded() {
        let change: [fn(&mut Event); 13] = [
            |e| e.cgroup += 1,
            |e| e.remote[15] += 1,
            |e| e.source += 1,
            |e| e.destination += 1,
            |e| e.generation += 1,
            |e| e.rule += 1,
            |e| e.would_rule += 1,
            |e| e.remote_port += 1,
            |e| e.protocol += 1,
            |e| e.hook += 1,
            |e| e.direction += 1,
            |e| e.verdict += 1,
            |e| e.reason += 1,
        ];
        let mut fold = Fold::new(100, 100);
        assert!(passes(&mut fold, event(), 1000));
        for change in change {
            let mut other = event();
            change(&mut other);
            assert!(passes(&mut fold, other, 1000));
        }
    }

    #[test]
    fn beyond_the_limit_decisions_pass_unfolded() {
        let mut fold = Fold::new(100, 1);
        assert!(passes(&mut fold, distinct(1), 1000));
        assert!(passes(&mut fold, distinct(2), 1000));
        assert!(passes(&mut fold, distinct(2), 1001));
        assert!(!passes(&mut fold, distinct(1), 1001));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn nothing_is_dropped_or_counted_twice(
            steps in prop::collection::vec((0u16..4, 0u64..60), 0..200),
            limit in 0usize..5,
        ) {
            let mut fold = Fold::new(100, limit);
            let (mut time, mut written) = (0, 0);
            for (kind, pause) in &steps {
                time += pause;
                written += u64::from(passes(&mut fold, distinct(*kind), time));
                while let Some(record) = fold.due(time) {
                    written += record.count;
                }
            }
            let held: u64 = fold.pending();
            let flushed: u64 = fold.flush().iter().map(|record| record.count).sum();
            prop_assert_eq!(held, flushed);
            prop_assert_eq!(written + flushed, steps.len() as u64);
            prop_assert_eq!(fold.pending(), 0);
        }
    }
}
