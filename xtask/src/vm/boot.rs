//! Boots kernels with the suite, and listens.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use zt_tests::guest::{Message, Outcome, Plan, Programs, Share};

use super::initramfs;
use super::kernels::Kernel;
use super::machine::{Accelerator, Limits, Machine, More};
use super::outcome::Run;
use super::suite::Suite;
use crate::step::Watch;
use crate::workspace;

/// How much slower than a real machine an emulated one may be.
pub const PATIENCE: u32 = 5;

const MEMORY_MIB: usize = 1536;

/// Binaries that run at a time: while the last test of one waits, the other works.
const BINARIES: usize = 2;

/// Tests of each that run at a time, besides one for each processor. Processors are
/// what is scarce, and with more tests each takes longer than it is willing to wait.
const THREADS: usize = 1;

/// A test that runs longer hangs.
const TEST: Duration = Duration::from_secs(600);

/// A kernel that boots under KVM says so within this.
const PROBE: Duration = Duration::from_secs(30);

/// The processors of each of several machines: an emulator with more than it gets
/// from us spends them waiting for itself.
pub fn share(machines: usize) -> usize {
    let all = thread::available_parallelism().map_or(1, usize::from);
    (all / machines.max(1)).clamp(1, 4)
}

/// What the machines have in common.
pub struct Boots<'a> {
    pub watch: &'a Watch<'a>,
    pub suite: &'a Suite,
    /// See [`Plan::filter`].
    pub filter: &'a [String],
    /// Of these each machine gets some: see [`Share`].
    pub shared: &'a [String],
    /// Whether to try KVM.
    pub kvm: bool,
    pub cpus: usize,
    /// For a whole machine.
    pub limit: Duration,
}

impl Boots<'_> {
    /// Every kernel in a machine of its own, all at the same time.
    pub fn all(&self, kernels: &[Kernel]) -> Result<Vec<Run>> {
        thread::scope(|scope| {
            let threads: Vec<_> = kernels
                .iter()
                .enumerate()
                .map(|(number, kernel)| {
                    let share = Share {
                        tests: self.shared.to_vec(),
                        machine: number,
                        machines: kernels.len(),
                    };
                    scope.spawn(|| self.one(kernel, share))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| match thread.join() {
                    Ok(run) => run,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        })
    }

    fn one(&self, kernel: &Kernel, share: Share) -> Result<Run> {
        let directory = workspace::root()
            .join("target/machines")
            .join(&kernel.series);
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let accelerator = self.accelerator(kernel, &directory)?;
        let plan = self.plan(accelerator, share);
        initramfs::write(&initramfs(&directory), kernel, self.suite, &plan)?;
        let machine = self.machine(kernel, accelerator, &directory);
        let run = self.listen(&machine, kernel, &directory)?;
        // Large, and of no use to anybody.
        fs::remove_file(&machine.initramfs)?;
        Ok(run)
    }

    fn plan(&self, accelerator: Accelerator, share: Share) -> Plan {
        Plan {
            filter: self.filter.to_vec(),
            share,
            binaries: BINARIES,
            threads: self.cpus + THREADS,
            test_seconds: TEST.as_secs(),
            patience: match accelerator {
                Accelerator::Emulation => PATIENCE,
                Accelerator::Kvm => 1,
            },
        }
    }

    fn machine(&self, kernel: &Kernel, accelerator: Accelerator, directory: &Path) -> Machine {
        Machine {
            image: kernel.image.clone(),
            initramfs: initramfs(directory),
            console: directory.join("console.log"),
            accelerator,
            cpus: self.cpus,
            memory_mib: MEMORY_MIB,
        }
    }

    fn listen(&self, machine: &Machine, kernel: &Kernel, directory: &Path) -> Result<Run> {
        let limits = Limits {
            // A test may hang; then the machine says so, a little later.
            silence: TEST + Duration::from_secs(60),
            whole: self.limit,
        };
        let mut log = File::create(directory.join("messages.jsonl"))?;
        let mut run = Run {
            series: kernel.series.clone(),
            version: kernel.version.clone(),
            ..Run::default()
        };
        let started = Instant::now();
        let end = machine.run(limits, |message| {
            self.tell(&kernel.series, &message);
            if let Ok(line) = serde_json::to_string(&message) {
                // For a developer's eyes; nothing depends on it.
                let _ = writeln!(log, "{line}");
            }
            run.hear(message);
            More::Yes
        })?;
        run.seconds = started.elapsed().as_secs_f64();
        run.conclude(&end, &machine.last_words());
        Ok(run)
    }

    /// Tells what somebody who waits wants to know.
    fn tell(&self, series: &str, message: &Message) {
        let say = |text: &str| self.watch.say(&format!("{series}: {text}"));
        match message {
            Message::Booted { release } => say(&format!("{release} runs")),
            Message::Programs(Programs::Rejected(why)) => {
                say(&format!("the kernel refuses the programs: {why}"));
            }
            Message::Test(test) if matches!(test.outcome, Outcome::Failed | Outcome::Hung) => {
                say(&format!("FAILED {}::{}", test.binary, test.name));
            }
            Message::Problem(problem) => say(problem),
            _ => {}
        }
    }

    /// `/dev/kvm` may be there and a kernel hang under it: only one that boots is
    /// taken for good.
    fn accelerator(&self, kernel: &Kernel, directory: &Path) -> Result<Accelerator> {
        if !self.kvm {
            return Ok(Accelerator::Emulation);
        }
        let without_tests = Suite {
            tests: Vec::new(),
            programs: vec![self.suite.program(initramfs::FIRST)?.clone()],
        };
        let plan = self.plan(Accelerator::Kvm, Share::default());
        initramfs::write(&initramfs(directory), kernel, &without_tests, &plan)?;
        let machine = self.machine(kernel, Accelerator::Kvm, directory);
        let limits = Limits {
            silence: PROBE,
            whole: PROBE,
        };
        let mut booted = false;
        machine.run(limits, |message| {
            booted = matches!(message, Message::Booted { .. });
            More::No
        })?;
        if booted {
            return Ok(Accelerator::Kvm);
        }
        let series = &kernel.series;
        self.watch
            .say(&format!("{series}: does not boot with KVM; emulated"));
        Ok(Accelerator::Emulation)
    }
}

fn initramfs(directory: &Path) -> PathBuf {
    directory.join("initramfs.cpio")
}
