//! Runs the fuzz targets. `cargo test` runs them too, on the corpus and on random
//! edits of it, without the build of minutes that this needs.
//!
//! They lie as cargo-fuzz wants them (`cargo fuzz run packet` works where it is
//! installed), but it is not needed: what it adds to cargo is the flags below,
//! and it would be one more tool to build on every machine.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step::{Finished, Steps};
use crate::{setup, workspace};

/// How long each target runs where all of them do.
const SHORT: u64 = 30;
/// How long a target runs that was named.
const LONG: u64 = 300;

/// An input that takes longer is a finding.
const SLOWEST_SECONDS: u64 = 20;
const MEGABYTES: u64 = 2048;

/// Bytes of an input that are shown.
const SHOWN: usize = 2048;

#[derive(clap::Args)]
pub struct Arguments {
    /// Run only this one (a name in fuzz/fuzz_targets).
    target: Option<String>,
    /// How long each target runs [default: 30, or 300 for a named one].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Add what was found to the corpus, as far as it reaches new code.
    #[arg(long)]
    keep: bool,
}

pub fn run(steps: &Steps, arguments: &Arguments) -> Result<()> {
    let targets = selected(arguments.target.as_deref())?;
    let default = arguments.target.as_ref().map_or(SHORT, |_| LONG);
    setup::run(steps)?;
    let fuzzer = Fuzzer::build(steps)?;
    let mut failed = Vec::new();
    for target in &targets {
        let seconds = arguments.seconds.unwrap_or(default);
        if !fuzzer.run(steps, target, seconds)? {
            failed.push(target.as_str());
        } else if arguments.keep {
            fuzzer.keep(steps, target)?;
        }
    }
    if !failed.is_empty() {
        bail!("a property does not hold: {}", failed.join(", "));
    }
    Ok(())
}

fn selected(name: Option<&str>) -> Result<Vec<String>> {
    let targets = targets()?;
    let Some(name) = name else {
        return Ok(targets);
    };
    if !targets.iter().any(|target| target == name) {
        bail!(
            "there is no target {name}; there are {}",
            targets.join(", ")
        );
    }
    Ok(vec![name.to_owned()])
}

fn targets() -> Result<Vec<String>> {
    let directory = workspace::root().join("fuzz/fuzz_targets");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        targets.extend(stem.map(str::to_owned));
    }
    targets.sort_unstable();
    Ok(targets)
}

/// The targets' binaries.
struct Fuzzer {
    binaries: PathBuf,
}

impl Fuzzer {
    fn build(steps: &Steps) -> Result<Self> {
        setup::fuzzer(steps)?;
        let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        let target = workspace::fuzz_target();
        let with_sanitizer = has_address_sanitizer(&triple)?;
        let mut build = workspace::nightly_cargo("build");
        build
            .args(["--package", "zt-fuzz", "--bins", "--profile", "fuzz"])
            // Named, or build scripts and macros would get the flags too.
            .args(["--target", &triple, "--target-dir"])
            .arg(&target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(with_sanitizer));
        steps.run("Build the fuzz targets", &mut build)?;
        Ok(Self {
            binaries: target.join(triple).join("fuzz"),
        })
    }

    /// Returns whether every property held.
    fn run(&self, steps: &Steps, target: &str, seconds: u64) -> Result<bool> {
        let found = empty_directory(&found(target))?;
        let crashes = workspace::fuzz_target().join("crashes").join(target);
        fs::create_dir_all(&crashes)?;
        let mut command = self.command(target);
        command.arg(found).arg(corpus(target));
        command.arg(format!("-max_total_time={seconds}"));
        command.arg(format!("-artifact_prefix={}/", crashes.display()));
        let dictionary = fuzz_directory().join(format!("dictionaries/{target}.dict"));
        if dictionary.is_file() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        let title = format!("Fuzz {target} for {seconds} s");
        let finished = steps.attempt(&title, &mut command)?;
        if let Some(input) = written_input(&finished.output) {
            steps.note(&panic_message(&finished.output));
            show(steps, target, &input);
        }
        let runs = executions(&finished);
        steps.note(&format!("{runs} inputs"));
        Ok(finished.success && runs > 0)
    }

    /// Copies what reaches new code from the last run into the corpus.
    fn keep(&self, steps: &Steps, target: &str) -> Result<()> {
        let mut command = self.command(target);
        // The fewest inputs that reach all code, not how often they do.
        command.args(["-set_cover_merge=1", "-use_counters=0"]);
        command.arg(corpus(target)).arg(found(target));
        steps.run(&format!("Add to the corpus of {target}"), &mut command)?;
        Ok(())
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(self.binaries.join(target));
        command.current_dir(workspace::root());
        // Finding leaks needs ptrace, which containers refuse, and the code
        // has no memory of its own to forget. Names for new code take longer
        // to find than the code itself.
        command.args(["-detect_leaks=0", "-print_funcs=0", "-print_final_stats=1"]);
        // Fake stack frames cost a fifth of the time, and find what only unsafe
        // code does.
        command.env("ASAN_OPTIONS", "detect_stack_use_after_return=0");
        command.arg(format!("-timeout={SLOWEST_SECONDS}"));
        command.arg(format!("-rss_limit_mb={MEGABYTES}"));
        command
    }
}

/// What cargo-fuzz sets, in cargo's encoding: coverage that libFuzzer reads,
/// and the address sanitizer where the toolchain has it.
fn flags(address_sanitizer: bool) -> OsString {
    let mut flags = vec![
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "-Cllvm-args=-sanitizer-coverage-stack-depth",
        "--cfg",
        "fuzzing",
    ];
    if address_sanitizer {
        flags.push("-Zsanitizer=address");
    }
    flags.join("\x1f").into()
}

fn has_address_sanitizer(triple: &str) -> Result<bool> {
    let sysroot = setup::rustup(&["run", workspace::NIGHTLY, "rustc", "--print", "sysroot"])?;
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib").join(triple);
    Ok(libraries.join("lib/librustc-nightly_rt.asan.a").is_file())
}

fn fuzz_directory() -> PathBuf {
    workspace::root().join("fuzz")
}

fn corpus(target: &str) -> PathBuf {
    fuzz_directory().join("corpus").join(target)
}

/// Where a run puts the inputs that reach new code.
fn found(target: &str) -> PathBuf {
    workspace::fuzz_target().join("found").join(target)
}

fn empty_directory(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path.to_owned())
}

/// The input that libFuzzer says it has written down.
fn written_input(output: &str) -> Option<PathBuf> {
    let mut lines = output.lines();
    let line = lines.find_map(|line| line.split_once("Test unit written to "))?;
    Some(PathBuf::from(line.1.trim()))
}

/// What did not hold: the words between a panic's place and its backtrace.
fn panic_message(output: &str) -> String {
    let lines = output
        .lines()
        .skip_while(|line| !line.contains(" panicked at "));
    let words = lines.skip(1).take_while(|line| {
        let is_backtrace = line.starts_with("stack backtrace") || line.starts_with("==");
        !is_backtrace && !line.starts_with("note: ")
    });
    words.collect::<Vec<_>>().join("\n     ")
}

fn show(steps: &Steps, target: &str, input: &Path) {
    let path = input.strip_prefix(workspace::root()).unwrap_or(input);
    if let Ok(bytes) = fs::read(input) {
        let shown = &bytes[..bytes.len().min(SHOWN)];
        steps.note(&format!(
            "{} bytes: \"{}\"",
            bytes.len(),
            shown.escape_ascii()
        ));
    }
    steps.note(&format!(
        "the input is in {}; to run it again:",
        path.display()
    ));
    steps.note(&format!(
        "cargo run --package zt-fuzz --bin {target} -- {}",
        path.display()
    ));
    steps.note(&format!(
        "once it is mended, keep it in fuzz/corpus/{target}"
    ));
}

fn executions(finished: &Finished) -> u64 {
    let mut lines = finished.output.lines();
    let number = lines.find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    number
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_was_written_is_found_in_the_output() {
        let output = "==7== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='/x/'; Test unit written to /x/crash-0a\nBase64: AA==\n";
        assert_eq!(written_input(output), Some("/x/crash-0a".into()));
        assert_eq!(written_input("Done 10 runs in 6 second(s)\n"), None);
    }

    #[test]
    fn what_did_not_hold_is_said() {
        let output = "thread '<unnamed>' (7) panicked at fuzz/src/packet/mod.rs:76:5:\n\
            a later fragment without a fault\nstack backtrace:\n   0: one\n==7== ERROR";
        assert_eq!(panic_message(output), "a later fragment without a fault");
        assert_eq!(panic_message("==7== ERROR: libFuzzer: timeout"), "");
    }

    #[test]
    fn a_run_without_numbers_ran_nothing() {
        let runs = |output: &str| {
            executions(&Finished {
                success: true,
                output: output.to_owned(),
            })
        };
        assert_eq!(runs("stat::number_of_executed_units: 20174\n"), 20174);
        assert_eq!(runs(""), 0);
    }

    #[test]
    fn a_target_that_is_not_there_is_refused() {
        assert!(selected(Some("no-such-target")).is_err());
        assert_eq!(selected(Some("packet")).unwrap(), ["packet"]);
        assert!(selected(None).unwrap().len() > 1);
    }
}
