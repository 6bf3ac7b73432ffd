//! Makes decisions, every one of another flow: UDP connect(2) to addresses and ports
//! that were not asked for before. There is no route, and no packet.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::peer_address;

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
