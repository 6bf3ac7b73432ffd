//! Which test misses which program: leaves out one after the other and runs the
//! suites that try to get past them. A program that nobody misses is a failure.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::step::Steps;
use crate::{build, setup, workspace};

/// The suites that must notice.
const SUITES: [&str; 3] = ["bypass", "enforcement", "attacks"];

/// Names the program that the tests' nodes leave unattached.
const WITHOUT: &str = "ZT_WITHOUT_PROGRAM";

/// Rows mostly wait: more of them than cores run at a time.
const THREADS: &str = "--test-threads=8";

/// How many of the tests that catch a program are named.
const NAMED: usize = 5;

#[derive(clap::Args)]
pub struct Arguments {
    /// Leave out only these programs, one after the other.
    #[arg(long = "program", value_name = "NAME")]
    programs: Vec<String>,
}

/// Root: the suites load programs into this kernel.
pub fn run(steps: &Steps, arguments: &Arguments) -> Result<()> {
    if !workspace::is_root() {
        bail!("the tests load kernel programs and make cgroups and namespaces: run this as root");
    }
    let tools = setup::run(steps)?;
    let object = build::kernel_programs(steps, &tools, build::Warnings::Allowed)?;
    let tests = || {
        let mut command = workspace::cargo("test");
        command.env(build::OBJECT_VARIABLE, &object);
        command.arg("--package=zt-tests");
        command.args(SUITES.map(|suite| format!("--test={suite}")));
        command
    };
    steps.run("Build the tests", tests().arg("--no-run"))?;
    let known = programs()?;
    let wanted = chosen(&arguments.programs, &known)?;
    let complete = failures(steps, "With every program", &mut tests())?;
    for test in &complete {
        eprintln!("FAILS ANYWAY, and is not counted: {test}");
    }
    let mut table = Vec::new();
    for program in wanted {
        let mut command = tests();
        command.env(WITHOUT, program);
        let started = Instant::now();
        let title = format!("Without {program}");
        let caught = failures(steps, &title, &mut command)?;
        let caught: Vec<String> = caught.difference(&complete).cloned().collect();
        steps.note(&format!(
            "{} tests notice ({} s)",
            caught.len(),
            started.elapsed().as_secs()
        ));
        table.push((program, caught));
    }
    print!("{}", markdown(&table));
    judge(&complete, &table)
}

/// The programs as the tests' own tool knows them.
fn programs() -> Result<Vec<String>> {
    let probe = workspace::root().join("target/debug/zt-probe");
    let output = Command::new(&probe)
        .arg("programs")
        .output()
        .with_context(|| probe.display().to_string())?;
    ensure!(output.status.success(), "zt-probe programs: {output:?}");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// All of them, unless some were named.
fn chosen<'a>(named: &'a [String], known: &'a [String]) -> Result<&'a [String]> {
    if let Some(wrong) = named.iter().find(|name| !known.contains(name)) {
        bail!(
            "there is no program {wrong}; there are {}",
            known.join(", ")
        );
    }
    Ok(if named.is_empty() { known } else { named })
}

/// The tests that fail.
fn failures(steps: &Steps, title: &str, tests: &mut Command) -> Result<BTreeSet<String>> {
    tests.args(["--no-fail-fast", "--", THREADS]);
    // That some fail is what this is about: what they print is not shown.
    let finished = steps.outcome(title, tests)?;
    let failed = failed(&finished.output);
    ensure!(
        finished.success || !failed.is_empty(),
        "{title}: it ended before any test failed:\n{}",
        finished.output
    );
    Ok(failed)
}

/// The names in `test NAME ... FAILED`, with the suite's before them.
fn failed(output: &str) -> BTreeSet<String> {
    let mut suite = "";
    let mut failed = BTreeSet::new();
    for line in output.lines() {
        let line = line.trim();
        if let Some(running) = line.strip_prefix("Running ") {
            suite = SUITES
                .into_iter()
                .find(|suite| running.contains(suite))
                .unwrap_or_default();
        }
        let test = line
            .strip_prefix("test ")
            .and_then(|line| line.split_once(" ... "));
        if let Some((name, "FAILED")) = test {
            failed.insert(format!("{suite}: {}", name.trim_start_matches("rows::")));
        }
    }
    failed
}

fn markdown(table: &[(&String, Vec<String>)]) -> String {
    let mut text = String::from("\n| without | tests that notice | such as |\n|---|---|---|\n");
    for (program, caught) in table {
        let some: Vec<&str> = caught.iter().take(NAMED).map(String::as_str).collect();
        text += &format!("| `{program}` | {} | {} |\n", caught.len(), some.join("; "));
    }
    text
}

fn judge(complete: &BTreeSet<String>, table: &[(&String, Vec<String>)]) -> Result<()> {
    let missed =
        |(program, caught): &(&String, Vec<String>)| caught.is_empty().then(|| (*program).clone());
    let nobody: Vec<String> = table.iter().filter_map(missed).collect();
    if !nobody.is_empty() {
        bail!("nobody notices that it is missing: {}", nobody.join(", "));
    }
    ensure!(
        complete.is_empty(),
        "some tests fail with every program, too"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "     Running tests/bypass/main.rs (target/debug/deps/bypass-1)\n\
        test rows::calls::a_connect ... ok\n\
        test rows::raw::a_socket ... FAILED\n\
        \x20    Running tests/attacks.rs (target/debug/deps/attacks-1)\n\
        test it_holds ... FAILED\n\
        test result: FAILED. 1 passed; 2 failed;\n";

    #[test]
    fn failed_tests_are_known_by_suite_and_name() {
        let expected = ["attacks: it_holds", "bypass: raw::a_socket"];
        assert_eq!(failed(OUTPUT), expected.map(str::to_owned).into());
    }

    #[test]
    fn a_program_that_nobody_misses_is_a_failure() {
        let (one, other) = ("one".to_owned(), "other".to_owned());
        let caught = vec!["bypass: a".to_owned()];
        let none = BTreeSet::new();
        judge(&none, &[(&one, caught.clone())]).unwrap();
        let error = judge(&none, &[(&one, caught), (&other, vec![])]).unwrap_err();
        assert!(error.to_string().ends_with(": other"), "{error}");
    }

    #[test]
    fn an_unknown_program_is_refused() {
        let known = ["one".to_owned()];
        assert_eq!(chosen(&[], &known).unwrap(), known);
        chosen(&["tow".to_owned()], &known).unwrap_err();
    }
}
