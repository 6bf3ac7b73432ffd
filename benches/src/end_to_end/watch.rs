//! Says on standard output when traffic begins and ceases to pass.
//!
//! One message every tenth of a millisecond: often enough to be precise, and
//! seldom enough to leave the processors to who is measured.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::traffic::{MESSAGE, kind};

const PAUSE: Duration = Duration::from_micros(100);
/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(5);
/// How long a connection may take to say that it is dead.
const PATIENCE: Duration = Duration::from_secs(2);

/// A line of standard output. Times are nanoseconds of the system's clock: other
/// processes have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turned {
    pub passes: bool,
    /// When the first message passed, or the last one did.
    pub at: u64,
    /// When that was seen here.
    pub seen: u64,
}

/// # Errors
/// When the clock is before 1970.
pub fn now() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_nanos())?)
}

fn say(turned: Turned) -> Result<()> {
    println!("{}", serde_json::to_string(&turned)?);
    Ok(())
}

/// Datagrams of a socket without a peer, so that each is asked for. Until somebody
/// ends the process.
///
/// # Errors
/// When a datagram cannot be sent for another reason than that it must not be.
pub fn datagrams(server: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut passed = None;
    let mut last = now()?;
    loop {
        let passes = match socket.send_to(&[0; MESSAGE], server) {
            Ok(_) => true,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => false,
            Err(error) => return Err(error).context("send"),
        };
        let seen = now()?;
        if passed != Some(passes) {
            let at = if passes { seen } else { last };
            say(Turned { passes, at, seen })?;
            passed = Some(passes);
        }
        if passes {
            last = seen;
        }
        thread::sleep(PAUSE);
    }
}

/// A connection that asks and is answered; another one when it has ended.
///
/// # Errors
/// When the clock is not set.
pub fn connections(server: SocketAddr) -> Result<()> {
    loop {
        let Ok(mut stream) = TcpStream::connect_timeout(&server, PATIENCE) else {
            thread::sleep(AGAIN);
            continue;
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut message = [kind::BESIDE; MESSAGE];
        let mut last = None;
        while stream
            .write_all(&message)
            .and_then(|()| stream.read_exact(&mut message))
            .is_ok()
        {
            let at = now()?;
            if last.is_none() {
                let (passes, seen) = (true, at);
                say(Turned { passes, at, seen })?;
            }
            last = Some(at);
            thread::sleep(PAUSE);
        }
        if let Some(at) = last {
            let (passes, seen) = (false, now()?);
            say(Turned { passes, at, seen })?;
        }
    }
}
