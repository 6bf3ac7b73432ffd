//! The integration tests on the oldest kernels that we promise to work on, each
//! in a virtual machine of its own, at the same time.

mod boot;
mod cpio;
pub mod initramfs;
pub mod kernels;
pub mod machine;
mod outcome;
mod report;
pub mod suite;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use zt_tests::guest::Programs;

use crate::step::Steps;
use crate::{build, census, nodes, setup, workspace};
use boot::Boots;
use kernels::SERIES;
use outcome::Run;
pub use outcome::Tally;

/// Minutes; without a load of its own a machine with two processors needs a third.
const LIMIT: u64 = 60;

/// What runs on each kernel with all other tests: what is made of the kernel's own
/// parts, which differ (its verifier sees all programs anyway).
const ON_EACH: [&str; 7] = [
    "altered::",
    "default_drop::",
    "interface_programs::",
    "interfaces::",
    "layouts::",
    "nested::",
    "resets::",
];

/// What runs on one of them: the programs decide the same everywhere of what the
/// kernel shows them, and what it shows is drawn from both.
/// The bypass suite, the tests of peers and those that start agents take half an
/// hour more: each agent has the kernel verify the programs anew, an emulated
/// machine's three seconds.
const ON_ONE: [&str; 8] = [
    "attacks::",
    "differential::",
    "enforcement::",
    // The machines' clocks are theirs to set.
    "faults::clock::",
    "faults::numbers::",
    "frames::",
    "reasons::",
    "sandbox::",
];

/// Binaries that have modules of such names, too.
const NOT_SELECTED: [&str; 3] = ["agent", "bypass", "tampering"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Boot only this kernel: 6.1 or 6.12. Can be given twice.
    #[arg(long = "kernel", value_name = "SERIES", value_parser = SERIES)]
    kernels: Vec<String>,
    /// Run only the tests whose BINARY::NAME contains this. Can be given twice.
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    #[arg(skip)]
    shared: Vec<String>,
    /// Leave this binary out. Can be given several times.
    #[arg(long, value_name = "BINARY")]
    without: Vec<String>,
    /// Use /dev/kvm if these kernels boot with it; without this they are emulated.
    #[arg(long)]
    kvm: bool,
    /// Processors of each machine [default: this machine's, shared out].
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<usize>,
    /// Give a machine up after this many minutes.
    #[arg(long, default_value_t = LIMIT, value_name = "MINUTES")]
    limit: u64,
    /// Instead of the tests: two nodes with a real kubelet, and the manifests of
    /// deploy/ applied to them.
    #[arg(long)]
    kubernetes: bool,
    /// With --kubernetes: leave the nodes running in the end, to look at them.
    #[arg(long, requires = "kubernetes")]
    keep: bool,
    /// With --kubernetes: show only these, with what they need before.
    #[arg(
        long,
        requires = "kubernetes",
        value_name = "ACT",
        value_delimiter = ',',
        value_parser = clap::builder::PossibleValuesParser::new(nodes::ACTS)
    )]
    only: Vec<String>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            kernels: Vec::new(),
            tests: Vec::new(),
            shared: Vec::new(),
            without: Vec::new(),
            kvm: false,
            cpus: None,
            limit: LIMIT,
            kubernetes: false,
            keep: false,
            only: Vec::new(),
        }
    }
}

impl Arguments {
    /// What runs with all other tests.
    pub fn selection() -> Self {
        Self {
            tests: ON_EACH.map(str::to_owned).to_vec(),
            shared: ON_ONE.map(str::to_owned).to_vec(),
            without: NOT_SELECTED.map(str::to_owned).to_vec(),
            ..Self::default()
        }
    }
}

/// Success only if on every kernel a test passed, every part of the filter is one
/// of a test's name, and all others passed or were skipped for a reason that was
/// probed.
pub fn run(steps: &Steps, arguments: &Arguments) -> ExitCode {
    if arguments.kubernetes {
        return nodes(steps, arguments.keep, &arguments.only);
    }
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

fn nodes(steps: &Steps, keep: bool, only: &[String]) -> ExitCode {
    match nodes::run(steps, keep, only) {
        Ok(()) => ExitCode::SUCCESS,
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
    let mut suite = suite::build(steps, object)?;
    for binary in &arguments.without {
        suite.leave_out(binary)?;
        steps.note(&format!("left out of the machines: {binary}"));
    }
    let cpus = arguments.cpus.unwrap_or_else(|| boot::share(kernels.len()));
    let title = format!("Integration tests on Linux {}", series.join(" and "));
    let mut runs = steps.watch(&title, |watch| {
        let boots = Boots {
            watch,
            suite: &suite,
            filter: &arguments.tests,
            shared: &arguments.shared,
            kvm: arguments.kvm,
            cpus,
            limit: Duration::from_secs(arguments.limit * 60),
        };
        boots.all(&kernels)
    })?;
    let here = programs_here(steps, object)?;
    let mut sum = Tally::default();
    // What went wrong there must not hide what the machines said.
    let complaint = compare(&mut runs, here.as_ref(), object)
        .unwrap_or_else(|error| Some(format!("{error:#}")));
    if let Some(complaint) = complaint {
        eprintln!("error: {complaint}");
        sum.failed += 1;
    }
    report::print(&runs, here.as_ref());
    for tally in runs.iter().map(Run::tally) {
        sum.passed += tally.passed;
        sum.failed += tally.failed;
        sum.skipped += tally.skipped;
    }
    Ok(sum)
}

/// Compares what the verifiers walked with the last commit: each machine's problem,
/// and of the running kernel the result.
fn compare(
    runs: &mut [Run],
    here: Option<&(String, Programs)>,
    object: &Path,
) -> Result<Option<String>> {
    let mut kernels = BTreeMap::new();
    let mut add = |series: &str, programs: &Programs| {
        if let Programs::Accepted(counts) = programs {
            kernels.insert(series.to_owned(), counts.clone());
        }
    };
    let here = here.map(|(release, programs)| (census::verified::series(release), programs));
    if let Some((series, programs)) = &here {
        add(series, programs);
    }
    for run in runs.iter() {
        if let Some(programs) = &run.programs {
            add(&run.series, programs);
        }
    }
    let mut bad = census::verified(object, kernels)?;
    for run in runs {
        run.problems.extend(bad.remove(&run.series));
    }
    Ok(here.and_then(|(series, _)| bad.remove(&series)))
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
