//! The writer: a thread of its own behind a bounded queue.
//!
//! It links the lines into the chain, so only what was really written is in
//! the chain. When writing fails it keeps what it has and tries again, with
//! growing pauses; meanwhile the queue fills, and what no longer fits is
//! counted by whoever offers it.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;

use super::{
    account::{Cause, Sums},
    chain::Chain,
    record::Content,
    rotate::Store,
};

/// Most lines written with one system call.
const BATCH: usize = 256;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A disk that stays full is not logged more often than this.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// How long closing waits for a disk that cannot be written.
pub const LAST_TRIES: Duration = Duration::from_secs(2);

/// What the writer tells the others.
#[derive(Debug, Default)]
struct Shared {
    queued: AtomicUsize,
    failing: AtomicBool,
    closing: AtomicBool,
    errors: AtomicU64,
    progress: Mutex<Progress>,
}

/// What was written so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Of this epoch.
    pub sums: Sums,
    /// Number of the last line.
    pub line: u64,
    pub last_error: Option<String>,
}

/// The queue's end for the one who fills it.
#[derive(Debug)]
pub struct Sink {
    sender: Option<SyncSender<Content>>,
    capacity: usize,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl Sink {
    /// Starts the writer. `chain` is the chain so far, already in the epoch
    /// that the lines will belong to; `capacity` counts lines; a new file is
    /// begun before one grows beyond `rotate_bytes`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        store: Box<dyn Store>,
        chain: Chain,
        key: SigningKey,
        capacity: usize,
        rotate_bytes: u64,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(capacity);
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            store,
            chain,
            key,
            rotate_bytes,
            batch: VecDeque::new(),
            shared: shared.clone(),
            unsynced: false,
            last_logged: None,
        };
        writer.tell();
        let writer = thread::Builder::new()
            .name("audit-writer".to_owned())
            .spawn(move || writer.run(&receiver))?;
        Ok(Self {
            sender: Some(sender),
            capacity,
            shared,
            writer: Some(writer),
        })
    }

    /// Takes one line, without waiting.
    ///
    /// # Errors
    /// If the queue is full: why.
    pub fn offer(&self, content: Content) -> Result<(), Cause> {
        let sender = self.sender.as_ref().ok_or(Cause::SinkError)?;
        // Counted first, or the writer could count it out before it was in.
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        sender.try_send(content).map_err(|_| {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            if self.healthy() {
                Cause::SinkSlow
            } else {
                Cause::SinkError
            }
        })
    }

    /// Takes one line, and waits for room: as long as lines are being written,
    /// and otherwise until `deadline`.
    ///
    /// # Errors
    /// If there was none: why.
    pub fn offer_until(&self, content: Content, deadline: Instant) -> Result<(), Cause> {
        while self.queued() >= self.capacity && (self.healthy() || Instant::now() < deadline) {
            thread::sleep(Duration::from_millis(5));
        }
        self.offer(content)
    }

    /// Lines taken and not yet written.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Relaxed)
    }

    /// Whether the last attempt to write succeeded.
    #[must_use]
    pub fn healthy(&self) -> bool {
        !self.shared.failing.load(Ordering::Relaxed)
            && self.writer.as_ref().is_none_or(|w| !w.is_finished())
    }

    /// Failed attempts to write, since the start.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn progress(&self) -> Progress {
        let progress = self.shared.progress.lock();
        progress.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes what is queued and ends the writer. Waits; with a disk that
    /// cannot be written, for about two seconds.
    pub fn close(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.sender = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the audit writer panicked; the trail ends before its time");
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer {
    store: Box<dyn Store>,
    /// Up to the last line that is in the file.
    chain: Chain,
    key: SigningKey,
    rotate_bytes: u64,
    /// Taken from the queue and not yet written.
    batch: VecDeque<Content>,
    shared: Arc<Shared>,
    unsynced: bool,
    last_logged: Option<Instant>,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Content>) {
        while self.fill(receiver) {
            if !self.write_until_done() {
                return;
            }
        }
        if let Err(error) = self.store.sync() {
            self.note(&error);
        }
    }

    /// Waits for a line and takes as many as there are. `false`: no more will
    /// come.
    fn fill(&mut self, receiver: &Receiver<Content>) -> bool {
        let Ok(first) = receiver.recv() else {
            return false;
        };
        self.batch.push_back(first);
        self.batch.extend(receiver.try_iter().take(BATCH - 1));
        true
    }

    /// Writes the batch, however often it takes. `false`: gave up.
    fn write_until_done(&mut self) -> bool {
        let mut pause = FIRST_PAUSE;
        let mut deadline = None;
        while let Err(error) = self.write() {
            self.note(&error);
            if self.shared.closing.load(Ordering::Relaxed) {
                let end = *deadline.get_or_insert_with(|| Instant::now() + LAST_TRIES);
                if Instant::now() >= end {
                    tracing::error!(
                        lines = self.shared.queued.load(Ordering::Relaxed),
                        "the audit trail could not be written to its end; the next start counts what is missing as lost"
                    );
                    return false;
                }
                pause = FIRST_PAUSE;
            }
            self.wait(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        true
    }

    /// Sleeps, but not on when asked to close.
    fn wait(&self, pause: Duration) {
        let end = Instant::now() + pause;
        let was_closing = self.shared.closing.load(Ordering::Relaxed);
        while Instant::now() < end {
            if self.shared.closing.load(Ordering::Relaxed) != was_closing {
                return;
            }
            thread::sleep(FIRST_PAUSE.min(pause));
        }
    }

    fn write(&mut self) -> io::Result<()> {
        self.settle()?;
        while !self.batch.is_empty() {
            let part = self.link()?;
            if part.lines == 0 {
                self.store.rotate()?;
                continue;
            }
            self.store.append(&part.bytes)?;
            self.chain = part.chain;
            self.batch.drain(..part.lines);
            self.shared.queued.fetch_sub(part.lines, Ordering::Relaxed);
            self.tell();
            self.unsynced = part.ends_with_checkpoint;
            self.settle()?;
        }
        self.shared.failing.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// A checkpoint must be on the disk before anything follows it.
    fn settle(&mut self) -> io::Result<()> {
        if self.unsynced {
            self.store.sync()?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Links as much of the batch as fits into the current file, up to a
    /// checkpoint.
    fn link(&self) -> io::Result<Part> {
        let mut part = Part {
            chain: self.chain,
            bytes: Vec::new(),
            lines: 0,
            ends_with_checkpoint: false,
        };
        for content in &self.batch {
            let begin = part.bytes.len();
            let chain = part.chain.append(content, &self.key, &mut part.bytes)?;
            let used = self.store.len() + bytes(begin);
            if used > 0 && self.store.len() + bytes(part.bytes.len()) > self.rotate_bytes {
                part.bytes.truncate(begin);
                break;
            }
            part.chain = chain;
            part.lines += 1;
            if matches!(content, Content::Checkpoint(_)) {
                part.ends_with_checkpoint = true;
                break;
            }
        }
        Ok(part)
    }

    fn tell(&self) {
        let progress = self.shared.progress.lock();
        let mut progress = progress.unwrap_or_else(PoisonError::into_inner);
        progress.sums = self.chain.sums;
        progress.line = self.chain.line;
    }

    fn note(&mut self, error: &io::Error) {
        self.shared.failing.store(true, Ordering::Relaxed);
        self.shared.errors.fetch_add(1, Ordering::Relaxed);
        let progress = self.shared.progress.lock();
        progress.unwrap_or_else(PoisonError::into_inner).last_error = Some(error.to_string());
        if self.last_logged.is_none_or(|at| at.elapsed() > LOG_EVERY) {
            self.last_logged = Some(Instant::now());
            tracing::error!(
                %error,
                next_step = next_step(error),
                "cannot write the audit trail; decisions wait in the queue and are then counted as lost (sink-error)"
            );
        }
    }
}

/// Lines ready to be written.
struct Part {
    /// After them.
    chain: Chain,
    bytes: Vec<u8>,
    lines: usize,
    ends_with_checkpoint: bool,
}

fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space on its file system, or lower audit.rotate_bytes or audit.keep_files"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make its directory writable for the agent"
        }
        _ => "look at the kernel log for errors of the disk",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        fold::Fold,
        intake::Intake,
        record::{KernelTotals, Time},
        testing::{distinct, record},
    };
    use super::*;

    #[derive(Default)]
    struct Inner {
        files: Vec<Vec<u8>>,
        failing: bool,
        syncs: usize,
        sync_errors: usize,
    }

    /// A disk that can be told to fail, and looked at from outside.
    #[derive(Clone)]
    struct Disk(Arc<Mutex<Inner>>);

    impl Disk {
        fn new(failing: bool) -> Self {
            Self(Arc::new(Mutex::new(Inner {
                files: vec![Vec::new()],
                failing,
                syncs: 0,
                sync_errors: 0,
            })))
        }

        fn fail(&self, failing: bool) {
            self.0.lock().unwrap().failing = failing;
        }

        fn lines(&self) -> Vec<Vec<String>> {
            let inner = self.0.lock().unwrap();
            let text = |file: &Vec<u8>| String::from_utf8(file.clone()).unwrap();
            let lines = |file| text(file).lines().map(str::to_owned).collect();
            inner.files.iter().map(lines).collect()
        }
    }

    impl Store for Disk {
        fn len(&self) -> u64 {
            bytes(self.0.lock().unwrap().files.last().unwrap().len())
        }

        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            let mut inner = self.0.lock().unwrap();
            if inner.failing {
                return Err(io::ErrorKind::StorageFull.into());
            }
            inner.files.last_mut().unwrap().extend_from_slice(bytes);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            let mut inner = self.0.lock().unwrap();
            if inner.sync_errors > 0 {
                inner.sync_errors -= 1;
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            inner.syncs += 1;
            Ok(())
        }

        fn rotate(&mut self) -> io::Result<()> {
            self.0.lock().unwrap().files.push(Vec::new());
            Ok(())
        }
    }

    fn start(disk: &Disk, capacity: usize, rotate_bytes: u64) -> Sink {
        let key = SigningKey::from_bytes(&[7; 32]);
        let disk = Box::new(disk.clone());
        Sink::start(disk, Chain::default(), key, capacity, rotate_bytes).unwrap()
    }

    fn line(number: u16) -> Content {
        Content::Decision(record(&distinct(number)))
    }

    fn wait_for(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(Instant::now() < end, "waited for too long");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn assert_chained(lines: &[String]) {
        let mut before = Chain::default();
        for line in lines {
            assert!(line.contains(&format!("\"previous\":\"{}\"", before.hash)));
            before = Chain::after(line.as_bytes()).unwrap();
        }
    }

    #[test]
    fn lines_are_written_in_order_and_files_do_not_exceed_their_size() {
        let disk = Disk::new(false);
        let mut sink = start(&disk, 100, 2000);
        for number in 1..=20 {
            sink.offer(line(number)).unwrap();
        }
        sink.close();
        let files = disk.lines();
        assert!(files.len() > 3);
        for file in &files {
            let size: usize = file.iter().map(|line| line.len() + 1).sum();
            assert!(size <= 2000 && !file.is_empty(), "{size}");
        }
        let all = files.concat();
        assert_eq!(all.len(), 20);
        assert_chained(&all);
        assert_eq!((sink.queued(), sink.progress().line), (0, 20));
    }

    #[test]
    fn a_line_longer_than_a_file_gets_a_file_of_its_own() {
        let disk = Disk::new(false);
        let mut sink = start(&disk, 100, 10);
        for number in 1..=3 {
            sink.offer(line(number)).unwrap();
        }
        sink.close();
        let counts: Vec<_> = disk.lines().iter().map(Vec::len).collect();
        assert_eq!(counts, [1, 1, 1]);
    }

    #[test]
    fn while_the_disk_is_full_lines_wait_and_then_are_shed_and_nothing_blocks() {
        let disk = Disk::new(true);
        let mut sink = start(&disk, 4, 1 << 20);
        sink.offer(line(1)).unwrap();
        wait_for(|| !sink.healthy());
        let progress = sink.progress();
        assert!(progress.last_error.is_some());
        assert_eq!(progress.sums.recorded, 0);
        let (mut taken, mut shed) = (1, 0);
        for number in 2..=10 {
            match sink.offer(line(number)) {
                Ok(()) => taken += 1,
                Err(cause) => {
                    assert_eq!(cause, Cause::SinkError);
                    shed += 1;
                }
            }
        }
        assert_eq!((taken, shed), (5, 5));
        disk.fail(false);
        wait_for(|| sink.healthy());
        sink.close();
        assert_chained(&disk.lines().concat());
        assert_eq!(sink.progress().sums.recorded, taken);
    }

    #[test]
    fn closing_gives_up_on_a_disk_that_stays_full() {
        let disk = Disk::new(true);
        let mut sink = start(&disk, 4, 1 << 20);
        sink.offer(line(1)).unwrap();
        let begin = Instant::now();
        sink.close();
        assert!(begin.elapsed() < LAST_TRIES * 2);
        assert!(disk.lines().concat().is_empty());
        assert_eq!(sink.queued(), 1);
    }

    #[test]
    fn a_checkpoint_is_synced_until_the_disk_agrees() {
        let disk = Disk::new(false);
        disk.0.lock().unwrap().sync_errors = 2;
        let sink = start(&disk, 4, 1 << 20);
        let mut intake = Intake::resume(Fold::new(0, 0), Sums::default(), 0, 0).0;
        let now = Time::now();
        assert!(intake.checkpoint(KernelTotals::default(), 1, now, &mut |c| sink.offer(c)));
        wait_for(|| disk.0.lock().unwrap().syncs == 1);
        wait_for(|| sink.healthy());
        assert_eq!((sink.errors(), disk.lines().concat().len()), (2, 1));
    }

    #[test]
    fn the_end_is_on_the_disk_before_close_returns() {
        let disk = Disk::new(false);
        let mut sink = start(&disk, 4, 1 << 20);
        sink.close();
        assert_eq!(disk.0.lock().unwrap().syncs, 1);
        assert_eq!(sink.offer(line(1)), Err(Cause::SinkError));
    }
}
