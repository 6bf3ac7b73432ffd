//! How long to wait for what must come. An emulated machine is many times slower
//! than a real one: there everything that is waited for gets the same factor, and
//! what is asserted stays as it is.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Names the factor, a whole number; without it waits are as long as they say.
pub const VARIABLE: &str = "ZT_PATIENCE";

/// A wait's limit, or how long something is watched, on this machine.
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    limit.saturating_mul(factor())
}

/// Waits until something is so. The limit is for a machine of the usual speed.
///
/// # Panics
/// When it is not so by then.
#[track_caller]
pub fn wait(limit: Duration, is_so: impl Fn() -> bool) {
    let (start, limit) = (Instant::now(), scaled(limit));
    while !is_so() {
        assert!(start.elapsed() < limit, "it is not so after {limit:?}");
        sleep(Duration::from_millis(10));
    }
}

/// How many of `cases` random ones to draw on this machine, so that a slow one
/// gets done, too. At least 1.
#[must_use]
pub fn fewer(cases: usize) -> usize {
    (cases / usize::try_from(factor()).unwrap_or(usize::MAX)).max(1)
}

/// How many times slower than usual this machine may be; at least 1.
///
/// # Panics
/// When the variable is there and is no such number: a typing error must not
/// pass for the usual speed.
#[must_use]
pub fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| match std::env::var(VARIABLE) {
        Err(_) => 1,
        Ok(text) => parse(&text)
            .unwrap_or_else(|| panic!("{VARIABLE} is {text:?} and no whole number above 0")),
    })
}

fn parse(text: &str) -> Option<u32> {
    text.parse().ok().filter(|factor| *factor > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_a_whole_number_above_0() {
        assert_eq!(parse("1"), Some(1));
        assert_eq!(parse("12"), Some(12));
        for bad in ["0", "-1", "1.5", "", "ten"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
