//! Windows that nobody disturbs.
//!
//! A machine may be a guest: now and then the one below takes its processors away,
//! and what is measured meanwhile says how much that was. Such a window is measured
//! again, and the report says how many there were.

use std::fmt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::idle::Ticks;

/// More than this part of the processors' time taken away, and a window is
/// disturbed.
const DISTURBED: f64 = 0.02;

/// How many windows there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiet {
    /// That count.
    pub windows: u32,
    /// That were measured again.
    pub again: u32,
    /// That count though they were disturbed.
    pub disturbed: u32,
}

impl Quiet {
    /// Measures until it was quiet: in all as often again as there are windows that
    /// count, and a few times more.
    ///
    /// # Errors
    /// What `window` says, or when the kernel does not say what was taken away.
    pub fn measure<T>(&mut self, mut window: impl FnMut() -> Result<T>) -> Result<T> {
        /// Of a short run the first may all be disturbed.
        const FEW: u32 = 20;
        loop {
            let before = Ticks::now()?;
            let measured = window()?;
            let stolen = before.stolen_until(Ticks::now()?);
            if self.counts(stolen, self.windows + FEW) {
                return Ok(measured);
            }
        }
    }

    fn counts(&mut self, stolen: f64, most: u32) -> bool {
        let is_disturbed = stolen > DISTURBED;
        if is_disturbed && self.again < most {
            self.again += 1;
            return false;
        }
        self.windows += 1;
        self.disturbed += u32::from(is_disturbed);
        true
    }

    /// Of those that count, 0 to 1.
    #[must_use]
    pub fn disturbed_part(&self) -> f64 {
        f64::from(self.disturbed) / f64::from(self.windows.max(1))
    }
}

impl fmt::Display for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            windows,
            again,
            disturbed,
        } = self;
        write!(
            f,
            "{windows} windows; {again} more were measured again because the machine below took more than {:.0}% of the processors meanwhile, {disturbed} count all the same",
            DISTURBED * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbed_window_counts_only_where_too_many_are() {
        let mut quiet = Quiet::default();
        let counts: Vec<bool> = [0.0, 0.5, 0.5, 0.5, 0.01]
            .into_iter()
            .map(|stolen| quiet.counts(stolen, 2))
            .collect();
        assert_eq!(counts, [true, false, false, true, true]);
        let expected = Quiet {
            windows: 3,
            again: 2,
            disturbed: 1,
        };
        assert_eq!(quiet, expected);
        assert!((quiet.disturbed_part() - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_was_measured_last_is_what_counts() {
        let mut number = 0;
        let measured = Quiet::default().measure(|| {
            number += 1;
            Ok(number)
        });
        assert_eq!(measured.unwrap(), number);
    }
}
