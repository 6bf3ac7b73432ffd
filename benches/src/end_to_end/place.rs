//! Where it happens: two namespaces, one veth between them, and in each a
//! process that is pinned to a CPU.
//!
//! The client is in a cgroup below a managed root of its own. Its veth's other
//! end is in the server's namespace, which so stands for the node.

use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use zt_tests::{
    Sandbox, Workload as Party, cgroup::Cgroup, interrupt, netns::Netns, process::Running,
};

use super::{
    server,
    traffic::{Answer, Measured, Order, Outcome, Task},
    workload::Workload,
};

pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 89, 0, 1));
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 89, 0, 2));
/// What the policies allow.
pub const PORT: u16 = 7000;
/// What they do not; the server listens there, too.
pub const FORBIDDEN: u16 = 7001;
/// The server's end of the veth. The client's is `eth0`.
pub const HOST_SIDE: &str = "p1";

/// What [`Place::watch`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Watched {
    Datagrams,
    Connections,
}

/// How long the processes may take beyond what they are told.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module. Dropping it removes all of it.
pub struct Place {
    client: Running,
    answered: usize,
    pub party: Party,
    pub managed: Cgroup,
    /// The server's namespace, with [`HOST_SIDE`].
    pub host: Arc<Netns>,
    pub cpus: [usize; 2],
    _server: Running,
    // Last: it removes what the others are in.
    _sandbox: Sandbox,
}

impl Place {
    /// # Errors
    /// When it cannot be made; root is needed.
    pub fn new() -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let host = Arc::new(sandbox.netns("server")?);
        let netns = Arc::new(sandbox.netns("client")?);
        link(&host, &netns)?;
        let managed = sandbox.cgroup().child("managed")?;
        let party = Party::sharing("client", managed.child("client")?, Some(netns));
        let at = sandbox.cgroup().child("server")?;
        let cpus = two_cpus()?;
        let server = Party::sharing("server", at, Some(Arc::clone(&host)));
        let server = start_server(&server, cpus[1])?;
        let client = party.start(&mut ourselves("client", cpus[0])?)?;
        Ok(Self {
            client,
            answered: 0,
            party,
            managed,
            host,
            cpus,
            _server: server,
            _sandbox: sandbox,
        })
    }

    /// Lets the client do it for so long.
    ///
    /// # Errors
    /// When it cannot, or we were interrupted.
    pub fn measure(&mut self, workload: Workload, length: Duration) -> Result<Measured> {
        let task = Task::Measure {
            workload,
            milliseconds: u64::try_from(length.as_millis())?,
        };
        match self.order(task, PORT, length)? {
            Outcome::Measured(measured) => Ok(measured),
            Outcome::Tried(_) => bail!("the client did something else"),
        }
    }

    /// Whether TCP and UDP get through to a port, waiting so long for each.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn passes(&mut self, port: u16, limit: Duration) -> Result<[bool; 2]> {
        let milliseconds = u64::try_from(limit.as_millis())?;
        let mut one = |task| match self.order(task, port, limit)? {
            Outcome::Tried(passes) => Ok(passes),
            Outcome::Measured(_) => Err(anyhow!("the client did something else")),
        };
        let tcp = one(Task::TryTcp { milliseconds })?;
        Ok([tcp, one(Task::TryUdp { milliseconds })?])
    }

    /// A process of the client's that tells when traffic to `port` begins and ceases
    /// to pass.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn watch(&self, watched: Watched, port: u16) -> Result<Running> {
        let mut command = ourselves("watch", self.cpus[0])?;
        let name = watched.to_possible_value().context("a kind of traffic")?;
        command.arg(name.get_name());
        command.arg(SocketAddr::new(SERVER, port).to_string());
        self.party.start(&mut command)
    }

    fn order(&mut self, task: Task, port: u16, takes: Duration) -> Result<Outcome> {
        interrupt::check()?;
        let server = SocketAddr::new(SERVER, port);
        let order = serde_json::to_string(&Order { task, server })?;
        self.client.write_line(&order)?;
        let line = self
            .client
            .wait_after(self.answered, takes + PATIENCE, |_| true)
            .context("the client")?;
        self.answered += 1;
        let answer: Answer = serde_json::from_str(&line).with_context(|| line.clone())?;
        answer.map_err(|error| anyhow!("the client: {error}"))
    }
}

fn link(host: &Netns, netns: &Netns) -> Result<()> {
    let end = [
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        netns.name(),
    ];
    host.ip(&[&["link", "add", HOST_SIDE], &end[..]].concat())?;
    host.ip(&["address", "add", &format!("{SERVER}/24"), "dev", HOST_SIDE])?;
    netns.add_address(CLIENT)?;
    host.ip(&["link", "set", HOST_SIDE, "up"])?;
    netns.ip(&["link", "set", "eth0", "up"])?;
    netns.set("net/ipv4/ip_local_port_range", "10000 65535")?;
    // What the kernel remembers of a peer would depend on who came before.
    netns.set("net/ipv4/tcp_no_metrics_save", "1")?;
    host.set("net/ipv4/tcp_no_metrics_save", "1")
}

fn start_server(party: &Party, cpu: usize) -> Result<Running> {
    let mut command = ourselves("server", cpu)?;
    for port in [PORT, FORBIDDEN] {
        command.arg(SocketAddr::new(SERVER, port).to_string());
    }
    let server = party.start(&mut command)?;
    server
        .wait_for(PATIENCE, |line| line == server::READY)
        .context("the server")?;
    Ok(server)
}

/// This program in another role.
fn ourselves(role: &str, cpu: usize) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("where are we?")?);
    command.args([role, "--cpu", &cpu.to_string()]);
    Ok(command)
}

/// One for the client and one for the server; the same where there is only
/// one.
fn two_cpus() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let first = cpus.next().context("no CPU is ours")?;
    Ok([first, cpus.next().unwrap_or(first)])
}

/// Keeps this process, and threads that it makes from now on, on one CPU.
///
/// # Errors
/// When there is no such CPU.
pub fn stay_on(cpu: usize) -> Result<()> {
    ensure!(cpu < CpuSet::count(), "there is no CPU {cpu}");
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("CPU {cpu}"))
}
