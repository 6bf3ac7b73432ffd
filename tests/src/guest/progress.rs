//! Which tests of a process run, and since when. The harness says only when one
//! ended, but it starts them in the order of their list, so many at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Progress {
    running: Vec<(String, Instant)>,
    waiting: VecDeque<String>,
}

impl Progress {
    /// `names` are in the harness's order, and `threads` of them start at once.
    #[must_use]
    pub fn new(names: &[String], threads: usize, now: Instant) -> Self {
        let mut progress = Self {
            running: Vec::new(),
            waiting: names.iter().cloned().collect(),
        };
        for _ in 0..threads.max(1) {
            progress.start_next(now);
        }
        progress
    }

    fn start_next(&mut self, now: Instant) {
        let next = self.waiting.pop_front();
        self.running.extend(next.map(|name| (name, now)));
    }

    /// Takes note that a test ended, and the next one began. Gives how long it
    /// took; `None` if it did not run: it is none of ours, or ended before.
    pub fn end(&mut self, name: &str, now: Instant) -> Option<Duration> {
        let at = self.running.iter().position(|(other, _)| other == name)?;
        let (_, since) = self.running.remove(at);
        self.start_next(now);
        Some(now.saturating_duration_since(since))
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.running.is_empty()
    }

    /// The test that runs longest, if that is longer than `limit`.
    #[must_use]
    pub fn overdue(&self, limit: Duration, now: Instant) -> Option<(String, Duration)> {
        let longest = self.running.iter().min_by_key(|(_, since)| *since)?;
        let took = now.saturating_duration_since(longest.1);
        (took > limit).then(|| (longest.0.clone(), took))
    }

    /// Those that run, and those that have not begun.
    #[must_use]
    pub fn left(self) -> (Vec<String>, Vec<String>) {
        let running = self.running.into_iter().map(|(name, _)| name);
        (running.collect(), self.waiting.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn names() -> Vec<String> {
        ["a", "b", "c", "d"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_test_begins_when_one_before_it_ends() {
        let start = Instant::now();
        let mut progress = Progress::new(&names(), 2, start);
        assert_eq!(progress.end("b", start + SECOND), Some(SECOND));
        assert_eq!(progress.end("c", start + 3 * SECOND), Some(2 * SECOND));
        assert_eq!(progress.end("a", start + 4 * SECOND), Some(4 * SECOND));
        assert!(!progress.is_done());
        assert_eq!(progress.end("d", start + 4 * SECOND), Some(SECOND));
        assert!(progress.is_done());
    }

    #[test]
    fn a_test_ends_once_and_only_if_it_began() {
        let now = Instant::now();
        let mut progress = Progress::new(&names(), 2, now);
        assert_eq!(progress.end("c", now), None);
        assert_eq!(progress.end("x", now), None);
        assert!(progress.end("a", now).is_some());
        assert_eq!(progress.end("a", now), None);
    }

    #[test]
    fn the_one_that_runs_longest_is_overdue_first() {
        let start = Instant::now();
        let mut progress = Progress::new(&names(), 2, start);
        progress.end("a", start + SECOND);
        let late = start + 5 * SECOND;
        assert_eq!(progress.overdue(5 * SECOND, late), None);
        assert_eq!(
            progress.overdue(4 * SECOND, late),
            Some(("b".to_owned(), 5 * SECOND))
        );
        let left = progress.left();
        assert_eq!(left, (names()[1..3].to_vec(), names()[3..].to_vec()));
    }
}
