//! What the demo makes: a cgroup, a namespace and a process for each service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use zt_tests::bpffs::Bpffs;
use zt_tests::cgroup::Cgroup;
use zt_tests::netns::Network;
use zt_tests::report::Attempt;
use zt_tests::workload::{Server, Udp};
use zt_tests::{Sandbox, Workload};

use super::services::{Cell, Protocol, Service, Transport};

/// The services at work. Dropped in the order of the fields.
pub struct Stage {
    servers: BTreeMap<Service, Server>,
    /// How many of each server's lines were looked at.
    seen: BTreeMap<Service, usize>,
    workloads: BTreeMap<Service, Workload>,
    network: Network,
    managed: Cgroup,
    bpffs: Bpffs,
    sandbox: Sandbox,
}

impl Stage {
    /// Makes the places and starts the services.
    pub fn build() -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let bpffs = sandbox.bpffs()?;
        let network = sandbox.network(1)?;
        let mut stage = Self {
            servers: BTreeMap::new(),
            seen: BTreeMap::new(),
            workloads: BTreeMap::new(),
            managed: sandbox.cgroup().child("services")?,
            network,
            bpffs,
            sandbox,
        };
        for service in Service::ALL {
            let started = stage.start(service);
            started.with_context(|| format!("cannot start {service}"))?;
        }
        Ok(stage)
    }

    fn start(&mut self, service: Service) -> Result<()> {
        let cgroup = self.managed.child(service.name())?;
        let netns = self.network.join(service.name(), service.host())?;
        let workload = Workload::new(service.name(), cgroup, Some(netns));
        let listen: Vec<SocketAddr> = [Transport::Tcp4, Transport::Tcp6]
            .map(|transport| service.address(&self.network, transport))
            .into();
        self.servers
            .insert(service, workload.serve(&listen, &listen)?);
        self.workloads.insert(service, workload);
        Ok(())
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The root of the tree that the agent manages.
    pub fn managed(&self) -> &Cgroup {
        &self.managed
    }

    /// The link that all of them are on.
    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    pub fn workload(&self, service: Service) -> &Workload {
        &self.workloads[&service]
    }

    /// Where a service listens.
    pub fn address(&self, service: Service, transport: Transport) -> SocketAddr {
        service.address(&self.network, transport)
    }

    /// One attempt to get an answer.
    pub fn attempt(&self, cell: Cell, limit: Duration) -> Result<Attempt> {
        let to = self.address(cell.to, cell.transport);
        let from = self.workload(cell.from);
        match cell.transport.protocol() {
            Protocol::Tcp => from.tcp(to, limit),
            Protocol::Udp => from.udp(to, Udp::SendTo, limit),
        }
    }

    /// How many requests arrived at the services since the last call. A TCP
    /// connection counts even if nothing was sent over it.
    pub fn arrivals(&mut self) -> Result<BTreeMap<Cell, usize>> {
        let mut arrivals = BTreeMap::new();
        for (to, server) in &mut self.servers {
            let lines = server.received()?;
            let seen = self.seen.entry(*to).or_default();
            for line in &lines[*seen..] {
                if let Some((from, transport)) = arrival(line, &self.network) {
                    let cell = Cell {
                        from,
                        to: *to,
                        transport,
                    };
                    *arrivals.entry(cell).or_default() += 1;
                }
            }
            *seen = lines.len();
        }
        Ok(arrivals)
    }
}

/// Who sent what `accept tcp PEER LOCAL` and `recv udp PEER LOCAL PAYLOAD` tell
/// of. `recv tcp` follows an `accept` and is not counted again.
fn arrival(line: &str, network: &Network) -> Option<(Service, Transport)> {
    let mut words = line.split(' ');
    let protocol = match (words.next()?, words.next()?) {
        ("accept", "tcp") => Protocol::Tcp,
        ("recv", "udp") => Protocol::Udp,
        _ => return None,
    };
    let peer: SocketAddr = words.next()?.parse().ok()?;
    let transport = Transport::new(protocol, peer.is_ipv4());
    let from = (Service::ALL.into_iter())
        .find(|service| service.address(network, transport).ip() == peer.ip())?;
    Some((from, transport))
}
