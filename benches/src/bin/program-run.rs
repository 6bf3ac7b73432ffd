//! What one run of the packet program costs, under BPF_PROG_TEST_RUN.
//!
//! Each case is compared with a program of two instructions that passes
//! everything, run in the same way in the same round:
//!
//! | case | what it adds to the one before |
//! |---|---|
//! | empty | the harness itself |
//! | link plumbing | the socket's storage, and reading the headers |
//! | cached, one flow | the flow table, with everything in the CPU's caches |
//! | *single runs* | a new socket for each packet, whose storage is made |
//! | cached, many flows | random keys |
//! | first, allowed | a decision, its counters and its event |
//! | first, denied | the same, and one more lookup |
//!
//! All with one pair and port in the policy map, and with 65,536.
//!
//! What cannot be seen here is the usual case of TCP, whose verdict is kept
//! with the socket: the socket of a test run has no protocol.

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use zt_agent::kernel::{load::MapSizes, sys};
use zt_benches::{FIRST_PORT, PORTS, model, peer_address};
use zt_common::state::Control;
use zt_tests::{
    Sandbox, Workload,
    node::{Node, SIZES},
    test_run::{Asker, Packet, Transport, empty_program},
};

const ROUNDS: usize = 15;
const QUICK_ROUNDS: usize = 3;
/// Packets of a case that runs once per packet, in each round.
const BATCH: usize = 512;
/// Runs of a case that repeats one packet, in each round.
const REPEAT: u32 = 20_000;

const MAPS: MapSizes = MapSizes {
    policy: 131_072,
    address: 65_536,
    flow: 65_536,
    ring_bytes: 16 << 20,
    ..SIZES
};

/// Measure runs of the packet program (as root).
#[derive(Parser)]
struct Arguments {
    /// Fewer rounds.
    #[arg(long)]
    quick: bool,
}

fn main() -> Result<()> {
    let rounds = if Arguments::parse().quick {
        QUICK_ROUNDS
    } else {
        ROUNDS
    };
    for peers in [1, 65_536 / u32::from(PORTS)] {
        Bench::new(peers)?.measure(rounds)?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    EmptyLoop,
    Plumbing,
    CachedLoop,
    EmptyOnce,
    CachedOnce,
    Allowed,
    Denied,
}

/// Name, case, and the case that it is compared with.
const CASES: [(&str, Case, Case); 7] = [
    ("empty, repeated", Case::EmptyLoop, Case::EmptyLoop),
    ("link plumbing, repeated", Case::Plumbing, Case::EmptyLoop),
    (
        "cached, one flow, repeated",
        Case::CachedLoop,
        Case::EmptyLoop,
    ),
    ("empty, single", Case::EmptyOnce, Case::EmptyOnce),
    (
        "cached, many flows, single",
        Case::CachedOnce,
        Case::EmptyOnce,
    ),
    ("first, allowed, single", Case::Allowed, Case::EmptyOnce),
    ("first, denied, single", Case::Denied, Case::EmptyOnce),
];

struct Bench {
    asker: Asker,
    node: Node,
    empty: PathBuf,
    egress: PathBuf,
    peers: u32,
    random: u32,
    local_port: u16,
    // Dropped after the process in it.
    _sandbox: Sandbox,
}

impl Bench {
    fn new(peers: u32) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let netns = sandbox.netns("empty")?;
        let client = Workload::new("client", sandbox.cgroup().child("client")?, Some(netns));
        let mut node = Node::with_sizes(&sandbox, &MAPS)?;
        let control = node.store.control();
        control.configure(&Control {
            // What spills into another table is a case of its own.
            flow_share: u64::MAX,
            ..control.read()
        });
        node.apply(&model(client.cgroup().id()?, peers)?)?;
        let empty = node.pins.directory().join("empty");
        sys::pin(std::os::fd::AsFd::as_fd(&empty_program()?), &empty)?;
        Ok(Self {
            asker: Asker::start(&client)?,
            egress: node.pin_program("zt_egress")?,
            node,
            empty,
            peers,
            random: 0x9e37_79b9,
            local_port: 1024,
            _sandbox: sandbox,
        })
    }

    fn measure(mut self, rounds: usize) -> Result<()> {
        let rows = self.node.store.current().policy.len();
        let many = self.packets(FIRST_PORT);
        let mut samples = vec![Vec::new(); CASES.len()];
        for _ in 0..rounds {
            for ((_, case, _), samples) in CASES.iter().zip(&mut samples) {
                samples.extend(self.run(*case, &many)?);
                self.node.events();
            }
        }
        println!("\n{rows} rows in the policy map, {rounds} rounds; nanoseconds per run");
        println!(
            "{:<28} {:>7} {:>7} {:>7} {:>7} {:>6}",
            "case", "25%", "median", "75%", "over", "ratio"
        );
        for (index, (name, _, base)) in CASES.iter().enumerate() {
            let base = CASES.iter().position(|(_, case, _)| case == base);
            let base = quartiles(&mut samples[base.context("a case of the table")?])[1];
            let [low, median, high] = quartiles(&mut samples[index]);
            let (over, ratio) = (median - base, median / base);
            println!("{name:<28} {low:>7} {median:>7} {high:>7} {over:>7} {ratio:>6.1}");
        }
        Ok(())
    }

    fn run(&mut self, case: Case, many: &[Packet]) -> Result<Vec<u32>> {
        let (egress, empty) = (self.egress.clone(), self.empty.clone());
        let one = &many[..1];
        let ran = match case {
            Case::EmptyLoop => self.asker.run_all(&empty, one, REPEAT)?,
            Case::Plumbing => self.asker.run_all(&egress, &[plumbing(one[0])], REPEAT)?,
            Case::CachedLoop => self.asker.run_all(&egress, one, REPEAT)?,
            Case::EmptyOnce => self.asker.run_all(&empty, many, 1)?,
            Case::CachedOnce => {
                self.asker.run_all(&egress, many, 1)?;
                self.node.events();
                self.asker.run_all(&egress, many, 1)?
            }
            Case::Allowed => {
                let packets = self.packets(FIRST_PORT);
                self.asker.run_all(&egress, &packets, 1)?
            }
            Case::Denied => {
                let packets = self.packets(FIRST_PORT + 1);
                self.asker.run_all(&egress, &packets, 1)?
            }
        };
        let passes = u32::from(case != Case::Denied);
        anyhow::ensure!(
            ran.iter().all(|ran| ran.returned == passes),
            "the program does not do what is to be measured"
        );
        Ok(ran.iter().map(|ran| ran.nanoseconds).collect())
    }

    /// Packets of new flows to random peers; the destination port is `port` or
    /// lies a multiple of ten above it.
    fn packets(&mut self, port: u16) -> Vec<Packet> {
        (0..BATCH)
            .map(|_| {
                self.local_port = self.local_port.checked_add(1).unwrap_or(1024);
                let nth = u16::try_from(self.random() % u32::from(PORTS)).unwrap_or(0);
                Packet {
                    source: peer_address(1 << 21),
                    destination: peer_address(self.random() % self.peers),
                    source_port: self.local_port,
                    destination_port: port + nth * 10,
                    transport: Transport::Udp,
                }
            })
            .collect()
    }

    /// Marsaglia's xorshift, 32 bits: enough to leave the CPU's caches behind.
    fn random(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random
    }
}

/// IGMP to a group passes as soon as the headers were read.
fn plumbing(packet: Packet) -> Packet {
    const IGMP: u8 = 2;
    Packet {
        destination: Ipv4Addr::new(224, 0, 0, 1).into(),
        transport: Transport::Other(IGMP),
        ..packet
    }
}

fn quartiles(samples: &mut [u32]) -> [f64; 3] {
    samples.sort_unstable();
    [1, 2, 3].map(|quarter| f64::from(samples[samples.len() * quarter / 4]))
}
