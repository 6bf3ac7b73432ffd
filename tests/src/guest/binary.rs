//! Runs the tests of a binary in one process; after a test that hangs or ends
//! the process, the rest of them in another.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::harness::{self, Verdict};
use super::lines::lines;
use super::machine;
use super::progress::Progress;
use super::{Message, Outcome, Plan, Test};
use crate::feature::{self, Skipped};
use crate::patience;

/// As much of a failed test's output is told.
const OUTPUT_BYTES: usize = 12 << 10;

/// As many lines after the last result are kept: those of the failures.
const LINES: usize = 20_000;

/// How often a process is looked after that says nothing.
const LOOK: Duration = Duration::from_millis(100);

/// How long the last lines of a process that ended may take.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Where a binary's processes write what is none of the harness's.
#[derive(Clone, Debug)]
pub struct Files {
    skipped: PathBuf,
    errors: PathBuf,
}

impl Files {
    /// Those of the `number`th of the binaries that run at the same time.
    #[must_use]
    pub fn of(directory: &Path, number: usize) -> Self {
        Self {
            skipped: directory.join(format!("skipped-{number}")),
            errors: directory.join(format!("errors-{number}")),
        }
    }
}

/// A test binary, and what is told of it.
pub struct Binary<'a> {
    pub path: &'a Path,
    pub plan: &'a Plan,
    pub files: Files,
    pub say: &'a dyn Fn(Message) -> Result<()>,
}

/// How a process ended.
#[derive(Debug)]
enum End {
    /// By itself.
    Ended(ExitStatus),
    /// It was killed because of this test.
    Hung(String, Duration),
    /// It was killed after all of its tests.
    Lingered,
}

/// What a process left behind.
#[derive(Debug)]
struct Left {
    end: End,
    /// Tests without a result: that ran, and that had not begun.
    running: Vec<String>,
    waiting: Vec<String>,
    failed: usize,
}

/// The name of a binary, for people.
#[must_use]
pub fn label(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The names of a binary's tests, in the order in which it runs them.
pub fn list(path: &Path) -> Result<Vec<String>> {
    let output = machine::command(path)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| path.display().to_string())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", path.display());
    Ok(harness::listed(&String::from_utf8_lossy(&output.stdout)))
}

impl Binary<'_> {
    /// Runs the tests, which must be in [`list`]'s order, and tells the result of
    /// each.
    pub fn run(&self, tests: Vec<String>) -> Result<()> {
        let mut groups = VecDeque::from([tests]);
        // Each process gives a result or leaves smaller groups: this ends.
        while let Some(names) = groups.pop_front() {
            if names.is_empty() {
                continue;
            }
            for group in self.run_process(&names)?.into_iter().rev() {
                groups.push_front(group);
            }
        }
        Ok(())
    }

    /// Runs tests in one process; gives those that are to run again, in groups.
    fn run_process(&self, names: &[String]) -> Result<Vec<Vec<String>>> {
        let left = self.watch(names)?;
        self.check_skips(names)?;
        let label = label(self.path);
        match (left.end, left.running.as_slice()) {
            (End::Hung(name, took), running) => {
                self.tell(&name, Outcome::Hung, took, self.errors())?;
                let innocent = running.iter().filter(|other| **other != name);
                // In the order of the list, which a process keeps.
                Ok(vec![innocent.cloned().chain(left.waiting).collect()])
            }
            (End::Lingered, _) => {
                let limit = self.plan.test_seconds;
                self.problem(format!("{label} does not end {limit} s after its tests"))?;
                Ok(Vec::new())
            }
            (End::Ended(status), []) => {
                if status.success() != (left.failed == 0) {
                    let failed = left.failed;
                    self.problem(format!("{label}: {status}, but {failed} tests failed"))?;
                }
                Ok(Vec::new())
            }
            (End::Ended(status), [name]) => {
                let output = format!("it ended its process: {status}\n{}", self.errors());
                self.tell(name, Outcome::Failed, Duration::ZERO, output)?;
                Ok(vec![left.waiting])
            }
            (End::Ended(status), running) => {
                let suspects = running.join(", ");
                self.problem(format!(
                    "{label} ended before its tests: {status}; while these ran, which now \
                     run alone: {suspects}\n{}",
                    self.errors()
                ))?;
                let alone = running.iter().map(|name| vec![name.clone()]);
                Ok(alone.chain([left.waiting]).collect())
            }
        }
    }

    /// Starts a process, tells results as they come, and kills it when a test
    /// takes too long.
    fn watch(&self, names: &[String]) -> Result<Left> {
        let mut process = Process(self.start(names)?);
        let lines = lines(&mut process.0)?;
        let limit = Duration::from_secs(self.plan.test_seconds);
        let mut progress = Progress::new(names, self.plan.threads, Instant::now());
        let (mut failed, mut rest) = (Vec::new(), Vec::new());
        let mut last = Instant::now();
        let end = loop {
            match lines.recv_timeout(LOOK) {
                Ok(line) => {
                    if self.hear(&line, &mut progress, &mut failed)? {
                        last = Instant::now();
                    } else if progress.is_done() && rest.len() < LINES {
                        rest.push(line);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
            }
            if let Some(status) = process.0.try_wait()? {
                break End::Ended(status);
            }
            if let Some((name, took)) = progress.overdue(limit, Instant::now()) {
                break End::Hung(name, took);
            }
            if progress.is_done() && last.elapsed() > limit {
                break End::Lingered;
            }
        };
        // Whoever still has the other end of the output is one of the group.
        drop(process);
        while let Ok(line) = lines.recv_timeout(LAST_LINES) {
            if !self.hear(&line, &mut progress, &mut failed)? && rest.len() < LINES {
                rest.push(line);
            }
        }
        let outputs = harness::outputs(&rest, &failed);
        for (name, text) in &outputs {
            self.tell_output(name, end_of(text))?;
        }
        if !matches!(end, End::Ended(_)) {
            let has_none = |name: &&String| !outputs.iter().any(|(other, _)| other == *name);
            for name in failed.iter().filter(has_none) {
                let lost = "what it wrote was lost with its process, which was killed";
                self.tell_output(name, lost.to_owned())?;
            }
        }
        let (running, waiting) = progress.left();
        Ok(Left {
            end,
            running,
            waiting,
            failed: failed.len(),
        })
    }

    fn start(&self, names: &[String]) -> Result<Child> {
        for file in [&self.files.skipped, &self.files.errors] {
            File::create(file).with_context(|| file.display().to_string())?;
        }
        let errors = File::options().append(true).open(&self.files.errors)?;
        let mut command = machine::command(self.path);
        command
            .args(["--test-threads", &self.plan.threads.max(1).to_string()])
            .args(["--color", "never", "--exact", "--"])
            .args(names)
            .env(patience::VARIABLE, self.plan.patience.to_string())
            .env(feature::VARIABLE, &self.files.skipped)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            // So that it can be killed with what it started.
            .process_group(0);
        command
            .spawn()
            .with_context(|| self.path.display().to_string())
    }

    /// Tells a result if the line is one.
    fn hear(&self, line: &str, progress: &mut Progress, failed: &mut Vec<String>) -> Result<bool> {
        let Some((name, verdict)) = harness::ended(line) else {
            return Ok(false);
        };
        let Some(took) = progress.end(name, Instant::now()) else {
            return Ok(false);
        };
        let outcome = match verdict {
            Verdict::Failed => {
                failed.push(name.to_owned());
                Outcome::Failed
            }
            Verdict::Ignored => Outcome::Ignored,
            Verdict::Ok => match probed(&self.skips()?, name) {
                Some(probed) => Outcome::Skipped(probed),
                None => Outcome::Passed,
            },
        };
        self.tell(name, outcome, took, String::new())?;
        Ok(true)
    }

    fn skips(&self) -> Result<Vec<Skipped>> {
        let text = fs::read_to_string(&self.files.skipped).context("skipped tests")?;
        let skips = text.lines().map(serde_json::from_str);
        skips.collect::<Result<_, _>>().context("skipped tests")
    }

    /// A skip that no test can be found for must not be lost.
    fn check_skips(&self, names: &[String]) -> Result<()> {
        for Skipped { test, probed } in self.skips()? {
            if !names.contains(&test) {
                let label = label(self.path);
                self.problem(format!("{label}: skipped by no test, {test}: {probed}"))?;
            }
        }
        Ok(())
    }

    fn errors(&self) -> String {
        let bytes = fs::read(&self.files.errors).unwrap_or_default();
        end_of(&String::from_utf8_lossy(&bytes))
    }

    fn tell(&self, name: &str, outcome: Outcome, took: Duration, output: String) -> Result<()> {
        (self.say)(Message::Test(Test {
            binary: label(self.path),
            name: name.to_owned(),
            outcome,
            seconds: took.as_secs_f64(),
            output,
        }))
    }

    fn tell_output(&self, name: &str, text: String) -> Result<()> {
        (self.say)(Message::Output {
            binary: label(self.path),
            name: name.to_owned(),
            text,
        })
    }

    fn problem(&self, text: String) -> Result<()> {
        (self.say)(Message::Problem(text))
    }
}

/// Killed with its group when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = kill_group(&mut self.0) {
            eprintln!("a test's process is not gone: {error:#}");
        }
    }
}

fn kill_group(child: &mut Child) -> Result<()> {
    match killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL) {
        // Nobody is left.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => bail!("cannot kill it: {error}"),
    }
    child.wait()?;
    Ok(())
}

/// What was probed, if the test says that it was skipped.
fn probed(skips: &[Skipped], name: &str) -> Option<String> {
    let probed: Vec<&str> = skips
        .iter()
        .filter(|skipped| skipped.test == name)
        .map(|skipped| skipped.probed.as_str())
        .collect();
    (!probed.is_empty()).then(|| probed.join("; "))
}

fn end_of(output: &str) -> String {
    let from = output.len().saturating_sub(OUTPUT_BYTES);
    let from = (from..).find(|at| output.is_char_boundary(*at));
    output[from.unwrap_or_default()..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::Share;
    use super::*;

    /// What is told when tests of these names run, each as `NAME OUTCOME`, an
    /// output as `NAME: TEXT`, a problem as its first two words.
    fn told(names: &[&str], threads: usize) -> Vec<String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let directory = std::env::temp_dir().join(format!(
            "zt-binary-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir(&directory).unwrap();
        let messages = Mutex::new(Vec::new());
        let say = |message| {
            messages.lock().unwrap().push(match message {
                Message::Test(test) => format!("{} {:?}", test.name, test.outcome),
                Message::Output { name, text, .. } => format!("{name}: {}", text.trim()),
                Message::Problem(text) => {
                    let words: Vec<&str> = text.split_whitespace().take(2).collect();
                    words.join(" ")
                }
                other => format!("{other:?}"),
            });
            Ok(())
        };
        let plan = Plan {
            filter: Vec::new(),
            share: Share::default(),
            binaries: 1,
            threads,
            test_seconds: 1,
            patience: 1,
        };
        let binary = Binary {
            path: &Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guest/fake-harness.sh"),
            plan: &plan,
            files: Files::of(&directory, 0),
            say: &say,
        };
        let tests = names.iter().map(ToString::to_string).collect();
        binary.run(tests).unwrap();
        fs::remove_dir_all(directory).unwrap();
        messages.into_inner().unwrap()
    }

    #[test]
    fn each_test_is_told_with_what_became_of_it() {
        assert_eq!(
            told(&["a", "fails_1", "skips", "ignored", "fails_2", "b"], 2),
            [
                "a Passed",
                "fails_1 Failed",
                "skips Skipped(\"EINVAL\")",
                "ignored Ignored",
                "fails_2 Failed",
                "b Passed",
                "fails_1: why fails_1",
                "fails_2: why fails_2",
            ]
        );
    }

    #[test]
    fn after_a_test_that_hangs_the_rest_runs() {
        assert_eq!(
            told(&["a", "hangs", "b", "c"], 2),
            ["a Passed", "hangs Hung", "b Passed", "c Passed"]
        );
        let [.., output, hung] = &told(&["fails", "hangs"], 1)[..] else {
            panic!("too little is told");
        };
        assert!(
            output.starts_with("fails: what it wrote was lost"),
            "{output}"
        );
        assert_eq!(hung, "hangs Hung");
    }

    #[test]
    fn the_test_that_ends_its_process_is_found_and_the_rest_runs() {
        for culprit in ["crashes", "ends"] {
            let failed = format!("{culprit} Failed");
            assert_eq!(
                told(&["a", culprit, "b", "c"], 2),
                [
                    "a Passed",
                    "fake-harness.sh ended",
                    &failed,
                    "b Passed",
                    "c Passed"
                ]
            );
            assert_eq!(
                told(&["a", culprit, "b"], 1),
                ["a Passed", &failed, "b Passed"]
            );
        }
    }

    #[test]
    fn a_skip_of_no_test_is_a_problem() {
        assert_eq!(
            told(&["lost"], 1),
            ["lost Passed", "fake-harness.sh: skipped"]
        );
    }

    #[test]
    fn a_process_that_fails_without_a_failed_test_is_a_problem() {
        assert_eq!(told(&["lies"], 1), ["lies Passed", "fake-harness.sh: exit"]);
    }

    #[test]
    fn the_end_of_an_output_begins_at_a_character() {
        let text = "ä".repeat(OUTPUT_BYTES);
        assert!(end_of(&text).len() <= OUTPUT_BYTES);
        assert_eq!(end_of("short"), "short");
    }
}
