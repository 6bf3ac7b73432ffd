//! The results for people.

use std::fmt::Write as _;

use super::{
    case::{Case, Program},
    rounds::Cost,
};
use crate::{machine::Machine, statistics::Summary};

/// A table per program.
#[must_use]
pub fn markdown(machine: &Machine, costs: &[Cost]) -> String {
    let mut text = format!(
        "# Programs by themselves\n\n{}\nNanoseconds of one run under `BPF_PROG_TEST_RUN`: medians of the rounds' medians. \
         Of a flow that is known, one packet again and again; then each packet once, of random flows: \
         what is between two such runs leaves the caches cold.\n",
        machine.head()
    );
    for program in Program::ALL {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n## {}\n\n| entries | live flows |", program.title());
        for case in Case::ALL {
            let _ = write!(text, " {} |", case.title());
        }
        let _ = writeln!(text, "\n|--:|--:|{}", "--:|".repeat(Case::ALL.len()));
        for (entries, flows) in sizes(costs) {
            let _ = write!(text, "| {entries} | {flows} |");
            for case in Case::ALL {
                let cell = median(costs, program, case, entries, flows);
                let cell = cell.map_or_else(String::new, |median| format!("{median:.0}"));
                let _ = write!(text, " {cell} |");
            }
            text.push('\n');
        }
    }
    let _ = write!(text, "\n## What has to be reached\n\n{}", goals(costs));
    text
}

fn sizes(costs: &[Cost]) -> Vec<(usize, u32)> {
    let mut sizes = Vec::new();
    for size in costs.iter().map(|cost| (cost.entries, cost.flows)) {
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    sizes
}

fn median(costs: &[Cost], program: Program, case: Case, entries: usize, flows: u32) -> Option<f64> {
    let cost = costs.iter().find(|cost| {
        cost.program == program
            && cost.case == case
            && (cost.entries, cost.flows) == (entries, flows)
    })?;
    Summary::of(&cost.nanoseconds).map(|of| of.median)
}

/// Nanoseconds that a cached verdict may take more than the minimal program.
const CACHED: f64 = 20.0;
/// And, with one live flow, more than the empty one.
const ONE_FLOW: f64 = 40.0;
/// A first decision with the most entries, of one with a thousand.
const FIRST: f64 = 2.0;

/// What has to be reached, and what became of it.
#[must_use]
pub fn goals(costs: &[Cost]) -> String {
    let mut table = "| program | what | at most | measured | |\n|---|---|--:|--:|---|\n".to_owned();
    let sizes = sizes(costs);
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else {
        return table;
    };
    let middle = sizes
        .iter()
        .find(|size| (500..5_000).contains(&size.0) && size.1 == last.1);
    for program in Program::ALL {
        let of = |case, size: &(usize, u32)| median(costs, program, case, size.0, size.1);
        let mut goal = |what: &str, most: f64, measured: Option<f64>| {
            if let Some(measured) = measured {
                let word = if measured <= most {
                    "reached"
                } else {
                    "missed"
                };
                // Writing to a string cannot fail.
                let _ = writeln!(
                    table,
                    "| {} | {what} | {most:.0} | {measured:.1} | {word} |",
                    program.title()
                );
            }
        };
        let over = |of: Option<f64>, base: Option<f64>| Some(of? - base?);
        goal(
            "cached verdict over the minimal program, most entries and flows, ns",
            CACHED,
            over(of(Case::Cached, last), of(Case::Minimal, last)),
        );
        goal(
            "cached verdict over the empty program, one flow, ns",
            ONE_FLOW,
            over(of(Case::CachedAgain, first), of(Case::EmptyAgain, first)),
        );
        if let Some(middle) = middle {
            let ratio = |case| {
                let base = over(of(case, middle), of(Case::Empty, middle))?;
                Some(over(of(case, last), of(Case::Empty, last))? / base)
            };
            goal(
                "first decision, 64k entries of 1k, allowed",
                FIRST,
                ratio(Case::Allowed),
            );
            goal(
                "first decision, 64k entries of 1k, denied",
                FIRST,
                ratio(Case::Denied),
            );
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(case: Case, entries: usize, flows: u32, nanoseconds: f64) -> Cost {
        Cost {
            program: Program::From,
            case,
            entries,
            flows,
            nanoseconds: vec![nanoseconds],
        }
    }

    #[test]
    fn what_is_too_slow_is_said_to_be_missed() {
        let costs = [
            cost(Case::EmptyAgain, 8, 1, 10.0),
            cost(Case::CachedAgain, 8, 1, 51.0),
            cost(Case::Empty, 1_000, 9, 50.0),
            cost(Case::Allowed, 1_000, 9, 150.0),
            cost(Case::Denied, 1_000, 9, 150.0),
            cost(Case::Empty, 65_536, 9, 50.0),
            cost(Case::Minimal, 65_536, 9, 100.0),
            cost(Case::Cached, 65_536, 9, 120.0),
            cost(Case::Allowed, 65_536, 9, 250.0),
            cost(Case::Denied, 65_536, 9, 260.0),
        ];
        let goals = goals(&costs);
        assert!(goals.contains("ns | 20 | 20.0 | reached |"), "{goals}");
        assert!(goals.contains("ns | 40 | 41.0 | missed |"), "{goals}");
        assert!(goals.contains("allowed | 2 | 2.0 | reached |"), "{goals}");
        assert!(goals.contains("denied | 2 | 2.1 | missed |"), "{goals}");
        assert!(
            markdown(&Machine::default(), &costs)
                .contains("| 65536 | 9 |  |  | 50 | 100 | 120 | 250 | 260 |")
        );
    }
}
