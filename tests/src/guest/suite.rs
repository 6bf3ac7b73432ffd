//! Runs every test of every binary as a process of its own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Mutex;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::machine::{self, Outside};
use super::{BINARIES, Message, Outcome, Plan, Test};
use crate::{feature, patience};

/// As much of a failed test's output is told.
const OUTPUT_BYTES: usize = 12 << 10;

/// A test that is to run.
#[derive(Debug)]
struct Planned {
    binary: PathBuf,
    name: String,
}

/// Runs what the plan says and tells every result.
pub fn run(plan: &Plan, outside: &Outside) -> Result<()> {
    let mut queue = Vec::new();
    for binary in binaries()? {
        let mut tests = list(&binary)?;
        tests.retain(|name| is_wanted(plan.filter.as_deref(), &label(&binary), name));
        outside.say(&Message::Planned {
            binary: label(&binary),
            tests: tests.clone(),
        })?;
        queue.extend(tests.into_iter().map(|name| Planned {
            binary: binary.clone(),
            name,
        }));
    }
    let (alone, together): (Vec<_>, Vec<_>) =
        (queue.into_iter()).partition(|planned| is_alone(&planned.name));
    run_all(plan, outside, together, plan.jobs.max(1))?;
    run_all(plan, outside, alone, 1)
}

/// Whether nothing else may run beside a test: it sets the machine's clock.
fn is_alone(name: &str) -> bool {
    name.split("::").any(|module| module == "clock")
}

/// Runs the tests, so many at a time.
fn run_all(plan: &Plan, outside: &Outside, mut queue: Vec<Planned>, jobs: usize) -> Result<()> {
    queue.reverse();
    let queue = Mutex::new(queue);
    let next = || queue.lock().ok()?.pop();
    let work = |job: usize| -> Result<()> {
        while let Some(planned) = next() {
            outside.say(&Message::Test(run_one(plan, &planned, job)?))?;
        }
        Ok(())
    };
    scope(|scope| {
        let jobs: Vec<_> = (0..jobs)
            .map(|job| scope.spawn(move || work(job)))
            .collect();
        jobs.into_iter().try_for_each(|job| {
            job.join()
                .unwrap_or_else(|_| anyhow::bail!("a job panicked"))
        })
    })
}

fn binaries() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(BINARIES).context(BINARIES)?;
    let mut binaries: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    binaries.sort_unstable();
    ensure!(!binaries.is_empty(), "{BINARIES} is empty");
    Ok(binaries)
}

fn label(binary: &Path) -> String {
    binary
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn is_wanted(filter: Option<&str>, binary: &str, name: &str) -> bool {
    filter.is_none_or(|filter| format!("{binary}::{name}").contains(filter))
}

fn list(binary: &Path) -> Result<Vec<String>> {
    let output = machine::command(binary)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| binary.display().to_string())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", binary.display());
    Ok(listed(&String::from_utf8_lossy(&output.stdout)))
}

/// The names in lines such as `a::b: test`.
fn listed(output: &str) -> Vec<String> {
    let tests = output
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    tests.map(str::to_owned).collect()
}

fn run_one(plan: &Plan, planned: &Planned, job: usize) -> Result<Test> {
    let (output, skipped) = (
        PathBuf::from(format!("/run/output-{job}")),
        PathBuf::from(format!("/run/skipped-{job}")),
    );
    let _ = fs::remove_file(&skipped);
    let log = File::create(&output).context("cannot collect output")?;
    let mut command = machine::command(&planned.binary);
    command
        .args(["--exact", &planned.name, "--nocapture"])
        .env(patience::VARIABLE, plan.patience.to_string())
        .env(feature::VARIABLE, &skipped)
        .env("RUST_BACKTRACE", "0")
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // So that a test that hangs can be killed with what it started.
        .process_group(0);
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| planned.binary.display().to_string())?;
    let status = end_within(&mut child, Duration::from_secs(plan.test_seconds))?;
    let output = fs::read(&output).context("output")?;
    let output = String::from_utf8_lossy(&output);
    let outcome = outcome(status, &output, probed(&skipped));
    Ok(Test {
        binary: label(&planned.binary),
        name: planned.name.clone(),
        seconds: started.elapsed().as_secs_f64(),
        output: if matches!(outcome, Outcome::Failed | Outcome::Hung) {
            end_of(&output)
        } else {
            String::new()
        },
        outcome,
    })
}

/// How it ended; `None` if it had to be killed.
fn end_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            let group = Pid::from_raw(i32::try_from(child.id())?);
            killpg(group, Signal::SIGKILL).context("cannot kill a test that hangs")?;
            child.wait()?;
            return Ok(None);
        }
        sleep(Duration::from_millis(20));
    }
}

/// Passed only if the harness says that exactly this one test did.
fn outcome(status: Option<ExitStatus>, output: &str, probed: Option<String>) -> Outcome {
    let Some(status) = status else {
        return Outcome::Hung;
    };
    let says = |what: &str| output.lines().any(|line| line.starts_with(what));
    match (status.success(), probed) {
        (true, Some(probed)) => Outcome::Skipped(probed),
        (true, None) if says("test result: ok. 1 passed; 0 failed; 0 ignored") => Outcome::Passed,
        (true, None) if says("test result: ok. 0 passed; 0 failed; 1 ignored") => Outcome::Ignored,
        _ => Outcome::Failed,
    }
}

fn probed(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let skips = text.lines().map(|line| {
        serde_json::from_str::<feature::Skipped>(line)
            .map_or_else(|_| line.to_owned(), |skipped| skipped.probed)
    });
    Some(skips.collect::<Vec<_>>().join("; "))
}

fn end_of(output: &str) -> String {
    let from = output.len().saturating_sub(OUTPUT_BYTES);
    let from = (from..).find(|at| output.is_char_boundary(*at));
    output[from.unwrap_or_default()..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const OK: &str = "running 1 test\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n";

    #[test]
    fn a_test_passed_only_if_the_harness_says_so() {
        let ended = |code, output| outcome(Some(ExitStatus::from_raw(code)), output, None);
        assert_eq!(ended(0, OK), Outcome::Passed);
        let none = OK.replace("1 passed", "0 passed");
        assert_eq!(
            outcome(Some(ExitStatus::default()), &none, None),
            Outcome::Failed
        );
        assert_eq!(ended(0, ""), Outcome::Failed);
        assert_eq!(ended(1 << 8, OK), Outcome::Failed);
        assert_eq!(ended(9, OK), Outcome::Failed);
        let ignored = "test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured\n";
        assert_eq!(ended(0, ignored), Outcome::Ignored);
        assert_eq!(outcome(None, OK, None), Outcome::Hung);
    }

    #[test]
    fn a_skip_is_one_only_if_the_test_did_not_fail() {
        let ended = |code| outcome(Some(ExitStatus::from_raw(code)), OK, Some("x".to_owned()));
        assert_eq!(ended(0), Outcome::Skipped("x".to_owned()));
        assert_eq!(ended(1 << 8), Outcome::Failed);
    }

    #[test]
    fn names_of_tests_are_read_and_benches_are_not() {
        let output = "a::b: test\nc: test\nd: benchmark\n\n2 tests, 1 benchmark\n";
        assert_eq!(listed(output), ["a::b", "c"]);
    }

    #[test]
    fn a_filter_is_for_the_binary_and_the_name() {
        assert!(is_wanted(None, "attacks", "x"));
        assert!(is_wanted(Some("attacks::"), "attacks", "x"));
        assert!(is_wanted(Some("s::x"), "attacks", "x"));
        assert!(!is_wanted(Some("y"), "attacks", "x"));
    }

    #[test]
    fn what_sets_the_clock_runs_alone() {
        assert!(is_alone("clock::a_clock_that_is_set"));
        assert!(!is_alone("a_clock_that_is_set"));
        assert!(!is_alone("o_clock::x"));
    }

    #[test]
    fn the_end_of_an_output_begins_at_a_character() {
        let text = "ä".repeat(OUTPUT_BYTES);
        assert!(end_of(&text).len() <= OUTPUT_BYTES);
        assert_eq!(end_of("short"), "short");
    }
}
