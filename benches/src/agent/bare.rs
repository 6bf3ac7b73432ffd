//! What a ring can carry: the same calls, a program that sends a record of each and
//! nothing else, and a reader that counts them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    EbpfLoader,
    maps::{MapData, RingBuf},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use serde::{Deserialize, Serialize};
use zt_common::event::Event;
use zt_tests::{Sandbox, Workload, interrupt};

use super::produce::{Case, Producers, per_second};

/// How long the reader sleeps when there is nothing.
const PAUSE: Duration = Duration::from_micros(100);

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bare {
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
pub fn run(case: Case, floor: &Path) -> Result<Bare> {
    interrupt::check()?;
    let sandbox = Sandbox::new()?;
    let netns = sandbox.netns("client")?;
    let cgroup = sandbox.cgroup().child("client")?;
    let client = Workload::new("client", cgroup, Some(netns));
    let loaded = EbpfLoader::new().load_file(floor);
    let mut ebpf = loaded.with_context(|| floor.display().to_string())?;
    let program: &mut CgroupSockAddr = ebpf
        .program_mut("ring_connect4")
        .context("there is no program ring_connect4")?
        .try_into()?;
    program.load()?;
    let directory = std::fs::File::open(client.cgroup().path())?;
    program.attach(&directory, CgroupAttachMode::Single)?;
    let ring = ebpf.take_map("floor_events").context("floor_events")?;
    let mut ring = RingBuf::try_from(ring)?;

    let is_over = AtomicBool::new(false);
    let start = Instant::now();
    let (rate, read) = thread::scope(|scope| {
        let reader = scope.spawn(|| (read(&mut ring, &is_over), start.elapsed()));
        let producers = Producers::start(&client, case);
        let rate = producers.and_then(|producers| producers.rate());
        is_over.store(true, Ordering::Release);
        (rate, reader.join())
    });
    let rate = rate?;
    let (delivered, emptied) = read.map_err(|_| anyhow!("the reader panicked"))?;
    let calls = case.count * u64::from(case.producers);
    ensure!(
        (1..=calls).contains(&delivered),
        "{delivered} records of {calls} calls"
    );
    Ok(Bare {
        producers: case.producers,
        rate,
        delivered,
        lost: calls - delivered,
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
