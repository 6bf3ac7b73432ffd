//! Every check and every test: the integration tests against this kernel, and
//! last against others in virtual machines.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context, Result, bail};
use zt_tests::feature::{self, Skipped};

use crate::step::{Finished, Steps};
use crate::suites::{self, Names};
use crate::{build, census, check, dist, setup, vm, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Run only the tests whose name contains this, on this kernel, and no other
    /// checks.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Leave out the tests that need root, and say so.
    #[arg(long)]
    no_root: bool,
    /// Leave out the virtual machines, and say so.
    #[arg(long)]
    no_vm: bool,
}

/// The last line that is printed is `N passed, N failed`, however it ends; what
/// ends it early counts as one failure.
pub fn run(steps: &Steps, arguments: &Arguments) -> ExitCode {
    let mut tally = Tally::default();
    if let Err(error) = everything(steps, arguments, &mut tally) {
        eprintln!("error: {error:#}");
        tally.failed += 1;
    }
    if tally.passed == 0 {
        eprintln!("error: no test ran");
    }
    println!("{tally}");
    tally.exit_code()
}

fn everything(steps: &Steps, arguments: &Arguments, tally: &mut Tally) -> Result<()> {
    if !arguments.no_root && !workspace::is_root() {
        bail!(
            "the integration tests load kernel programs and make cgroups and namespaces: \
             run this as root, or with --no-root to leave them out"
        );
    }
    let background = setup::in_background(steps);
    let tools = setup::run(steps)?;
    if arguments.filter.is_none() {
        formatting(steps)?;
        check::dependencies(steps)?;
    }
    let object = build::kernel_programs(steps, &tools, build::Warnings::Denied)?;
    if arguments.filter.is_none() {
        census::check(steps, &object)?;
    }
    build::floor_programs(steps, &tools, build::Warnings::Denied)?;
    if arguments.filter.is_none() {
        lints(steps, &object)?;
    }
    setup::for_static(steps)?;
    build_tests(steps, &object)?;
    let (kubernetes, manifests) = background.wait()?;
    let cargo = |subcommand: &str| {
        let mut command = suites::cargo(subcommand, &object);
        manifests.hand_over(&mut command);
        if let Some(kubernetes) = &kubernetes {
            kubernetes.hand_over(&mut command);
        }
        command
    };
    tests(steps, arguments, cargo, tally)?;
    if arguments.filter.is_some() {
        return Ok(());
    }
    if arguments.no_vm {
        eprintln!("NOT RUN: integration tests in virtual machines, because of --no-vm");
        return Ok(());
    }
    let in_machines = vm::everything(steps, &vm::Arguments::selection(), &object)?;
    tally.passed += in_machines.passed;
    tally.failed += in_machines.failed;
    dist::image::try_with(steps, &suites::program("zt-agent"))
}

fn formatting(steps: &Steps) -> Result<()> {
    let mut command = workspace::cargo("fmt");
    command.args(["--all", "--check"]);
    steps.run("Check the formatting", &mut command)?;
    Ok(())
}

fn lints(steps: &Steps, object: &Path) -> Result<()> {
    let mut clippy = workspace::cargo("clippy");
    clippy.env(build::OBJECT_VARIABLE, object);
    clippy.args(suites::SELECTION).arg("--all-targets");
    clippy.args(["--", "--deny", "warnings"]);
    steps.run("Check the lints", &mut clippy)?;
    Ok(())
}

/// Tests that are run together.
struct Suite {
    title: &'static str,
    /// How cargo is told which they are.
    targets: Vec<String>,
    needs_root: bool,
}

fn suites() -> Result<[Suite; 2]> {
    let names = Names::ask()?;
    let inside = ["--lib", "--bins"].map(str::to_owned).into_iter();
    Ok([
        Suite {
            title: "Unit and property tests",
            targets: inside.chain(suites::tests(&names.others)).collect(),
            needs_root: false,
        },
        Suite {
            title: "Integration tests against this kernel",
            targets: suites::tests(&names.integration).collect(),
            needs_root: true,
        },
    ])
}

fn build_tests(steps: &Steps, object: &Path) -> Result<()> {
    let mut build = suites::cargo("build", object);
    // The tests of the running agent look for it beside themselves.
    build
        .args(suites::SELECTION)
        .args(["--lib", "--bins", "--tests"]);
    steps.run("Build the tests and the agent", &mut build)?;
    Ok(())
}

fn tests(
    steps: &Steps,
    arguments: &Arguments,
    cargo: impl Fn(&str) -> Command,
    tally: &mut Tally,
) -> Result<()> {
    for suite in suites()? {
        let title = suite.title;
        if arguments.no_root && suite.needs_root {
            eprintln!("NOT RUN: {title}, because of --no-root");
            continue;
        }
        let mut command = cargo("test");
        command.args(suites::SELECTION).args(&suite.targets);
        command.args(["--no-fail-fast", "--"]);
        command.args(&arguments.filter);
        if suite.needs_root {
            command.env("RUST_TEST_THREADS", threads().to_string());
        }
        let skipped = forget_skipped()?;
        command.env(feature::VARIABLE, &skipped);
        let finished = steps.attempt(title, &mut command)?;
        tell_skipped(steps, &skipped)?;
        let mut sum = Tally::of(&finished);
        if arguments.filter.is_none() && sum.must_not_be_empty() {
            eprintln!("error: {title}: no test ran");
        }
        steps.note(&sum.to_string());
        tally.add(&sum);
    }
    if arguments.filter.is_none() && !arguments.no_root {
        tally.add(&demo(steps)?);
    }
    Ok(())
}

/// Integration tests at a time: half of the time each waits for what must not come.
fn threads() -> usize {
    2 * thread::available_parallelism().map_or(1, usize::from)
}

/// The file to which tests write that they were skipped, without those of before.
fn forget_skipped() -> Result<PathBuf> {
    let path = workspace::root().join("target/skipped.jsonl");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(path),
    }
}

/// For cargo a test that was skipped passed.
fn tell_skipped(steps: &Steps, path: &Path) -> Result<()> {
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        let Skipped { test, probed } = serde_json::from_str(line)?;
        steps.note(&format!("skipped {test}: {probed}"));
    }
    Ok(())
}

/// The demo with the agent that was just tested: its checks are one test.
fn demo(steps: &Steps) -> Result<Tally> {
    let mut demo = Command::new(std::env::current_exe()?);
    demo.current_dir(workspace::root()).arg("demo");
    demo.arg("--agent");
    demo.arg(suites::program("zt-agent"));
    let finished = steps.attempt("The demo", &mut demo)?;
    Ok(Tally {
        passed: u64::from(finished.success),
        failed: u64::from(!finished.success),
    })
}

/// The sum over test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Sums up every `test result:` line of a `cargo test`. A run that ended badly
    /// without a failed test (a crash) is one failure.
    fn of(finished: &Finished) -> Self {
        let mut tally = Self::default();
        let results = finished
            .output
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("test result:"));
        for result in results {
            tally.passed += count(result, "passed");
            tally.failed += count(result, "failed");
        }
        if tally.failed == 0 && !finished.success {
            tally.failed = 1;
        }
        tally
    }

    /// That nothing ran is one failure; whether it is so.
    fn must_not_be_empty(&mut self) -> bool {
        let is_empty = *self == Self::default();
        self.failed += u64::from(is_empty);
        is_empty
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Success only if tests ran and all of them passed.
    fn exit_code(&self) -> ExitCode {
        if self.passed > 0 && self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// The number before `word` in ` ok. 3 passed; 0 failed; …`.
fn count(result: &str, word: &str) -> u64 {
    let words: Vec<&str> = result.split([' ', ';', '.']).collect();
    let pair = words.windows(2).find(|pair| pair[1] == word);
    pair.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str, success: bool) -> Tally {
        Tally::of(&Finished {
            success,
            output: output.to_owned(),
        })
    }

    #[test]
    fn results_of_several_binaries_are_summed() {
        let output = "running 5 tests\n\
            test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
            test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured\n";
        let expected = Tally {
            passed: 17,
            failed: 3,
        };
        assert_eq!(tally(output, false), expected);
        assert_eq!(expected.exit_code(), ExitCode::FAILURE);
    }

    #[test]
    fn a_crash_is_a_failure_although_no_test_said_so() {
        let tally = tally("test result: ok. 5 passed; 0 failed;\n", false);
        assert_eq!(tally.failed, 1);
    }

    #[test]
    fn a_suite_of_which_nothing_ran_is_a_failure_beside_others_that_passed() {
        let mut empty = tally("test result: ok. 0 passed; 0 failed; 0 ignored;", true);
        assert!(empty.must_not_be_empty());
        assert_eq!(empty.failed, 1);
        let mut one = tally("test result: ok. 1 passed; 0 failed;", true);
        assert!(!one.must_not_be_empty());
        assert_eq!(one.failed, 0);
    }

    #[test]
    fn no_test_at_all_is_no_success() {
        assert_eq!(tally("", true).exit_code(), ExitCode::FAILURE);
        let one = tally("test result: ok. 1 passed; 0 failed;", true);
        assert_eq!(one.exit_code(), ExitCode::SUCCESS);
    }
}
