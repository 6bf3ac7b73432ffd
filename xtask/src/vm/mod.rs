//! The integration tests on the oldest kernels that we promise to work on, each
//! in a virtual machine of its own, at the same time.

mod cpio;
mod initramfs;
mod kernels;
mod machine;
mod outcome;
mod report;
mod suite;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use zt_tests::guest::{Message, Outcome, Plan, Programs};

use crate::step::{Steps, Watch};
use crate::{build, setup, workspace};
use kernels::{Kernel, SERIES};
use machine::{Accelerator, Limits, Machine, More};
use outcome::Run;
pub use outcome::Tally;
use suite::Suite;
pub use suite::TARGET;

/// How much slower than a real machine an emulated one may be.
const PATIENCE: u32 = 5;

const MEMORY_MIB: usize = 1536;

/// A test that runs longer hangs.
const TEST: Duration = Duration::from_secs(240);

/// A kernel that boots under KVM says so within this.
const PROBE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Arguments {
    /// Boot only this kernel: 6.1 or 6.12. Can be given twice.
    #[arg(long = "kernel", value_name = "SERIES", value_parser = SERIES)]
    kernels: Vec<String>,
    /// Run only the tests whose BINARY::NAME contains this.
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
    /// Use /dev/kvm if these kernels boot with it; without this they are emulated.
    #[arg(long)]
    kvm: bool,
    /// Processors of each machine; it runs as many tests at a time.
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    cpus: usize,
    /// Give a machine up after this many minutes.
    #[arg(long, default_value_t = 20, value_name = "MINUTES")]
    limit: u64,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            kernels: Vec::new(),
            test: None,
            kvm: false,
            cpus: 2,
            limit: 20,
        }
    }
}

/// Success only if on every kernel tests ran and all of them passed or were
/// skipped for a reason that was probed.
pub fn run(steps: &Steps, arguments: &Arguments) -> ExitCode {
    let result = setup::run(steps).and_then(|tools| {
        let object = build::kernel_programs(steps, &tools, build::Warnings::Allowed)?;
        everything(steps, arguments, &object)
    });
    match result {
        Ok(tally) if tally.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the suite on the kernels, prints what came of it, and sums it up.
pub fn everything(steps: &Steps, arguments: &Arguments, object: &Path) -> Result<Tally> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machines are of x86_64, and this machine is not");
    }
    setup::for_machines(steps)?;
    let series = match &arguments.kernels[..] {
        [] => SERIES.map(str::to_owned).to_vec(),
        some => some.to_vec(),
    };
    let kernels = kernels::newest(steps, &series)?;
    let suite = suite::build(steps, object)?;
    let title = format!("Integration tests on Linux {}", series.join(" and "));
    let runs = steps.watch(&title, |watch| boot_all(watch, arguments, &kernels, &suite))?;
    report::print(&runs, programs_here(steps, object)?.as_ref());
    let mut sum = Tally::default();
    for tally in runs.iter().map(Run::tally) {
        sum.passed += tally.passed;
        sum.failed += tally.failed;
        sum.skipped += tally.skipped;
    }
    Ok(sum)
}

/// Every kernel in a thread of its own.
fn boot_all(
    watch: &Watch<'_>,
    arguments: &Arguments,
    kernels: &[Kernel],
    suite: &Suite,
) -> Result<Vec<Run>> {
    thread::scope(|scope| {
        let threads: Vec<_> = kernels
            .iter()
            .map(|kernel| scope.spawn(|| boot(watch, arguments, kernel, suite)))
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

fn boot(watch: &Watch<'_>, arguments: &Arguments, kernel: &Kernel, suite: &Suite) -> Result<Run> {
    let directory = workspace::root()
        .join("target/machines")
        .join(&kernel.series);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let accelerator = accelerator(watch, arguments, kernel, suite, &directory)?;
    let plan = Plan {
        filter: arguments.test.clone(),
        jobs: arguments.cpus,
        test_seconds: TEST.as_secs(),
        patience: match accelerator {
            Accelerator::Emulation => PATIENCE,
            Accelerator::Kvm => 1,
        },
    };
    let machine = assemble(kernel, suite, &plan, accelerator, &directory)?;
    let limits = Limits {
        // A test may hang; then the machine says so, a little later.
        silence: TEST + Duration::from_secs(60),
        whole: Duration::from_secs(arguments.limit * 60),
    };
    let mut log = File::create(directory.join("messages.jsonl"))?;
    let mut run = Run {
        series: kernel.series.clone(),
        version: kernel.version.clone(),
        ..Run::default()
    };
    let started = Instant::now();
    let end = machine.run(limits, |message| {
        tell(watch, &kernel.series, &message);
        if let Ok(line) = serde_json::to_string(&message) {
            // For a developer's eyes; nothing depends on it.
            let _ = writeln!(log, "{line}");
        }
        run.hear(message);
        More::Yes
    })?;
    run.seconds = started.elapsed().as_secs_f64();
    run.conclude(&end, &machine.last_words());
    fs::remove_file(&machine.initramfs)?;
    Ok(run)
}

/// Tells what somebody who waits wants to know.
fn tell(watch: &Watch<'_>, series: &str, message: &Message) {
    match message {
        Message::Booted { release } => watch.say(&format!("{series}: {release} runs")),
        Message::Programs(Programs::Rejected(why)) => {
            watch.say(&format!("{series}: the kernel refuses the programs: {why}"));
        }
        Message::Test(test) if matches!(test.outcome, Outcome::Failed | Outcome::Hung) => {
            let (binary, name) = (&test.binary, &test.name);
            watch.say(&format!("{series}: FAILED {binary}::{name}"));
        }
        Message::Problem(problem) => watch.say(&format!("{series}: {problem}")),
        _ => {}
    }
}

fn assemble(
    kernel: &Kernel,
    suite: &Suite,
    plan: &Plan,
    accelerator: Accelerator,
    directory: &Path,
) -> Result<Machine> {
    let initramfs: PathBuf = directory.join("initramfs.cpio");
    initramfs::write(&initramfs, kernel, suite, plan)?;
    Ok(Machine {
        image: kernel.image.clone(),
        initramfs,
        console: directory.join("console.log"),
        accelerator,
        cpus: plan.jobs,
        memory_mib: MEMORY_MIB,
    })
}

/// `/dev/kvm` may be there and a kernel hang under it: only one that boots is
/// taken for good.
fn accelerator(
    watch: &Watch<'_>,
    arguments: &Arguments,
    kernel: &Kernel,
    suite: &Suite,
    directory: &Path,
) -> Result<Accelerator> {
    if !arguments.kvm {
        return Ok(Accelerator::Emulation);
    }
    let plan = Plan {
        filter: None,
        jobs: arguments.cpus,
        test_seconds: 1,
        patience: 1,
    };
    let without_tests = Suite {
        tests: Vec::new(),
        programs: vec![suite.program(initramfs::FIRST)?.clone()],
    };
    let machine = assemble(kernel, &without_tests, &plan, Accelerator::Kvm, directory)?;
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
    watch.say(&format!(
        "{}: does not boot with KVM; emulated",
        kernel.series
    ));
    Ok(Accelerator::Emulation)
}

/// The release of the running kernel, and what it makes of the programs. Nothing
/// without root.
fn programs_here(steps: &Steps, object: &Path) -> Result<Option<(String, Programs)>> {
    if !workspace::is_root() {
        steps.note("not root: without the instruction counts of this kernel");
        return Ok(None);
    }
    let mut build = workspace::cargo("build");
    build
        .args(["--package=zt-tests", "--bin", initramfs::FIRST])
        .env(build::OBJECT_VARIABLE, object);
    steps.run("Build what loads the programs here", &mut build)?;
    let program = workspace::root()
        .join("target/debug")
        .join(initramfs::FIRST);
    let output = Command::new(program).arg("programs").output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", initramfs::FIRST);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let programs = serde_json::from_slice(&output.stdout)?;
    if let Programs::Rejected(why) = &programs {
        bail!("this kernel refuses the programs: {why}");
    }
    Ok(Some((release.trim().to_owned(), programs)))
}
