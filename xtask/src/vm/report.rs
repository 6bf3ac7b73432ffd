//! What is printed in the end: failures in full, then tables.

use std::collections::BTreeSet;
use std::fmt::Write;

use zt_tests::guest::{Outcome, Programs, Test};

use super::boot::PATIENCE;
use super::outcome::{Run, Tally};

/// Failures and skips of every kernel, then the tables.
pub fn print(runs: &[Run], here: Option<&(String, Programs)>) {
    for run in runs {
        print!("{}", details(run));
    }
    println!("{}", results(runs));
    println!(
        "Emulated machines wait {PATIENCE} times as long, and draw a {PATIENCE}th of the random cases.\n"
    );
    println!("{}", instructions(runs, here));
}

fn details(run: &Run) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for problem in &run.problems {
        let _ = writeln!(text, "Linux {}: {problem}\n", run.series);
    }
    for test in &run.tests {
        let Test { binary, name, .. } = test;
        let name = format!("Linux {}: {binary}::{name}", run.series);
        let _ = match &test.outcome {
            Outcome::Failed => writeln!(text, "FAILED {name}\n{}", test.output),
            Outcome::Hung => {
                let seconds = test.seconds;
                writeln!(text, "HUNG {name}, for {seconds:.0} s\n{}", test.output)
            }
            Outcome::Skipped(probed) => writeln!(text, "skipped {name}: {probed}"),
            Outcome::Passed | Outcome::Ignored => Ok(()),
        };
    }
    text
}

fn results(runs: &[Run]) -> String {
    let binaries: BTreeSet<&str> = runs
        .iter()
        .flat_map(|run| run.tallies().into_keys())
        .collect();
    let mut rows = vec![heading("tests", runs)];
    for binary in binaries {
        let cells = runs.iter().map(|run| {
            let tallies = run.tallies();
            tallies.get(binary).map_or_else(String::new, cell)
        });
        rows.push([binary.to_owned()].into_iter().chain(cells).collect());
    }
    let sums = runs.iter().map(|run| {
        let tally = Tally {
            seconds: run.seconds,
            ..run.tally()
        };
        cell(&tally)
    });
    rows.push(["all".to_owned()].into_iter().chain(sums).collect());
    table(&rows)
}

fn heading(first: &str, runs: &[Run]) -> Vec<String> {
    let kernels = runs.iter().map(|run| format!("Linux {}", run.version));
    [first.to_owned()].into_iter().chain(kernels).collect()
}

/// `12 passed, 1 FAILED, 1 skipped (3 s)`. What is marked as no test of its own
/// is left out.
fn cell(tally: &Tally) -> String {
    let mut text = format!("{} passed", tally.passed);
    if tally.failed > 0 {
        let _ = write!(text, ", {} FAILED", tally.failed);
    }
    if tally.skipped > 0 {
        let _ = write!(text, ", {} skipped", tally.skipped);
    }
    let _ = write!(text, " ({:.0} s)", tally.seconds);
    text
}

/// Instructions that the verifier walked, by program and kernel.
fn instructions(runs: &[Run], here: Option<&(String, Programs)>) -> String {
    let of_runs = runs.iter().map(|run| run.programs.as_ref());
    let all: Vec<_> = of_runs
        .chain(here.map(|(_, programs)| Some(programs)))
        .collect();
    let names: BTreeSet<&str> = all
        .iter()
        .flat_map(|one| counts(*one))
        .map(|(name, _)| name.as_str())
        .collect();
    let mut first = heading("instructions verified", runs);
    first.extend(here.map(|(release, _)| format!("this kernel, {release}")));
    let mut rows = vec![first];
    for name in names {
        let cells = all.iter().map(|one| {
            let mut counts = counts(*one).iter();
            let count = counts.find(|(other, _)| other == name);
            count.map_or_else(|| "none".to_owned(), |(_, count)| count.to_string())
        });
        rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    table(&rows)
}

fn counts(programs: Option<&Programs>) -> &[(String, u32)] {
    match programs {
        Some(Programs::Accepted(counts)) => counts,
        Some(Programs::Rejected(_)) | None => &[],
    }
}

/// Columns as wide as they need to be.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            series: "6.1".to_owned(),
            version: "6.1.192-2".to_owned(),
            programs: Some(Programs::Accepted(vec![("zt_egress".to_owned(), 12)])),
            tests: vec![Test {
                binary: "attacks".to_owned(),
                name: "x".to_owned(),
                outcome: Outcome::Skipped("asking for TCX: EINVAL".to_owned()),
                seconds: 2.0,
                output: String::new(),
            }],
            seconds: 9.0,
            ..Run::default()
        }
    }

    #[test]
    fn a_skip_is_told_with_what_was_probed() {
        let text = details(&run());
        assert_eq!(
            text,
            "skipped Linux 6.1: attacks::x: asking for TCX: EINVAL\n"
        );
    }

    #[test]
    fn tables_have_a_column_for_each_kernel() {
        let here = ("6.18".to_owned(), Programs::Accepted(Vec::new()));
        let text = instructions(&[run()], Some(&here));
        assert_eq!(
            text,
            "instructions verified  Linux 6.1.192-2  this kernel, 6.18\n\
             zt_egress              12               none\n"
        );
        let text = results(&[run()]);
        assert!(
            text.contains("attacks  0 passed, 1 skipped (2 s)"),
            "{text}"
        );
        assert!(
            text.contains("all      0 passed, 1 skipped (9 s)"),
            "{text}"
        );
    }
}
