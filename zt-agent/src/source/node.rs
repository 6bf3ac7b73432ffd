//! What this machine says of itself: addresses, clocks, name.

use std::{io, net::IpAddr};

use nix::{
    ifaddrs::getifaddrs,
    time::{ClockId, clock_gettime},
};

/// A wall clock that moved by more than this was set: deadlines are put into
/// the kernel's clock anew. What is less is drift between two readings.
const STEP: u64 = 10_000_000;

/// The addresses of this node's interfaces without loopback, sorted.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        })
        .filter(|ip| !ip.is_loopback())
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// `CLOCK_BOOTTIME` in nanoseconds.
///
/// # Errors
/// None on Linux.
pub fn boot_time() -> io::Result<u64> {
    nanoseconds(ClockId::CLOCK_BOOTTIME)
}

/// `CLOCK_REALTIME` − `CLOCK_BOOTTIME` in nanoseconds: `known` while the wall
/// clock was not set.
///
/// # Errors
/// None on Linux.
pub fn boot_offset(known: Option<u64>) -> io::Result<u64> {
    Ok(steady(known, closest(READINGS)?))
}

/// Readings of the two clocks. Between them this thread may have to wait: of
/// several, the one with the least time in between is true.
const READINGS: usize = 3;

fn closest(readings: usize) -> io::Result<u64> {
    let mut best = (u64::MAX, 0);
    for _ in 0..readings {
        let before = boot_time()?;
        let wall = nanoseconds(ClockId::CLOCK_REALTIME)?;
        let after = boot_time()?;
        best = best.min((after.saturating_sub(before), wall.saturating_sub(after)));
    }
    Ok(best.1)
}

fn steady(known: Option<u64>, now: u64) -> u64 {
    known
        .filter(|known| known.abs_diff(now) <= STEP)
        .unwrap_or(now)
}

fn nanoseconds(clock: ClockId) -> io::Result<u64> {
    let time = clock_gettime(clock)?;
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec()))
}

/// The host name, for records.
#[must_use]
pub fn name() -> String {
    let name = nix::unistd::gethostname().ok();
    name.and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unnamed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_no_clock_step() {
        assert_eq!(steady(None, 5), 5);
        assert_eq!(steady(Some(100), 100 + STEP), 100);
        assert_eq!(steady(Some(100), 101 + STEP), 101 + STEP);
        assert_eq!(steady(Some(2 * STEP), 1), 1);
    }

    #[test]
    fn loopback_is_not_among_the_addresses() {
        assert!(addresses().unwrap().iter().all(|ip| !ip.is_loopback()));
    }
}
