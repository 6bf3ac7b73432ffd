//! Runs every test of every binary: a process per binary, some at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::scope;

use anyhow::{Context, Result, ensure};

use super::binary::{self, Binary, Files, label};
use super::machine::Outside;
use super::{BINARIES, Message, Plan};

/// Where the binaries' processes write to.
const FILES: &str = "/run";

/// Tests of a binary.
#[derive(Debug)]
struct Planned {
    path: PathBuf,
    tests: Vec<String>,
}

/// Runs what the plan says and tells every result.
pub fn run(plan: &Plan, outside: &Outside) -> Result<()> {
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    let mut idle = [&plan.filter[..], &plan.share.tests].concat();
    let mut selection = Selection::new(plan);
    for path in binaries()? {
        let mut tests = binary::list(&path)?;
        for name in &tests {
            idle.retain(|part| !is_part_of(part, &label(&path), name));
        }
        tests.retain(|name| selection.wants(&label(&path), name));
        outside.say(&Message::Planned {
            binary: label(&path),
            tests: tests.clone(),
        })?;
        let (apart, tests) = tests.into_iter().partition(|name| is_alone(name));
        alone.push(Planned {
            path: path.clone(),
            tests: apart,
        });
        together.push(Planned { path, tests });
    }
    // A typing error, or a name of before, must not pass for tests that ran.
    for part in idle {
        let problem = format!("no test's BINARY::NAME contains {part:?}");
        outside.say(&Message::Problem(problem))?;
    }
    run_all(plan, outside, together)?;
    let one_by_one = Plan {
        binaries: 1,
        threads: 1,
        ..plan.clone()
    };
    run_all(&one_by_one, outside, alone)
}

/// Whether nothing else may run beside a test: it sets the machine's clock.
fn is_alone(name: &str) -> bool {
    name.split("::").any(|module| module == "clock")
}

/// Runs binaries, so many at a time as the plan says.
fn run_all(plan: &Plan, outside: &Outside, mut queue: Vec<Planned>) -> Result<()> {
    // The last of the queue is the first to run: the one with most tests, so that
    // the small ones fill the gaps in the end.
    queue.sort_by_key(|planned| planned.tests.len());
    let queue = Mutex::new(queue);
    let next = || queue.lock().ok()?.pop();
    let say = |message| outside.say(&message);
    let work = |number: usize| -> Result<()> {
        while let Some(Planned { path, tests }) = next() {
            let binary = Binary {
                path: &path,
                plan,
                files: Files::of(Path::new(FILES), number),
                say: &say,
            };
            binary.run(tests)?;
        }
        Ok(())
    };
    scope(|scope| {
        let jobs: Vec<_> = (0..plan.binaries.max(1))
            .map(|number| scope.spawn(move || work(number)))
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

/// Decides about one test after the other, always in the same order.
struct Selection<'a> {
    plan: &'a Plan,
    /// Tests so far that the machines share.
    shared: usize,
}

impl<'a> Selection<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { plan, shared: 0 }
    }

    fn wants(&mut self, binary: &str, name: &str) -> bool {
        let Plan { filter, share, .. } = self.plan;
        let is_in = |parts: &[String]| parts.iter().any(|part| is_part_of(part, binary, name));
        if is_in(filter) {
            return true;
        }
        if is_in(&share.tests) {
            self.shared += 1;
            return self.shared % share.machines.max(1) == share.machine;
        }
        filter.is_empty() && share.tests.is_empty()
    }
}

fn is_part_of(part: &str, binary: &str, name: &str) -> bool {
    format!("{binary}::{name}").contains(part)
}

#[cfg(test)]
mod tests {
    use super::super::Share;
    use super::*;

    #[test]
    fn what_sets_the_clock_runs_alone() {
        assert!(is_alone("clock::a_clock_that_is_set"));
        assert!(!is_alone("a_clock_that_is_set"));
        assert!(!is_alone("o_clock::x"));
    }

    fn plan(filter: &[&str], shared: &[&str], machine: usize) -> Plan {
        let owned = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
        Plan {
            filter: owned(filter),
            share: Share {
                tests: owned(shared),
                machine,
                machines: 2,
            },
            binaries: 1,
            threads: 1,
            test_seconds: 1,
            patience: 1,
        }
    }

    #[test]
    fn a_filter_is_for_the_binary_and_the_name() {
        let wanted = |parts: &[&str]| Selection::new(&plan(parts, &[], 0)).wants("attacks", "x");
        assert!(wanted(&[]));
        assert!(wanted(&["attacks::"]));
        assert!(wanted(&["y", "s::x"]));
        assert!(!wanted(&["y"]));
    }

    #[test]
    fn of_what_machines_share_each_test_runs_on_one() {
        let tests = ["a", "b", "c", "each", "d", "other"];
        let wanted = |machine: usize| -> Vec<&str> {
            let plan = plan(&["x::each"], &["x::a", "x::b", "x::c", "x::d"], machine);
            let mut selection = Selection::new(&plan);
            let wants = |name: &&str| selection.wants("x", name);
            tests.into_iter().filter(wants).collect()
        };
        assert_eq!(wanted(0), ["b", "each", "d"]);
        assert_eq!(wanted(1), ["a", "c", "each"]);
    }
}
