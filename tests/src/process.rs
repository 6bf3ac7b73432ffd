//! Processes inside a cgroup and a network namespace.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::patience;

/// A running process, killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
}

/// Starts a command as a member of the cgroup, inside the namespace (or in ours).
/// Its standard output is collected line by line; its errors go where ours go.
pub fn start(command: &mut Command, cgroup: &Cgroup, netns: Option<&Netns>) -> Result<Running> {
    let procs = OpenOptions::new()
        .write(true)
        .open(cgroup.procs())
        .with_context(|| format!("cannot open {}", cgroup.procs().display()))?;
    let netns = netns.map(|netns| netns.file().try_clone()).transpose()?;
    start_in(command, Some(procs), netns)
}

/// As [`start`], in the cgroup that we are in: outside every sandbox.
pub fn start_outside(command: &mut Command, netns: &Netns) -> Result<Running> {
    start_in(command, None, Some(netns.file().try_clone()?))
}

fn start_in(command: &mut Command, procs: Option<File>, netns: Option<File>) -> Result<Running> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: the closure runs between fork and exec; it makes two system calls
    // on open files and does not allocate.
    unsafe { command.pre_exec(move || move_in(procs.as_ref(), netns.as_ref())) };
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let output = Arc::new(Output::default());
    if let Some(stdout) = child.stdout.take() {
        let output = Arc::clone(&output);
        thread::spawn(move || output.collect(stdout));
    }
    let stdin = child.stdin.take();
    Ok(Running {
        child,
        stdin,
        output,
    })
}

/// The cgroup first: a socket belongs to the cgroup in which it was made.
fn move_in(procs: Option<&File>, netns: Option<&File>) -> io::Result<()> {
    if let Some(mut procs) = procs {
        // 0 stands for the process that writes.
        procs.write_all(b"0")?;
    }
    match netns {
        Some(netns) => Ok(setns(netns, CloneFlags::CLONE_NEWNET)?),
        None => Ok(()),
    }
}

/// A program that cargo put beside our own, or above it where that is a test.
pub fn built(name: &str) -> Result<Option<PathBuf>> {
    let own = env::current_exe().context("where are we?")?;
    let directories = own.ancestors().skip(1).take(2);
    let mut candidates = directories.map(|directory| directory.join(name));
    Ok(candidates.find(|path| path.is_file()))
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The lines of standard output so far.
    pub fn lines(&self) -> Vec<String> {
        self.output.lock().lines.clone()
    }

    /// Waits until a line fits and gives the first such. Limits here are for a
    /// machine of the usual speed ([`patience`]).
    pub fn wait_for(&self, limit: Duration, fits: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_after(0, limit, fits)
    }

    /// Like [`Self::wait_for`], without the first `seen` lines.
    pub fn wait_after(
        &self,
        seen: usize,
        limit: Duration,
        fits: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + patience::scaled(limit);
        let mut collected = self.output.lock();
        loop {
            let found = collected.lines.iter().skip(seen).find(|line| fits(line));
            if let Some(line) = found {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if collected.ended || left.is_zero() {
                let how = if collected.ended {
                    "ended"
                } else {
                    "is silent"
                };
                bail!("the process {how}; it wrote: {:?}", collected.lines);
            }
            collected = self.output.wait(collected, left);
        }
    }

    /// Writes a line to its standard input.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{line}").context("cannot write to the process")
    }

    /// Closes its input, waits for its end and gives that and its lines.
    pub fn finish(&mut self, limit: Duration) -> Result<(ExitStatus, Vec<String>)> {
        self.stdin = None;
        let deadline = Instant::now() + patience::scaled(limit);
        let mut collected = self.output.lock();
        while !collected.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the process does not end; it wrote: {:?}", collected.lines);
            }
            collected = self.output.wait(collected, left);
        }
        let lines = collected.lines.clone();
        drop(collected);
        Ok((self.child.wait()?, lines))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already, and then nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a thread collects from the process.
#[derive(Debug, Default)]
struct Output {
    collected: Mutex<Collected>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Collected {
    lines: Vec<String>,
    ended: bool,
}

impl Output {
    fn collect(&self, stdout: impl io::Read) {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            self.lock().lines.push(line);
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// A panic elsewhere leaves the list as good as it was.
    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.collected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        guard: MutexGuard<'a, Collected>,
        limit: Duration,
    ) -> MutexGuard<'a, Collected> {
        let waited = self.changed.wait_timeout(guard, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
