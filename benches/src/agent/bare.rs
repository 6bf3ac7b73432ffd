//! The same calls, and a reader that only counts: what a ring can carry.
//!
//! Of two senders: a program that sends a record of each call and nothing else, and
//! our programs, which decide each call before they tell of it. What is between the
//! two is the price of deciding; what is between the second and the agent is the
//! price of reading.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use serde::{Deserialize, Serialize};
use zt_agent::{document::Config, kernel::load::MapSizes, model::Mode};
use zt_common::{event::Event, state::Control};
use zt_tests::{
    Sandbox, Workload, interrupt,
    node::{Node, World, allow},
};

use super::produce::{Case, PEERS, Producers, per_second};
use crate::{peer, ports};

/// How long the reader sleeps when there is nothing.
const PAUSE: Duration = Duration::from_micros(100);

/// What sends the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sender {
    /// It does nothing else.
    #[default]
    Floor,
    /// Our programs.
    Ours,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bare {
    pub sender: Sender,
    pub producers: u32,
    /// Calls a second, of all producers.
    pub rate: f64,
    pub delivered: u64,
    pub lost: u64,
    /// Records a second, until the ring was empty.
    pub carried: f64,
}

/// # Errors
/// When the kernel refuses, and when interrupted.
pub fn run(sender: Sender, case: Case, floor: &Path) -> Result<Bare> {
    interrupt::check()?;
    let sandbox = Sandbox::new()?;
    let netns = sandbox.netns("client")?;
    let cgroup = sandbox.cgroup().child("client")?;
    let client = Workload::new("client", cgroup, Some(netns));
    match sender {
        Sender::Floor => {
            let mut programs = attach(floor, &client)?;
            let ring = programs.take_map("floor_events").context("floor_events")?;
            let mut bare = measure(sender, case, &client, ring)?;
            let calls = case.count * u64::from(case.producers);
            let lost = calls.checked_sub(bare.delivered);
            bare.lost = lost.with_context(|| format!("{bare:?} of {calls} calls"))?;
            Ok(bare)
        }
        Sender::Ours => {
            let node = decide(&sandbox, &client)?;
            let ring = MapData::from_pin(node.pins.map("zt_events_v1"))?;
            let mut bare = measure(sender, case, &client, Map::RingBuf(ring))?;
            let totals = node.counters.totals()?;
            bare.lost = totals.lost_ring;
            ensure!(
                bare.delivered + bare.lost == totals.decisions,
                "{bare:?} of {totals:?}"
            );
            Ok(bare)
        }
    }
}

/// The program that only sends.
fn attach(floor: &Path, client: &Workload) -> Result<Ebpf> {
    let loaded = EbpfLoader::new().load_file(floor);
    let mut ebpf = loaded.with_context(|| floor.display().to_string())?;
    let program: &mut CgroupSockAddr = ebpf
        .program_mut("ring_connect4")
        .context("there is no program ring_connect4")?
        .try_into()?;
    program.load()?;
    let directory = std::fs::File::open(client.cgroup().path())?;
    program.attach(&directory, CgroupAttachMode::Single)?;
    Ok(ebpf)
}

/// Our programs, with what an agent would have them decide by.
fn decide(sandbox: &Sandbox, client: &Workload) -> Result<Node> {
    let limits = Config::default().limits;
    let mut world = World::default().enrol(client, &[]);
    for number in 0..PEERS {
        world = world.claim(peer(number));
    }
    let rule = allow("client", "peer/*", &format!("{:?}", ports()), "UDP");
    let world = world.mode(Mode::Enforce).rules(&format!("[{rule}]"))?;
    let mut node = Node::with_sizes(sandbox, &MapSizes::from(&limits))?;
    let control = node.store.control();
    control.configure(&Control {
        flow_share: limits.flow_share.into(),
        ..control.read()
    });
    node.apply(&world.model)?;
    node.attach()?;
    Ok(node)
}

/// What is lost whoever sends has to say.
fn measure(sender: Sender, case: Case, client: &Workload, ring: Map) -> Result<Bare> {
    let mut ring = RingBuf::try_from(ring)?;
    let is_over = AtomicBool::new(false);
    let start = Instant::now();
    let (rate, read) = thread::scope(|scope| {
        let reader = scope.spawn(|| (read(&mut ring, &is_over), start.elapsed()));
        let producers = Producers::start(client, case);
        let rate = producers.and_then(|producers| producers.rate());
        is_over.store(true, Ordering::Release);
        (rate, reader.join())
    });
    let rate = rate?;
    let (delivered, emptied) = read.map_err(|_| anyhow!("the reader panicked"))?;
    ensure!(delivered > 0, "no record of any call");
    Ok(Bare {
        sender,
        producers: case.producers,
        rate,
        delivered,
        lost: 0,
        carried: per_second(delivered, emptied),
    })
}

/// Counts records until it is over and there are no more.
fn read(ring: &mut RingBuf<MapData>, is_over: &AtomicBool) -> u64 {
    let mut all = 0;
    loop {
        // What comes after the last look is nobody's.
        let is_last = is_over.load(Ordering::Acquire);
        let mut count = 0;
        while let Some(item) = ring.next() {
            count += u64::from(Event::from_bytes(&item).is_some());
        }
        all += count;
        if is_last {
            return all;
        }
        if count == 0 {
            thread::sleep(PAUSE);
        }
    }
}
