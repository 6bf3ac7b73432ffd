//! The wiring: one trail, from events to files.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use zt_common::event::Event;

use super::{
    AuditError, KernelTotals, Losses, Names, Record,
    account::{Rebase, Sums},
    chain::Chain,
    fold::Fold,
    intake::Intake,
    key,
    record::{Anomaly, Content, Start, Text, Time},
    rotate::{Files, Store},
    sink::{LAST_TRIES, Sink},
};

/// How a trail is kept.
#[derive(Clone, Debug)]
pub struct TrailConfig {
    /// The current file, for example `/var/lib/zt-agent/audit/audit.jsonl`.
    pub file: PathBuf,
    /// A new file is begun before one grows beyond this.
    pub rotate_bytes: u64,
    /// Older files that are kept.
    pub keep_files: u32,
    /// Identical decisions within it become one record; zero: none do.
    pub fold_window: Duration,
    /// Most kinds of decisions that are folded at the same time.
    pub fold_keys: usize,
    /// Lines between the caller and the writer. What exceeds it is shed.
    pub queue: usize,
    /// Where the signing key lies.
    pub key_directory: PathBuf,
    /// Name of this node.
    pub node: Arc<str>,
    /// `CLOCK_REALTIME` − `CLOCK_BOOTTIME` in nanoseconds.
    pub boot_offset: u64,
}

impl TrailConfig {
    /// The defaults: 64 MiB a file, 8 older ones, folding over 10 s.
    #[must_use]
    pub fn new(file: PathBuf, key_directory: PathBuf, node: Arc<str>, boot_offset: u64) -> Self {
        Self {
            file,
            rotate_bytes: 64 << 20,
            keep_files: 8,
            fold_window: Duration::from_secs(10),
            fold_keys: 65_536,
            queue: 65_536,
            key_directory,
            node,
            boot_offset,
        }
    }
}

/// The kernel's side at the moment the ring is opened, before anything is
/// consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// `Control::epoch`.
    pub epoch: u64,
    /// Events ever consumed: the ring's consumer position divided by
    /// [`zt_common::event::RING_RECORD`].
    pub consumed: u64,
    /// Sum of `Totals::lost_ring` over the CPUs.
    pub lost_ring: u64,
    /// The maps were there already.
    pub adopted: bool,
}

/// How the trail is doing. `recorded` + `lost` (without the ring's) +
/// `pending` + `unwritten` = `consumed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrailStatus {
    /// Decisions of this epoch that are in the file.
    pub recorded: u64,
    /// Losses of this epoch, in the file or to be told there.
    pub lost: Losses,
    /// Decisions held by folding.
    pub pending: u64,
    /// Decisions handed to the writer and not in the file yet.
    pub unwritten: u64,
    /// Events consumed from the ring in this epoch.
    pub consumed: u64,
    /// Lines waiting for the writer.
    pub queued: usize,
    /// Failed attempts to write since the start.
    pub write_errors: u64,
    pub healthy: bool,
    pub last_error: Option<String>,
}

/// The audit trail of this node. Nothing but [`Trail::close`] (and dropping)
/// waits.
#[derive(Debug)]
pub struct Trail {
    node: Arc<str>,
    boot_offset: u64,
    intake: Intake,
    sink: Sink,
}

impl Trail {
    /// Opens the trail and continues its chain; first of all it records the
    /// start, and what an agent before this one consumed and did not write.
    ///
    /// # Errors
    /// If the files or the key cannot be used, or another agent writes them.
    /// A disk that is merely full is no error: see [`TrailStatus::healthy`].
    pub fn open(config: TrailConfig, kernel: KernelState) -> Result<Self, AuditError> {
        let signing_key = key::load_or_create(&config.key_directory)?;
        let mut files = Files::open(&config.file, config.keep_files)?;
        let (chain, unreadable) = continue_chain(&mut files, &config)?;
        let chain = chain.in_epoch(kernel.epoch);
        let sink = start_sink(files, chain, signing_key, &config)?;
        let window = u64::try_from(config.fold_window.as_nanos()).unwrap_or(u64::MAX);
        let fold = Fold::new(window, config.fold_keys);
        let (intake, rebase) = Intake::resume(fold, chain.sums, kernel.consumed, kernel.lost_ring);
        let mut trail = Self {
            node: config.node,
            boot_offset: config.boot_offset,
            intake,
            sink,
        };
        trail.begin(&kernel, unreadable, rebase, &chain.sums);
        Ok(trail)
    }

    fn begin(
        &mut self,
        kernel: &KernelState,
        unreadable: Option<String>,
        rebase: Option<Rebase>,
        found: &Sums,
    ) {
        let now = Time::now();
        let start = Start {
            kind: "start",
            timestamp: now,
            version: env!("CARGO_PKG_VERSION"),
            node: Text::Shared(self.node.clone()),
            pid: std::process::id(),
            kernel: if kernel.adopted { "adopted" } else { "fresh" },
        };
        // The queue is empty and has room for the first lines.
        let _ = self.sink.offer(Content::Start(start));
        if let Some(detail) = unreadable {
            self.anomaly(Anomaly::new(now, detail, None));
        }
        if let Some(rebase) = rebase {
            let detail = contradiction(found, &rebase);
            self.anomaly(Anomaly::new(now, detail, Some(rebase)));
        }
        self.intake
            .tick(0, now, &mut |content| self.sink.offer(content));
    }

    fn anomaly(&mut self, anomaly: Anomaly) {
        tracing::error!(
            detail = %anomaly.detail,
            next_step = "run `zt-agent audit verify`, and keep the files: somebody changed or exchanged them",
            "the audit trail contradicts the kernel"
        );
        self.intake
            .anomaly(anomaly, &mut |content| self.sink.offer(content));
    }

    /// One event was consumed. The record is also what a live observer sees;
    /// in the file, repeats are folded.
    pub fn decision(&mut self, event: &Event, names: &Names) -> Arc<Record> {
        let record = Arc::new(Record::of(event, names, &self.node, self.boot_offset));
        self.intake
            .decision(event, &record, &mut |content| self.sink.offer(content));
        record
    }

    /// Writes what was folded long enough. `now` is `CLOCK_BOOTTIME` in
    /// nanoseconds. Call it about once a second, also when nothing happens.
    pub fn tick(&mut self, now: u64) {
        self.intake
            .tick(now, Time::now(), &mut |content| self.sink.offer(content));
    }

    /// The kernel's cumulative count of ring losses of this epoch.
    pub fn ring_lost(&mut self, total: u64) {
        self.intake
            .ring_lost(total, Time::now(), &mut |content| self.sink.offer(content));
    }

    /// Sets the kernel's totals beside the trail's and signs both.
    pub fn checkpoint(&mut self, kernel: KernelTotals, generation: u32) {
        let offer = &mut |content| self.sink.offer(content);
        if !self
            .intake
            .checkpoint(kernel, generation, Time::now(), offer)
        {
            tracing::warn!("the audit queue is full; this checkpoint is left out");
        }
    }

    /// The wall clock was set: `CLOCK_REALTIME` − `CLOCK_BOOTTIME` in
    /// nanoseconds from now on.
    pub fn set_boot_offset(&mut self, boot_offset: u64) {
        self.boot_offset = boot_offset;
    }

    #[must_use]
    pub fn status(&self) -> TrailStatus {
        let progress = self.sink.progress();
        let account = self.intake.account();
        TrailStatus {
            recorded: progress.sums.recorded,
            lost: account.lost(),
            pending: self.intake.pending(),
            unwritten: account
                .handed()
                .recorded
                .saturating_sub(progress.sums.recorded),
            consumed: account.consumed(),
            queued: self.sink.queued(),
            write_errors: self.sink.errors(),
            healthy: self.sink.healthy(),
            last_error: progress.last_error,
        }
    }

    /// Whether the last attempt to write succeeded: for readiness.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.sink.healthy()
    }

    /// Writes everything held and ends the writer. Waits; with a disk that
    /// cannot be written, for a few seconds.
    pub fn close(mut self) -> TrailStatus {
        let deadline = Instant::now() + LAST_TRIES;
        self.intake.flush(Time::now(), &mut |content| {
            self.sink.offer_until(content, deadline)
        });
        self.sink.close();
        self.status()
    }
}

/// Where the chain stands. If the last line cannot be read the trail goes on
/// with a new chain in a new file, and the damaged one is kept.
fn continue_chain(
    files: &mut Files,
    config: &TrailConfig,
) -> Result<(Chain, Option<String>), AuditError> {
    let last = files
        .last_line()
        .map_err(AuditError::io("read", &config.file))?;
    let Some(line) = last else {
        return Ok((Chain::default(), None));
    };
    match Chain::after(&line) {
        Ok(chain) => Ok((chain, None)),
        Err(what) => {
            if !files.is_empty() {
                files
                    .rotate()
                    .map_err(AuditError::io("rotate", &config.file))?;
            }
            let detail = format!(
                "the last line of the trail cannot be continued: {what}; a new chain begins here"
            );
            Ok((Chain::default(), Some(detail)))
        }
    }
}

fn start_sink(
    files: Files,
    chain: Chain,
    key: SigningKey,
    config: &TrailConfig,
) -> Result<Sink, AuditError> {
    // Room for the lines that every start writes.
    let queue = config.queue.max(16);
    Sink::start(Box::new(files), chain, key, queue, config.rotate_bytes).map_err(AuditError::Thread)
}

fn contradiction(found: &Sums, rebase: &Rebase) -> String {
    format!(
        "the trail accounts for {} decisions and {} ring losses of this epoch, but the kernel emitted only {} and lost {}",
        found.total(),
        found.lost.of(super::Cause::RingFull),
        rebase.consumed,
        rebase.lost_ring
    )
}
