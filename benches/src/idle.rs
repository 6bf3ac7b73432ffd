//! Who else used the processors: `/proc/stat`.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

/// Time of all processors since the machine started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    total: u64,
    idle: u64,
    /// What the machine below this one took.
    stolen: u64,
}

impl Ticks {
    /// # Errors
    /// When the kernel does not say.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        parse(&text).context("/proc/stat")
    }

    /// The part of the time since `self` that was stolen, 0 to 1.
    #[must_use]
    pub fn stolen_until(self, later: Self) -> f64 {
        part(
            later.stolen.saturating_sub(self.stolen),
            later.total.saturating_sub(self.total),
        )
    }

    /// The part of the time since `self` in which somebody ran, 0 to 1.
    #[must_use]
    pub fn busy_until(self, later: Self) -> f64 {
        let total = later.total.saturating_sub(self.total);
        part(
            total.saturating_sub(later.idle.saturating_sub(self.idle)),
            total,
        )
    }
}

/// How busy the machine is without us, 0 to 1.
///
/// # Errors
/// When the kernel does not say.
pub fn busy() -> Result<f64> {
    const WATCHED: Duration = Duration::from_millis(500);
    let before = Ticks::now()?;
    sleep(WATCHED);
    Ok(before.busy_until(Ticks::now()?))
}

/// The first line: user, nice, system, idle, waiting for a disk, two kinds of
/// interrupts, stolen; what follows is part of the first two.
fn parse(text: &str) -> Option<Ticks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    Some(Ticks {
        total: numbers.iter().sum(),
        idle: numbers.get(3)? + numbers.get(4)?,
        stolen: *numbers.get(7)?,
    })
}

fn part(of: u64, total: u64) -> f64 {
    let number = |ticks: u64| f64::from(u32::try_from(ticks).unwrap_or(u32::MAX));
    if total == 0 {
        return 0.0;
    }
    number(of) / number(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_and_stolen_are_parts_of_the_time_between() {
        let before = parse("cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1 1\n").unwrap();
        let after = parse("cpu  110 0 110 860 10 0 0 10 99 0\n").unwrap();
        assert_eq!(before.busy_until(after), 0.3);
        assert_eq!(before.stolen_until(after), 0.1);
        assert_eq!(after.busy_until(after), 0.0);
    }

    #[test]
    fn what_is_no_line_of_the_kernel_is_nothing() {
        assert_eq!(parse("cpu  1 2 3\n"), None);
        assert_eq!(parse("intr 1\n"), None);
    }
}
