//! Our programs and the ones to compare with, with maps as full as asked.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use zt_agent::{
    kernel::load::MapSizes,
    model::{InterfaceSpec, Mode, NodeModel},
};
use zt_common::{
    address::{Interface, mapped},
    flow::FlowKey,
    state::Control,
};
use zt_tests::{
    Sandbox, Workload,
    node::{Node, SIZES, World, allow},
    test_run::{Asker, Packet, Ran, Transport},
};

use super::case::{Case, Program};
use crate::{FIRST_PORT, end_to_end::floor::Floor, peer, peer_address, ports};

/// Of one pair, in each direction.
const PORTS: u16 = 4;
/// Rows of the policy map for one peer: what it may reach, and what may reach it.
const ROWS: u32 = 2 * PORTS as u32;
/// Loopback's, in every namespace: what a frame of a test run came by.
const INTERFACE: u32 = 1;
/// What the frames of a test run say that they are from.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const UDP: u8 = 17;
/// Local ports of the flows.
const FIRST_LOCAL: u32 = 1024;
const LOCALS: u32 = 64_000;

const MAPS: MapSizes = MapSizes {
    policy: 131_072,
    address: 65_536,
    // Twice what ever lives, so that none is evicted.
    flow: FLOWS,
    ring_bytes: 32 << 20,
    ..SIZES
};
const FLOWS: u32 = 262_144;

/// Dropped in the order of the fields.
pub struct Stage {
    asker: Asker,
    node: Node,
    floor: Floor,
    cgroup: u64,
    peers: u32,
    /// Of the next flow that nobody knows.
    next: u32,
    pins: PathBuf,
    _sandbox: Sandbox,
}

/// What the workload is known by.
fn address() -> IpAddr {
    peer_address(1 << 21)
}

impl Stage {
    /// With so many rows in the policy map, for one peer at least.
    pub fn new(entries: u32, floor: &Path) -> Result<Self> {
        let peers = (entries / ROWS).max(1);
        let sandbox = Sandbox::new()?;
        let netns = sandbox.netns("empty")?;
        let cookie = netns.cookie()?;
        let client = Workload::new("client", sandbox.cgroup().child("client")?, Some(netns));
        let mut node = Node::with_sizes(&sandbox, &MAPS)?;
        let control = node.store.control();
        control.configure(&Control {
            // What spills into another table is a case of its own.
            flow_share: u64::MAX,
            ..control.read()
        });
        node.apply(&model(&client, cookie, peers)?)?;
        let cgroup = client.cgroup().id()?;
        let mut others = Floor::with_flows(floor, "floor", FLOWS)?;
        let at = Interface {
            cgroup,
            ..Interface::default()
        };
        others.stand_in(cgroup, INTERFACE, at)?;
        for peer in (0..peers).map(peer_address) {
            others.known(peer)?;
        }
        let pins = node.pins.directory().to_owned();
        for program in Program::ALL {
            let [ours, minimal, empty] = program.names();
            node.pin_program(ours)?;
            for name in [minimal, empty] {
                others.pin(name, &pins.join(name))?;
            }
        }
        Ok(Self {
            asker: Asker::start(&client)?,
            node,
            floor: others,
            cgroup,
            peers,
            next: 0,
            pins,
            _sandbox: sandbox,
        })
    }

    /// Rows of the policy map.
    pub fn entries(&self) -> usize {
        self.node.store.current().policy.len()
    }

    /// Makes so many flows live, known to ours and to the minimal programs.
    pub fn live(&mut self, count: u32) -> Result<Vec<Question>> {
        let flows = self.fresh(count);
        let sent: Vec<Packet> = flows.iter().map(|flow| flow.packet(true, 0)).collect();
        let ran = self.run(Program::Egress, Case::Cached, &sent)?;
        self.node.events();
        ensure!(
            ran.iter()
                .all(|ran| ran.returned == Program::Egress.passes()),
            "what may pass does not"
        );
        for flow in &flows {
            self.floor.flow(flow.key(self.cgroup))?;
        }
        Ok(flows)
    }

    /// Flows that nobody knows.
    pub fn fresh(&mut self, count: u32) -> Vec<Question> {
        let first = self.next;
        self.next += count;
        (first..self.next)
            .map(|number| Question {
                // Multiplicative hashing (Knuth), so that neighbours lie apart.
                peer: number.wrapping_mul(0x9e37_79b1) % self.peers,
                local: u16::try_from(FIRST_LOCAL + number % LOCALS).unwrap_or(u16::MAX),
                nth: u16::try_from(number / LOCALS).unwrap_or(0) % PORTS,
            })
            .collect()
    }

    /// How often the minimal programs met a flow.
    pub fn met(&self, flow: Question) -> Result<u64> {
        self.floor.seen(flow.key(self.cgroup))
    }

    /// Runs the program of a case once on each.
    pub fn run(&mut self, program: Program, case: Case, packets: &[Packet]) -> Result<Vec<Ran>> {
        let path = self.path(program, case);
        self.asker.run_all(&path, packets, 1)
    }

    /// Runs it again and again on one.
    pub fn repeat(
        &mut self,
        program: Program,
        case: Case,
        packet: Packet,
        times: u32,
    ) -> Result<Vec<Ran>> {
        let path = self.path(program, case);
        self.asker.run_all(&path, &[packet], times)
    }

    fn path(&self, program: Program, case: Case) -> PathBuf {
        let [ours, minimal, empty] = program.names();
        self.pins.join(match case {
            Case::Empty | Case::EmptyAgain => empty,
            Case::Minimal => minimal,
            Case::CachedAgain | Case::Cached | Case::Allowed | Case::Denied => ours,
        })
    }

    /// The ring must not fill up.
    pub fn rest(&mut self) -> Result<()> {
        self.node.events();
        let lost = self.node.counters.totals()?.lost_ring;
        ensure!(lost == 0, "{lost} events found no room in the ring");
        Ok(())
    }
}

/// A flow between the workload and a peer.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    peer: u32,
    local: u16,
    nth: u16,
}

impl Question {
    /// A datagram of it; `off`: how far its port is from one that may be reached.
    #[must_use]
    pub fn packet(&self, sends: bool, off: u16) -> Packet {
        let (ours, theirs) = (address(), peer_address(self.peer));
        let port = FIRST_PORT + self.nth * 10 + off;
        let (source, destination) = if sends {
            (ours, theirs)
        } else {
            (theirs, ours)
        };
        let (source_port, destination_port) = if sends {
            (self.local, port)
        } else {
            (port, self.local)
        };
        Packet {
            source,
            destination,
            source_port,
            destination_port,
            transport: Transport::Udp,
        }
    }

    /// The first datagram of a flow that the peer opens: its own port is `local`.
    #[must_use]
    pub fn opening(&self, off: u16) -> Packet {
        let sent = self.packet(true, off);
        Packet {
            source: sent.destination,
            destination: sent.source,
            ..sent
        }
    }

    fn key(&self, cgroup: u64) -> FlowKey {
        let remote = match peer_address(self.peer) {
            IpAddr::V4(ip) => mapped(ip.octets()),
            IpAddr::V6(ip) => ip.octets(),
        };
        FlowKey {
            remote,
            cgroup,
            remote_port: FIRST_PORT + self.nth * 10,
            local_port: self.local,
            protocol: UDP,
            zero: [0; 3],
        }
    }
}

fn model(client: &Workload, netns: u64, peers: u32) -> Result<NodeModel> {
    let mut world = World::default().enrol(client, &[address()]);
    for number in 0..peers {
        world = world.claim(peer(number));
    }
    world.model.interfaces.push(InterfaceSpec {
        index: INTERFACE,
        name: "lo".into(),
        netns,
        mac: MAC,
        addresses: vec![address()],
    });
    let ports = format!("{:?}", &ports()[..usize::from(PORTS)]);
    let rules = [
        allow("client", "peer/*", &ports, "UDP"),
        allow("peer/*", "client", &ports, "UDP"),
    ];
    let world = world
        .mode(Mode::Enforce)
        .rules(&format!("[{}]", rules.join(", ")))
        .context("the policy")?;
    Ok(world.model)
}
