//! How long decisions take: the quantiles of the last one to two minutes, and
//! sum and count since the start.

use hdrhistogram::Histogram;
use prometheus::proto::{Quantile, Summary};

use super::family::float;

/// Length of a window, ns.
const WINDOW: u64 = 60_000_000_000;
/// Longer decisions count as this long, ns.
const LONGEST: u64 = 1_000_000_000;
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// Times of decisions, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latency {
    current: Histogram<u32>,
    previous: Histogram<u32>,
    begun: u64,
    count: u64,
    sum: u64,
}

impl Default for Latency {
    fn default() -> Self {
        // Two digits: a percent, which is finer than the clock's noise.
        let histogram = Histogram::new_with_max(LONGEST, 2).expect("the bounds are in order");
        Self {
            current: histogram.clone(),
            previous: histogram,
            begun: 0,
            count: 0,
            sum: 0,
        }
    }
}

impl Latency {
    /// One decision took `ns`.
    pub fn record(&mut self, ns: u32) {
        self.count += 1;
        self.sum += u64::from(ns);
        self.current.saturating_record(u64::from(ns).max(1));
    }

    /// Begins a new window if it is time. `now` is in ns, of any clock that
    /// does not go back.
    pub fn turn(&mut self, now: u64) {
        if now.saturating_sub(self.begun) < WINDOW {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.reset();
        self.begun = now;
    }

    /// In seconds, as Prometheus has it.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut recent = self.previous.clone();
        // Both have the same bounds.
        let _ = recent.add(&self.current);
        let quantiles = QUANTILES.map(|q| {
            let mut quantile = Quantile::default();
            quantile.set_quantile(q);
            let empty = recent.is_empty();
            quantile.set_value(if empty {
                f64::NAN
            } else {
                float(recent.value_at_quantile(q)) / 1e9
            });
            quantile
        });
        let mut summary = Summary::default();
        summary.set_sample_count(self.count);
        summary.set_sample_sum(float(self.sum) / 1e9);
        summary.set_quantile(quantiles.into());
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(latency: &Latency) -> f64 {
        latency.summary().get_quantile()[0].value()
    }

    #[test]
    fn quantiles_are_of_the_last_windows_and_the_sum_of_all() {
        let mut latency = Latency::default();
        assert!(median(&latency).is_nan());
        latency.turn(WINDOW);
        for _ in 0..100 {
            latency.record(1000);
        }
        latency.turn(2 * WINDOW);
        assert!((median(&latency) - 1e-6).abs() < 2e-8);
        for _ in 0..300 {
            latency.record(3000);
        }
        assert!((median(&latency) - 3e-6).abs() < 6e-8);
        latency.turn(3 * WINDOW);
        latency.turn(4 * WINDOW);
        assert!(median(&latency).is_nan());
        let summary = latency.summary();
        assert_eq!(summary.sample_count(), 400);
        assert!((summary.sample_sum() - 1e-3).abs() < 1e-9);
    }
}
