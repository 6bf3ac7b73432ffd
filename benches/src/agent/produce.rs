//! Makes decisions, every one of another flow: UDP connect(2) to addresses and ports
//! that were not asked for before. There is no route, and no packet.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use zt_tests::{Workload, process::Running};

use crate::peer_address;

/// Whose addresses are asked for.
pub const PEERS: u32 = 8_192;
/// Between two looks at the clock.
const STEP: Duration = Duration::from_millis(1);
/// Ports below are asked for by nobody.
const LOWEST: u32 = 10_000;

/// What came of it: a line of standard output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Produced {
    pub calls: u64,
    pub seconds: f64,
}

/// What is asked of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    pub producers: u32,
    /// Of each.
    pub count: u64,
    /// Of each, a second; 0: as fast as it can.
    pub rate: u64,
}

/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Processes of a workload that do it at once.
pub struct Producers(Vec<Running>);

impl Producers {
    /// # Errors
    /// When one cannot be started.
    pub fn start(workload: &Workload, case: Case) -> Result<Self> {
        let one = |number: u32| {
            let mut command = Command::new(env::current_exe()?);
            command.arg("produce");
            let first = u64::from(number) * case.count;
            for value in [first, case.count, case.rate, PEERS.into()] {
                command.arg(value.to_string());
            }
            workload.start(&mut command)
        };
        (0..case.producers)
            .map(one)
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Waits for all; calls a second, of all.
    ///
    /// # Errors
    /// When one fails.
    pub fn rate(&self) -> Result<f64> {
        let rate = |producer: &Running| {
            let line = producer.wait_for(PATIENCE, |_| true);
            let line = line.context("a producer")?;
            let Produced { calls, seconds } = serde_json::from_str(&line).context(line)?;
            Ok(per_second(calls, Duration::from_secs_f64(seconds)))
        };
        self.0.iter().map(rate).sum()
    }
}

#[must_use]
pub fn per_second(count: u64, during: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let count = count as f64;
    count / during.as_secs_f64()
}

/// Asks for `count` flows to `peers` addresses, `rate` of them a second; 0: as fast
/// as possible. `first`: the number of the first one.
///
/// # Errors
/// When a call fails for another reason than that it must not be, or that there is
/// no route.
pub fn run(first: u64, count: u64, rate: u64, peers: u32) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let start = Instant::now();
    for number in 0..count {
        if let Some(nanoseconds) = (number * 1_000_000_000).checked_div(rate) {
            let due = Duration::from_nanos(nanoseconds);
            let now = start.elapsed();
            if due > now + STEP {
                thread::sleep(due - now);
            }
        }
        let to = target(first + number, peers);
        match socket.connect(to) {
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NetworkUnreachable | std::io::ErrorKind::PermissionDenied
                ) => {}
            other => bail!("connect to {to}: {other:?}"),
        }
    }
    let produced = Produced {
        calls: count,
        seconds: start.elapsed().as_secs_f64(),
    };
    println!("{}", serde_json::to_string(&produced)?);
    Ok(())
}

/// The address and port of a number; after all of them they come again.
fn target(number: u64, peers: u32) -> SocketAddr {
    let peer = number % u64::from(peers.max(1));
    let port = number / u64::from(peers.max(1)) % u64::from(u32::from(u16::MAX) - LOWEST);
    // Both fit: they are remainders.
    let peer = u32::try_from(peer).unwrap_or(0);
    let port = u16::try_from(port + u64::from(LOWEST)).unwrap_or(u16::MAX);
    SocketAddr::new(peer_address(peer), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flow_is_asked_for_twice_for_long() {
        let targets: std::collections::BTreeSet<SocketAddr> =
            (0..10_000).map(|number| target(number, 7)).collect();
        assert_eq!(targets.len(), 10_000);
    }
}
