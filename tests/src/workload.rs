//! A workload: a cgroup, usually a namespace, and zt-probe as its program.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::patience;
use crate::process::{self, Running};
use crate::report::{Attempt, Summary};

/// How long a probe may take to start or to end, beyond what it was told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// How UDP is sent: the two take different hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Udp {
    Connected,
    SendTo,
}

/// Where processes run. Clones are the same place. Limits are for a machine of the
/// usual speed ([`patience`]).
#[derive(Clone, Debug)]
pub struct Workload {
    name: String,
    cgroup: Cgroup,
    netns: Option<Arc<Netns>>,
}

impl Workload {
    /// Without a namespace it runs in the caller's.
    pub fn new(name: &str, cgroup: Cgroup, netns: Option<Netns>) -> Self {
        Self::sharing(name, cgroup, netns.map(Arc::new))
    }

    /// Several workloads may have one namespace, like services of one host.
    pub fn sharing(name: &str, cgroup: Cgroup, netns: Option<Arc<Netns>>) -> Self {
        Self {
            name: name.to_owned(),
            cgroup,
            netns,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub fn netns(&self) -> Option<&Arc<Netns>> {
        self.netns.as_ref()
    }

    /// Starts a command as this workload.
    pub fn start(&self, command: &mut Command) -> Result<Running> {
        process::start(command, &self.cgroup, self.netns.as_deref())
    }

    /// Starts an echo server, and waits until it listens everywhere.
    pub fn serve(&self, tcp: &[SocketAddr], udp: &[SocketAddr]) -> Result<Server> {
        let mut command = probe(&["serve", "--name", &self.name])?;
        for address in tcp {
            command.arg("--tcp").arg(address.to_string());
        }
        for address in udp {
            command.arg("--udp").arg(address.to_string());
        }
        let running = self.start(&mut command)?;
        running
            .wait_for(PATIENCE, |line| line == "ready")
            .with_context(|| format!("{} does not serve", self.name))?;
        Ok(Server { running, asked: 0 })
    }

    /// Connects, sends, waits for the reply.
    pub fn tcp(&self, to: SocketAddr, limit: Duration) -> Result<Attempt> {
        self.ask(&["tcp", "--connect", &to.to_string()], limit)
    }

    /// Connects and keeps the connection, to be used again.
    pub fn tcp_held(&self, to: SocketAddr, limit: Duration) -> Result<Held> {
        let to = to.to_string();
        let limit_ms = waiting(limit);
        let arguments = ["tcp", "--hold", "--connect", &to, "--timeout-ms", &limit_ms];
        let running = self.start(&mut probe(&arguments)?)?;
        let first = running.wait_for(PATIENCE + limit * 2, |_| true)?;
        Ok(Held {
            running,
            first: parse(&first)?,
            limit,
        })
    }

    /// Connects again and again for `duration`, pausing in between. It is meant as
    /// it is: a test that needs it longer on a slow machine scales it itself.
    pub fn tcp_loop(
        &self,
        to: SocketAddr,
        duration: Duration,
        pause: Duration,
        limit: Duration,
    ) -> Result<Looping> {
        let (to, pause) = (to.to_string(), milliseconds(pause));
        let (duration_ms, limit_ms) = (milliseconds(duration), waiting(limit));
        let mut command = probe(&["tcp-loop", "--connect", &to, "--for-ms", &duration_ms])?;
        command.args(["--pause-ms", &pause, "--timeout-ms", &limit_ms]);
        let running = self.start(&mut command)?;
        Ok(Looping {
            running,
            limit: duration + limit + PATIENCE,
        })
    }

    /// Sends a datagram and waits for the reply.
    pub fn udp(&self, to: SocketAddr, how: Udp, limit: Duration) -> Result<Attempt> {
        let how = match how {
            Udp::Connected => "--connect",
            Udp::SendTo => "--sendto",
        };
        self.ask(&["udp", how, &to.to_string()], limit)
    }

    /// Asks for an ICMP echo through a datagram socket.
    pub fn ping(&self, to: IpAddr, limit: Duration) -> Result<Attempt> {
        self.ask(&["ping", &to.to_string()], limit)
    }

    /// Tries to open a raw socket: `v4`, `v6` or `packet`.
    pub fn raw(&self, family: &str) -> Result<Attempt> {
        self.ask(&["raw", family], Duration::ZERO)
    }

    /// Tries to bind; `protocol` is `tcp` or `udp`.
    pub fn bind(&self, protocol: &str, to: SocketAddr) -> Result<Attempt> {
        self.ask(&["bind", protocol, &to.to_string()], Duration::ZERO)
    }

    /// Runs a probe that makes one attempt. More arguments of zt-probe's, such as
    /// `--from` and `--size`, may follow.
    pub fn ask(&self, arguments: &[&str], limit: Duration) -> Result<Attempt> {
        let mut command = probe(arguments)?;
        if !limit.is_zero() {
            command.args(["--timeout-ms", &waiting(limit)]);
        }
        report(&mut self.start(&mut command)?, PATIENCE + limit * 2)
    }
}

/// An echo server.
#[derive(Debug)]
pub struct Server {
    running: Running,
    /// How often it was asked whether it has said all.
    asked: u64,
}

impl Server {
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// What arrived so far, oldest first: `accept tcp PEER LOCAL`,
    /// `recv tcp PEER LOCAL PAYLOAD`, `recv udp PEER LOCAL PAYLOAD`. Whatever was
    /// answered is in it: the server is asked, and says that it said all.
    pub fn received(&mut self) -> Result<Vec<String>> {
        self.asked += 1;
        let question = format!("said-all {}", self.asked);
        self.running.write_line(&question)?;
        self.running.wait_for(PATIENCE, |line| line == question)?;
        let mut lines = self.running.lines();
        lines.retain(|line| line.starts_with("recv ") || line.starts_with("accept "));
        Ok(lines)
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Held {
    running: Running,
    /// How the first exchange went.
    pub first: Attempt,
    limit: Duration,
}

impl Held {
    /// Sends once more and waits for the reply.
    pub fn again(&mut self) -> Result<Attempt> {
        let seen = self.running.lines().len();
        self.running.write_line("again")?;
        let limit = PATIENCE + self.limit * 2;
        parse(&self.running.wait_after(seen, limit, |_| true)?)
    }
}

/// A connect loop.
#[derive(Debug)]
pub struct Looping {
    running: Running,
    limit: Duration,
}

impl Looping {
    /// Waits for its end.
    pub fn summary(mut self) -> Result<Summary> {
        report(&mut self.running, self.limit)
    }
}

fn report<T: DeserializeOwned>(running: &mut Running, limit: Duration) -> Result<T> {
    let (status, lines) = running.finish(limit)?;
    let line = lines
        .last()
        .with_context(|| format!("zt-probe said nothing ({status})"))?;
    parse(line)
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("zt-probe said: {line}"))
}

/// A wait of zt-probe's on this machine.
fn waiting(limit: Duration) -> String {
    milliseconds(patience::scaled(limit))
}

fn milliseconds(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// zt-probe, with arguments.
pub(crate) fn probe(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(probe_program()?);
    command.args(arguments);
    Ok(command)
}

/// Where zt-probe is.
pub fn probe_program() -> Result<PathBuf> {
    process::built("zt-probe")?
        .context("zt-probe is not built: cargo build --package zt-tests --bin zt-probe")
}
