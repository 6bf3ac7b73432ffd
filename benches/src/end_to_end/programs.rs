//! What each program takes when real traffic runs it, by the kernel's own clock
//! (`BPF_ENABLE_STATS`).
//!
//! The kernel reads its clock twice for each run and charges the run for it, the
//! same for everybody: what counts are differences.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use serde::{Deserialize, Serialize};
use zt_tests::interrupt;

use super::{
    contender::{Contender, order},
    hooks::{self, Attached, Hooks},
    place::Place,
    results::Settings,
    rival,
    rounds::in_place,
    workload::Workload,
};
use crate::{quiet::Quiet, statistics::Summary};

/// Those that have programs.
const CONTENDERS: [Contender; 5] = [
    Contender::Empty,
    Contender::Minimal,
    Contender::Enforce(1),
    Contender::Enforce(1_000),
    Contender::Enforce(65_536),
];

/// What is done: nothing that a clock in every program would make something else.
pub const WORKLOADS: [Workload; 4] = [
    Workload::Request,
    Workload::Datagram,
    Workload::Connect,
    Workload::Call,
];

/// A hook, while somebody did something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub contender: Contender,
    pub workload: Workload,
    pub hook: String,
    /// Of one run, in each round.
    pub nanoseconds: Vec<f64>,
    /// Runs for each operation of the workload, in each round.
    pub runs: Vec<f64>,
}

impl Cost {
    /// And not only of what came before, such as the one connection for everything.
    fn is_of_every_operation(&self) -> bool {
        Summary::of(&self.runs).is_some_and(|runs| runs.median >= 0.5)
    }
}

/// What every program took, round by round.
///
/// # Errors
/// When a contender cannot be put in place or does not decide what it has to, and
/// when interrupted.
pub fn run(
    place: &mut Place,
    settings: Settings,
    floor: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<(Vec<Cost>, Quiet)> {
    let mut rivals = Vec::new();
    for contender in CONTENDERS {
        interrupt::check()?;
        say(&format!("prepare {}", contender.title()));
        rivals.push(rival::make(contender, place, floor)?);
    }
    let strangers = Hooks::now(place)?;
    let _while_open = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")?;
    let (mut costs, mut quiet) = (Costs::default(), Quiet::default());
    for round in 0..settings.rounds {
        say(&format!("round {} of {}", round + 1, settings.rounds));
        for index in order(rivals.len(), round) {
            let (contender, rival) = (CONTENDERS[index], rivals[index].as_mut());
            let turn = in_place(rival, contender, place, strangers, |rival, place| {
                let attached = hooks::attached(place)?;
                for workload in WORKLOADS {
                    place.measure(workload, Duration::from_millis(settings.warm_up_ms))?;
                    let window = Duration::from_millis(settings.window_ms);
                    let (before, measured, after) = quiet.measure(|| {
                        let before = spent(&attached)?;
                        let measured = place.measure(workload, window)?;
                        let after = spent(&attached)?;
                        rival.rest()?;
                        Ok((before, measured, after))
                    })?;
                    for (hook, after) in after {
                        let spent = after.since(before.get(hook));
                        costs.add(contender, workload, hook, spent, measured.operations);
                    }
                }
                Ok(())
            });
            turn.with_context(|| contender.title())?;
        }
    }
    Ok((costs.0, quiet))
}

#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    nanoseconds: u64,
    runs: u64,
}

impl Spent {
    fn since(self, before: Option<&Self>) -> Self {
        let before = before.copied().unwrap_or_default();
        Self {
            nanoseconds: self.nanoseconds - before.nanoseconds,
            runs: self.runs - before.runs,
        }
    }
}

/// What the programs of each hook took until now.
fn spent(attached: &[Attached]) -> Result<BTreeMap<&'static str, Spent>> {
    let mut spent: BTreeMap<&'static str, Spent> = BTreeMap::new();
    for program in loaded_programs() {
        let program = program?;
        let of = attached.iter().find(|one| one.id == Some(program.id()));
        if let Some(of) = of {
            let sum = spent.entry(of.hook).or_default();
            sum.nanoseconds += u64::try_from(program.run_time().as_nanos())?;
            sum.runs += program.run_count();
        }
    }
    Ok(spent)
}

#[derive(Default)]
struct Costs(Vec<Cost>);

impl Costs {
    /// A hook that did not run costs nothing, and is not told of.
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
    fn add(
        &mut self,
        contender: Contender,
        workload: Workload,
        hook: &str,
        spent: Spent,
        operations: u64,
    ) {
        if spent.runs == 0 {
            return;
        }
        let is = |cost: &Cost| {
            cost.contender == contender && cost.workload == workload && cost.hook == hook
        };
        let at = self.0.iter().position(is).unwrap_or_else(|| {
            self.0.push(Cost {
                contender,
                workload,
                hook: hook.to_owned(),
                nanoseconds: Vec::new(),
                runs: Vec::new(),
            });
            self.0.len() - 1
        });
        let cost = &mut self.0[at];
        cost.nanoseconds
            .push(spent.nanoseconds as f64 / spent.runs as f64);
        cost.runs.push(spent.runs as f64 / operations.max(1) as f64);
    }
}

/// The hooks of a workload, and what each contender's program there takes.
#[must_use]
pub fn table(costs: &[Cost], workload: Workload) -> String {
    let mut table = "| hook | runs |".to_owned();
    for contender in CONTENDERS {
        table.push_str(&format!(" {} |", contender.title()));
    }
    table.push_str(&format!("\n|---|--:|{}\n", "--:|".repeat(CONTENDERS.len())));
    let mut hooks: Vec<&str> = Vec::new();
    let rows = costs.iter().filter(|cost| cost.workload == workload);
    for cost in rows.filter(|cost| cost.is_of_every_operation()) {
        if !hooks.contains(&cost.hook.as_str()) {
            hooks.push(&cost.hook);
        }
    }
    for hook in hooks {
        let of = |contender| find(costs, contender, workload, hook);
        let runs = of(OURS).and_then(|cost| Summary::of(&cost.runs));
        let runs = runs.map_or_else(String::new, |runs| format!("{:.1}", runs.median));
        // Writing to a string cannot fail.
        let _ = write!(table, "| {hook} | {runs} |");
        for contender in CONTENDERS {
            let took = of(contender).and_then(|cost| Summary::of(&cost.nanoseconds));
            let cell = took.map_or_else(String::new, |took| {
                format!("{:.0} ({:.0}–{:.0})", took.median, took.low, took.high)
            });
            let _ = write!(table, " {cell} |");
        }
        table.push('\n');
    }
    table
}

fn find<'a>(
    costs: &'a [Cost],
    contender: Contender,
    workload: Workload,
    hook: &str,
) -> Option<&'a Cost> {
    costs
        .iter()
        .find(|cost| cost.contender == contender && cost.workload == workload && cost.hook == hook)
}

const OURS: Contender = Contender::Enforce(65_536);
/// Nanoseconds that a cached verdict may take more than the minimal program.
const CACHED: f64 = 20.0;
/// And, with one live flow, more than the empty one.
const ONE_FLOW: f64 = 40.0;

/// What a cached verdict may cost, and what became of it.
#[must_use]
pub fn goals(costs: &[Cost]) -> String {
    let mut table =
        "| cached verdict | over | at most, ns | measured, ns | |\n|---|---|--:|--:|---|\n"
            .to_owned();
    let median = |contender, hook: &str| {
        let cost = find(costs, contender, Workload::Request, hook)?;
        Summary::of(&cost.nanoseconds).map(|took| took.median)
    };
    let ours = costs
        .iter()
        .filter(|cost| cost.workload == Workload::Request && cost.contender == OURS)
        .filter(|cost| cost.is_of_every_operation());
    for hook in ours.map(|cost| cost.hook.as_str()) {
        for (base, most) in [(Contender::Minimal, CACHED), (Contender::Empty, ONE_FLOW)] {
            let (Some(ours), Some(theirs)) = (median(OURS, hook), median(base, hook)) else {
                continue;
            };
            let over = ours - theirs;
            let word = if over <= most { "reached" } else { "missed" };
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "| {hook} | {} | {most:.0} | {over:.0} | {word} |",
                base.title()
            );
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(of: &[(Contender, u64, u64)]) -> Vec<Cost> {
        let mut costs = Costs::default();
        for (contender, nanoseconds, runs) in of {
            let spent = Spent {
                nanoseconds: *nanoseconds,
                runs: *runs,
            };
            costs.add(*contender, Workload::Request, "tc, sent", spent, 2);
        }
        costs.0
    }

    #[test]
    fn it_is_told_by_the_run_and_who_did_not_run_is_not() {
        let costs = costs(&[(OURS, 300, 3), (OURS, 600, 3), (Contender::Empty, 0, 0)]);
        assert_eq!(costs.len(), 1);
        assert_eq!(costs[0].nanoseconds, [100.0, 200.0]);
        assert_eq!(costs[0].runs, [1.5, 1.5]);
        let table = table(&costs, Workload::Request);
        assert!(
            table.contains("| tc, sent | 1.5 |  |  |  |  | 150 (125–175) |"),
            "{table}"
        );
    }

    #[test]
    fn what_takes_too_long_is_said_to_be_missed() {
        let goals = goals(&costs(&[
            (OURS, 130, 1),
            (Contender::Minimal, 100, 1),
            (Contender::Empty, 95, 1),
        ]));
        let missed = "| tc, sent | minimal programs | 20 | 30 | missed |";
        assert!(goals.contains(missed), "{goals}");
        let reached = "| tc, sent | empty programs | 40 | 35 | reached |";
        assert!(goals.contains(reached), "{goals}");
    }
}
