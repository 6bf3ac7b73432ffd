//! The event thread: kernel ring → audit trail → live observers. It does
//! nothing else, so that it keeps up.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::{MissedTickBehavior, interval},
};
use zt_common::{codes::Verdict, event::Event};

use super::board::{Board, DENIALS};
use crate::{
    audit::{KernelTotals, Names, Trail, TrailStatus},
    kernel::{
        KernelError,
        counters::Counters,
        pins::Pins,
        ring::{Positions, Ring},
    },
    metrics::latency::Latency,
    source::node,
};

/// Events taken before something else gets a turn: a few milliseconds' worth.
const BATCH: usize = 4096;
const TICK: Duration = Duration::from_secs(1);

/// What the thread works with.
pub struct Events {
    pub pins: Pins,
    pub trail: Trail,
    pub board: Arc<Board>,
    /// Time between signed checkpoints.
    pub checkpoint: Duration,
}

/// How the trail ended, or why nobody reads the ring any more.
pub type Outcome = Result<TrailStatus, KernelError>;

/// Starts the thread. It ends when `stop` changes, with the trail flushed;
/// `ended` is dropped however it ends.
///
/// # Errors
/// If no thread can be started.
pub fn spawn(
    events: Events,
    stop: watch::Receiver<bool>,
    ended: oneshot::Sender<()>,
) -> io::Result<JoinHandle<Outcome>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            let _ended = ended;
            runtime.block_on(run(events, stop))
        })
}

async fn run(events: Events, mut stop: watch::Receiver<bool>) -> Outcome {
    let mut ring = Ring::open(&events.pins)?;
    let mut reader = Reader::new(events)?;
    let mut asked = reader.board.asked.subscribe();
    let mut tick = interval(TICK);
    let mut checkpoint = interval(reader.checkpoint_every);
    for timer in [&mut tick, &mut checkpoint] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            _ = tick.tick() => reader.tick()?,
            _ = checkpoint.tick() => reader.checkpoint()?,
            _ = asked.changed() => reader.tell()?,
            drained = ring.drain(BATCH, |event| reader.take(&event)) => { drained?; }
        }
    }
    let waiting = reader.waiting()?;
    ring.drain_now(waiting, |event| reader.take(&event));
    reader.record_repairs();
    reader.checkpoint()?;
    Ok(reader.trail.close())
}

struct Reader {
    ring: Positions,
    trail: Trail,
    board: Arc<Board>,
    counters: Counters,
    checkpoint_every: Duration,
    names: watch::Receiver<Arc<Names>>,
    known: Arc<Names>,
    boot_offset: u64,
    latency: Latency,
}

impl Reader {
    fn new(events: Events) -> Result<Self, KernelError> {
        let mut names = events.board.names.subscribe();
        let known = names.borrow_and_update().clone();
        Ok(Self {
            counters: Counters::open(&events.pins)?,
            ring: Positions::open(&events.pins)?,
            trail: events.trail,
            boot_offset: events.board.boot_offset.load(Ordering::Relaxed),
            board: events.board,
            // A timer that never waits would be in everybody's way.
            checkpoint_every: events.checkpoint.max(Duration::from_millis(100)),
            names,
            known,
            latency: Latency::default(),
        })
    }

    /// Names are published before the kernel can use them, so looking after
    /// the event was read finds every name in it.
    fn take(&mut self, event: &Event) {
        if self.names.has_changed().unwrap_or(false) {
            self.known = self.names.borrow_and_update().clone();
        }
        self.latency.record(event.latency_ns);
        let Board {
            denials, records, ..
        } = &*self.board;
        let denied = event.verdict != Verdict::Allow as u8;
        let tells = denied && denials.receiver_count() > 0 && denials.len() < DENIALS;
        let shows = records.receiver_count() > 0;
        let record = self.trail.decision(event, &self.known, tells || shows);
        // Nobody listens any more: fine.
        if let Some(record) = record.as_ref().filter(|_| tells) {
            let _ = denials.send(record.clone());
        }
        if let Some(record) = record.filter(|_| shows) {
            let _ = records.send(record);
        }
    }

    fn tick(&mut self) -> Result<(), KernelError> {
        let now = node::boot_time().unwrap_or(0);
        self.board.events.beat(now);
        self.follow_clock();
        self.trail.ring_lost(self.counters.totals()?.lost_ring);
        self.trail.tick(now);
        self.record_repairs();
        self.latency.turn(now);
        self.tell()
    }

    fn record_repairs(&mut self) {
        let mut repairs = std::mem::take(&mut self.board.facts().unrecorded);
        while let Some(repair) = repairs.first()
            && self.trail.repaired(repair)
        {
            repairs.remove(0);
        }
        // Those for which there was no room come first the next time.
        if !repairs.is_empty() {
            let mut facts = self.board.facts();
            repairs.append(&mut facts.unrecorded);
            facts.unrecorded = repairs;
        }
    }

    fn follow_clock(&mut self) {
        let offset = self.board.boot_offset.load(Ordering::Relaxed);
        if offset != self.boot_offset {
            tracing::warn!("the wall clock was set; records and deadlines follow it");
            self.trail.set_boot_offset(offset);
            self.boot_offset = offset;
        }
    }

    /// Events in the ring.
    fn waiting(&self) -> Result<u64, KernelError> {
        let emitted = self.ring.emitted()?;
        Ok(emitted.saturating_sub(self.ring.consumed()?))
    }

    fn tell(&self) -> Result<(), KernelError> {
        // Before the numbers are taken: who asks later wants later ones.
        let asked = *self.board.asked.borrow();
        let trail = self.trail.status();
        let waiting = self.waiting()?;
        let mut facts = self.board.facts();
        facts.in_ring = waiting;
        facts.trail = Some(trail);
        facts.latency.clone_from(&self.latency);
        drop(facts);
        self.board.answered.send_replace(asked);
        Ok(())
    }

    /// The totals first, the producer's position next: what is decided in
    /// between shows as emitted, and the line says so.
    fn checkpoint(&mut self) -> Result<(), KernelError> {
        let totals = self.counters.totals()?;
        let kernel = KernelTotals {
            decisions: totals.decisions,
            emitted: self.ring.emitted()?,
            lost_ring: totals.lost_ring,
            uncounted: totals.uncounted,
        };
        let generation = self.board.facts().generation;
        self.trail.checkpoint(kernel, generation);
        Ok(())
    }
}
