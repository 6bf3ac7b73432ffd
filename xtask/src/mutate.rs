//! Which test misses which program: leaves out one after the other and runs the
//! suites that try to get past them. A program that nobody misses is a failure.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::step::Steps;
use crate::{build, setup, workspace};

/// The suites that must notice.
const SUITES: [&str; 3] = ["bypass", "enforcement", "attacks"];

/// Names the program that the tests' nodes leave unattached.
const WITHOUT: &str = "ZT_WITHOUT_PROGRAM";

/// Rows mostly wait: more of them than cores run at a time.
const THREADS: &str = "--test-threads=8";

/// These only look at what is attached: that they notice shows nothing.
const LISTS: [&str; 2] = [
    "attacks: programs_loaded_anew_take_over_without_a_gap",
    "attacks: programs_of_cgroups_above_the_managed_root_are_strangers_too",
];

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
    let mut build = workspace::cargo("test");
    build.env(build::OBJECT_VARIABLE, &object).arg("--no-run");
    build.arg("--package=zt-tests").args(SUITES.map(argument));
    steps.run("Build the tests", &mut build)?;
    let known = programs()?;
    let wanted = chosen(&arguments.programs, &known)?;
    let complete = failures(steps, &object, None)?;
    for test in &complete {
        eprintln!("FAILS ANYWAY, and is not counted: {test}");
    }
    let mut table = Vec::new();
    for program in wanted {
        let caught = failures(steps, &object, Some(program))?;
        let caught: Vec<String> = caught.difference(&complete).cloned().collect();
        let caught = shown_by_traffic(caught);
        steps.note(&format!("{} tests notice", caught.len()));
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

fn argument(suite: &str) -> String {
    format!("--test={suite}")
}

/// The tests that fail without a program. The suites run side by side, since
/// they mostly wait.
fn failures(steps: &Steps, object: &Path, without: Option<&str>) -> Result<BTreeSet<String>> {
    let title = match without {
        Some(program) => format!("Without {program}"),
        None => "With every program".to_owned(),
    };
    steps.check(&title, || {
        thread::scope(|scope| {
            let running = SUITES.map(|suite| scope.spawn(|| run_suite(suite, object, without)));
            let ended = running.map(|suite| suite.join().expect("it does not panic"));
            let failed: Vec<_> = ended.into_iter().collect::<Result<_>>()?;
            Ok(failed.into_iter().flatten().collect())
        })
    })
}

fn run_suite(suite: &str, object: &Path, without: Option<&str>) -> Result<Vec<String>> {
    let mut command = workspace::cargo("test");
    command.env(build::OBJECT_VARIABLE, object);
    command.args(["--package=zt-tests", &argument(suite)]);
    command.args(["--no-fail-fast", "--", THREADS]);
    if let Some(program) = without {
        command.env(WITHOUT, program);
    }
    let output = command.output().context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = failed(suite, &text);
    ensure!(
        output.status.success() || !failed.is_empty(),
        "{suite} ended before any test failed:\n{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(failed)
}

/// The names in `test NAME ... FAILED`, with the suite's before them.
fn failed(suite: &str, output: &str) -> Vec<String> {
    let failed = |line: &str| {
        let (name, end) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let name = name.trim_start_matches("rows::");
        (end == "FAILED").then(|| format!("{suite}: {name}"))
    };
    output.lines().filter_map(failed).collect()
}

fn shown_by_traffic(mut caught: Vec<String>) -> Vec<String> {
    caught.retain(|test| !LISTS.contains(&test.as_str()));
    caught
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

    const OUTPUT: &str = "running 2 tests\n\
        test rows::calls::a_connect ... ok\n\
        test rows::raw::a_socket ... FAILED\n\
        test result: FAILED. 1 passed; 1 failed;\n";

    #[test]
    fn failed_tests_are_known_by_suite_and_name() {
        assert_eq!(failed("bypass", OUTPUT), ["bypass: raw::a_socket"]);
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
    fn who_only_reads_the_list_of_programs_does_not_count() {
        let row = "bypass: a".to_owned();
        let caught = vec![LISTS[0].to_owned(), row.clone(), LISTS[1].to_owned()];
        assert_eq!(shown_by_traffic(caught), [row]);
    }

    #[test]
    fn an_unknown_program_is_refused() {
        let known = ["one".to_owned()];
        assert_eq!(chosen(&[], &known).unwrap(), known);
        chosen(&["tow".to_owned()], &known).unwrap_err();
    }
}
