//! One virtual machine: started, listened to, and ended whatever happens in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use zt_tests::guest::Message;
use zt_tests::guest::lines::lines;

/// Who runs the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Emulation,
    Kvm,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Machine {
    pub image: PathBuf,
    pub initramfs: PathBuf,
    /// Where its console is written to.
    pub console: PathBuf,
    pub accelerator: Accelerator,
    pub cpus: usize,
    pub memory_mib: usize,
}

/// When a machine is given up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Without any message.
    pub silence: Duration,
    pub whole: Duration,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It said that it was done.
    Done,
    /// Whoever listened had heard enough.
    Stopped,
    /// It ended by itself without saying that it was done: a panic, mostly.
    Died,
    /// It was given up.
    Hung(String),
}

/// Whether the listener wants to hear more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    Yes,
    No,
}

impl Machine {
    /// Runs it to its end; `hear` gets every message as it comes.
    pub fn run(&self, limits: Limits, mut hear: impl FnMut(Message) -> More) -> Result<End> {
        let mut running = Running(self.start()?);
        let lines = lines(&mut running.0)?;
        let started = Instant::now();
        loop {
            let left = limits.whole.saturating_sub(started.elapsed());
            match lines.recv_timeout(left.min(limits.silence)) {
                Ok(line) => {
                    // Firmware may write to the port before the kernel runs.
                    let Ok(message) = serde_json::from_str(&line) else {
                        continue;
                    };
                    if message == Message::Done {
                        return Ok(End::Done);
                    }
                    if hear(message) == More::No {
                        return Ok(End::Stopped);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Died),
                Err(RecvTimeoutError::Timeout) => {
                    let why = if left <= limits.silence {
                        format!("not done after {} s", limits.whole.as_secs())
                    } else {
                        format!("silent for {} s", limits.silence.as_secs())
                    };
                    return Ok(End::Hung(why));
                }
            }
        }
    }

    fn start(&self) -> Result<Child> {
        let log = self.console.with_extension("qemu.log");
        let errors = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        // SAFETY: the closure runs between fork and exec; it makes one system call
        // and does not allocate.
        unsafe { command.pre_exec(end_with_us) };
        command
            .spawn()
            .context("cannot start qemu-system-x86_64: cargo xtask setup installs it")
    }

    fn command(&self) -> Command {
        let mut command = self.emulator(KERNEL_ARGUMENTS);
        command
            .arg("-no-reboot")
            // The second port is our standard output.
            .args(["-chardev", "stdio,id=outside,signal=off"])
            .args(["-serial", "chardev:outside"]);
        command
    }

    /// What every machine has: a kernel and its first file system, and a console
    /// that is only read.
    pub fn emulator(&self, kernel_arguments: &str) -> Command {
        let (accelerator, cpu) = match self.accelerator {
            // Five levels of page tables cost an emulator, and give nothing here.
            // Where a kernel sees ERMS it copies with string instructions, which
            // are emulated byte by byte: the verifier then takes twice as long.
            Accelerator::Emulation => ("tcg,thread=multi", "max,la57=off,erms=off"),
            Accelerator::Kvm => ("kvm", "host"),
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-monitor", "none", "-nic", "none"])
            .args(["-accel", accelerator, "-cpu", cpu])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &format!("{}M", self.memory_mib)])
            .arg("-kernel")
            .arg(&self.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", kernel_arguments])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()));
        command
    }

    /// The end of what the kernel said.
    pub fn last_words(&self) -> String {
        last_lines(&self.console, 30)
    }
}

/// Whatever is bad enough for an "oops" ends the machine at once. Mitigations
/// are for secrets that it does not have, and cost an emulator much. The check
/// of the timer counts ticks while it loops, and panics where the emulator does
/// not get its share of a processor in time.
pub const KERNEL_ARGUMENTS: &str = "console=ttyS0 loglevel=4 panic=-1 oops=panic no_timer_check \
    mitigations=off nokaslr apparmor=0 selinux=0 audit=0";

/// For between fork and exec: also when this program is killed the other one does not
/// run on.
pub fn end_with_us() -> io::Result<()> {
    Ok(set_pdeathsig(Signal::SIGKILL)?)
}

fn last_lines(file: &Path, count: usize) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already, and then nothing is left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
