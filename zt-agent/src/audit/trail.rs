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
    record::{Anomaly, Content, Repaired, Start, Text, Time},
    rotate::{Files, Store},
    sink::{LAST_TRIES, Sink},
};
use crate::kernel::repair::Repair;

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
        let (signing_key, made) = key::load_or_create(&config.key_directory)?;
        let mut files = Files::open(&config.file, config.keep_files)?;
        let (chain, unreadable) = continue_chain(&mut files, &config)?;
        let lost_key = (made && chain.line > 0).then(|| {
            "the signing key was missing; checkpoints before this line are by another one".into()
        });
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
        trail.begin(&kernel, [unreadable, lost_key], rebase, &chain.sums);
        Ok(trail)
    }

    fn begin(
        &mut self,
        kernel: &KernelState,
        details: [Option<String>; 2],
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
        for detail in details.into_iter().flatten() {
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

    /// Somebody altered what enforces, and it was put right. It counts for no
    /// decision. `false`: there is no room now.
    #[must_use]
    pub fn repaired(&mut self, repair: &Repair) -> bool {
        let content = Content::Repaired(Repaired::new(Time::now(), repair));
        self.sink.offer(content).is_ok()
    }

    /// One event was consumed. In the file repeats are folded; who asks for the
    /// record (`watched`) gets each.
    pub fn decision(&mut self, event: &Event, names: &Names, watched: bool) -> Option<Arc<Record>> {
        let make = || Arc::new(Record::of(event, names, &self.node, self.boot_offset));
        let mut made = watched.then(make);
        let now = Time(event.time.saturating_add(self.boot_offset));
        self.intake.decision(
            event,
            now,
            &mut || made.get_or_insert_with(make).clone(),
            &mut |content| self.sink.offer(content),
        );
        made
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

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use serde_json::json;

    use super::super::{
        Cause,
        testing::{Place, distinct, event, lines, names},
    };
    use super::*;
    use crate::kernel::repair::What;

    fn kinds(place: &Place) -> Vec<String> {
        let kind = |line: &serde_json::Value| line["kind"].as_str().unwrap().to_owned();
        place.lines().iter().map(kind).collect()
    }

    #[test]
    fn a_run_leaves_a_start_its_decisions_and_a_checkpoint() {
        let mut place = Place::new();
        place.run(2);
        assert_eq!(
            kinds(&place),
            ["start", "decision", "decision", "checkpoint"]
        );
        let lines = place.lines();
        assert_eq!(lines[0]["kernel"], "fresh");
        assert_eq!(lines[0]["epoch"], "00c0ffee00000001");
        let checkpoint = &lines[3];
        assert_eq!(checkpoint["recorded"], 2);
        assert_eq!(
            checkpoint["in_flight"],
            json!({"unsettled": 0, "ring": 0, "folding": 0, "shed": 0})
        );
        assert_eq!(checkpoint["signature"].as_str().unwrap().len(), 128);
        assert!(place.verify().is_sound());
    }

    #[test]
    fn a_repair_is_in_the_chain_and_counts_for_no_decision() {
        let place = Place::new();
        let mut trail = place.open();
        trail.decision(&distinct(1), &names(), false);
        assert!(trail.repaired(&Repair::new(What::Rows, "3 rows")));
        trail.decision(&distinct(2), &names(), false);
        let status = trail.close();
        assert_eq!((status.recorded, status.consumed), (2, 2));
        let lines = place.lines();
        assert_eq!(kinds(&place), ["start", "decision", "repair", "decision"]);
        assert_eq!(lines[2]["what"], "rows");
        assert_eq!(
            (&lines[2]["total"], &lines[3]["total"]),
            (&json!(1), &json!(2))
        );
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert_eq!((report.recorded, report.repairs), (2, 1));
        place.tamper(|lines| drop(lines.remove(2)));
        assert!(!place.verify().is_sound());
    }

    #[test]
    fn the_observer_sees_every_decision_and_the_file_folds_repeats() {
        let mut place = Place::new();
        place.config.fold_window = Duration::from_nanos(100);
        let mut trail = place.open();
        for _ in 0..5 {
            let record = trail.decision(&event(), &names(), true).unwrap();
            assert_eq!((record.count, record.latency_us), (1, Some(42.125)));
        }
        assert_eq!(trail.status().pending, 4);
        trail.tick(event().time + 100);
        assert_eq!(trail.status().pending, 0);
        trail.decision(&event(), &names(), false);
        let status = trail.close();
        assert_eq!(
            (status.recorded, status.consumed, status.unwritten),
            (6, 6, 0)
        );
        let counts: Vec<_> = place.lines()[1..]
            .iter()
            .map(|line| (line["count"].as_u64(), line["latency_us"].is_null()))
            .collect();
        assert_eq!(counts, [(Some(1), false), (Some(4), true), (Some(1), true)]);
    }

    #[test]
    fn a_restart_continues_the_chain_and_counts_what_the_dead_agent_held() {
        let mut place = Place::new();
        place.run(3);
        // Two more were consumed by an agent that was killed.
        place.kernel.consumed += 2;
        place.kernel.adopted = true;
        place.run(1);
        let lines = place.lines();
        let start = lines.iter().rposition(|l| l["kind"] == "start").unwrap();
        assert_eq!(lines[start]["kernel"], "adopted");
        let loss = &lines[start + 1];
        assert_eq!(
            (&loss["cause"], &loss["count"]),
            (&json!("killed"), &json!(2))
        );
        assert_eq!(loss["total"], 5);
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert_eq!((report.recorded, report.lost.of(Cause::Killed)), (4, 2));
    }

    #[test]
    fn what_was_folding_when_the_agent_died_is_a_loss() {
        let mut place = Place::new();
        place.config.fold_window = Duration::from_secs(10);
        let mut trail = place.open();
        for _ in 0..7 {
            trail.decision(&event(), &names(), false);
        }
        drop(trail);
        place.kernel.consumed = 7;
        let status = place.open().close();
        assert_eq!(status.recorded, 1);
        assert_eq!(status.lost.of(Cause::Killed), 6);
    }

    #[test]
    fn ring_losses_are_told_once_over_restarts() {
        let mut place = Place::new();
        let mut trail = place.open();
        trail.ring_lost(3);
        trail.ring_lost(3);
        trail.ring_lost(5);
        trail.close();
        place.kernel.lost_ring = 9;
        place.run(1);
        let counts: Vec<_> = place
            .lines()
            .iter()
            .filter(|line| line["cause"] == "ring-full")
            .map(|line| line["count"].as_u64().unwrap())
            .collect();
        assert_eq!(counts, [3, 2, 4]);
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert_eq!(report.lost.of(Cause::RingFull), 9);
    }

    #[test]
    fn a_new_epoch_begins_its_sums_anew_in_the_same_chain() {
        let mut place = Place::new();
        place.run(3);
        place.kernel.epoch += 1;
        place.kernel.consumed = 0;
        place.run(2);
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert_eq!((report.epochs, report.recorded), (2, 5));
        assert_eq!(place.lines().last().unwrap()["total"], 2);
    }

    #[test]
    fn a_torn_last_line_is_a_loss_and_no_anomaly() {
        let mut place = Place::new();
        place.run(3);
        let text = fs::read_to_string(&place.config.file).unwrap();
        // The last decision and the checkpoint after it, half of them.
        let third = text.match_indices('\n').nth(2).unwrap().0;
        fs::write(&place.config.file, &text[..third + 200]).unwrap();
        assert_eq!(place.verify().torn, 199);
        place.run(1);
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert_eq!((report.recorded, report.lost.of(Cause::Killed)), (3, 1));
    }

    #[test]
    fn a_trail_of_another_kernel_is_an_anomaly_and_the_sums_go_on() {
        let mut place = Place::new();
        place.run(10);
        place.kernel.consumed = 4;
        place.run(2);
        let report = place.verify();
        assert_eq!(report.fault, None);
        assert_eq!(report.anomalies.len(), 1);
        assert!(!report.is_sound());
        let last = place.lines().pop().unwrap();
        assert_eq!(
            (&last["kind"], &last["total"]),
            (&json!("checkpoint"), &json!(6))
        );
    }

    #[test]
    fn a_last_line_that_was_changed_is_kept_aside_and_told() {
        let mut place = Place::new();
        place.run(2);
        place.tamper(|lines| {
            let last = lines.last_mut().unwrap();
            *last = last.replace("\"recorded\":2", "\"recorded\":1");
        });
        place.run(1);
        assert!(place.file(".1").exists());
        let lines = place.lines();
        assert_eq!(
            (&lines[1]["kind"], &lines[1]["line"]),
            (&json!("anomaly"), &json!(2))
        );
        assert_eq!(lines[2]["cause"], "killed");
        let fault = place.verify().fault.unwrap();
        assert_eq!((fault.file, fault.line), (place.file(".1"), 4));
    }

    #[test]
    fn a_lost_signing_key_is_told() {
        let mut place = Place::new();
        place.run(2);
        fs::remove_dir_all(&place.config.key_directory).unwrap();
        place.run(2);
        assert_eq!(place.lines()[5]["kind"], "anomaly");
        assert_eq!(place.verify().fault.unwrap().line, 4, "signed by the old");
    }

    #[test]
    fn after_a_rotation_an_empty_file_continues_the_one_before() {
        let mut place = Place::new();
        place.run(2);
        fs::rename(&place.config.file, place.file(".1")).unwrap();
        place.run(2);
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert_eq!(place.lines()[0]["line"], lines(&place.file(".1")).len() + 1);
    }

    #[test]
    fn two_agents_cannot_write_one_trail() {
        let place = Place::new();
        let first = place.open();
        let error = Trail::open(place.config.clone(), place.kernel).unwrap_err();
        assert!(matches!(error, AuditError::Locked(_)), "{error}");
        drop(first);
        place.open().close();
    }

    #[test]
    fn the_caller_never_waits_and_what_is_shed_is_told() {
        let mut place = Place::new();
        place.config.queue = 16;
        let mut trail = place.open();
        for number in 0..5000 {
            trail.decision(&distinct(number), &names(), false);
        }
        place.kernel.consumed = 5000;
        let status = trail.close();
        assert_eq!(status.recorded + status.lost.consumed(), 5000);
        let told: u64 = place
            .lines()
            .iter()
            .filter(|line| line["kind"] == "loss")
            .map(|line| line["count"].as_u64().unwrap())
            .sum();
        assert_eq!(told, status.lost.of(Cause::SinkSlow));
        place.run(1);
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert_eq!(report.lost.of(Cause::Killed), 0);
    }

    #[test]
    fn a_checkpoint_says_what_is_in_flight() {
        let mut place = Place::new();
        place.config.fold_window = Duration::from_secs(10);
        let mut trail = place.open();
        for _ in 0..4 {
            trail.decision(&event(), &names(), false);
        }
        let kernel = KernelTotals {
            decisions: 13,
            emitted: 6,
            lost_ring: 5,
            uncounted: 0,
        };
        trail.checkpoint(kernel, 3);
        trail.close();
        let lines = place.lines();
        let checkpoint = lines.iter().find(|l| l["kind"] == "checkpoint").unwrap();
        assert_eq!(
            checkpoint["in_flight"],
            json!({"unsettled": 2, "ring": 2, "folding": 3, "shed": 0})
        );
        assert_eq!(checkpoint["lost"], json!({"ring-full": 5}));
        assert!(place.verify().is_sound());
    }

    #[test]
    fn bytes_after_the_trail_do_not_stop_a_start() {
        let mut place = Place::new();
        place.run(1);
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&place.config.file)
            .unwrap();
        file.write_all(&[0; 5000]).unwrap();
        place.run(1);
        assert!(place.verify().is_sound());
    }
}
