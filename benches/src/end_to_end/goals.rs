//! The ratios to reach.

use std::fmt::Write as _;

use super::{
    contender::Contender,
    results::{Figure, Results},
    workload::Workload,
};

/// What one contender's rate has to be of another's, at least.
struct Goal {
    workload: Workload,
    of: Contender,
    base: Contender,
    least: f64,
}

/// With all layers and the largest policy.
const OURS: Contender = Contender::Enforce(65_536);
const TRACKED: Contender = Contender::SetTracked(65_536);
const LINEAR: Contender = Contender::Linear(1_000);

fn goals() -> Vec<Goal> {
    use Workload::{Connect, Request, Stream};
    let goal = |workload, base, least| Goal {
        workload,
        of: OURS,
        base,
        least,
    };
    let mut goals = vec![
        goal(Connect, Contender::Minimal, 0.98),
        goal(Connect, Contender::Nothing, 0.92),
        goal(Connect, TRACKED, 1.0),
        goal(Connect, LINEAR, 2.5),
    ];
    for workload in [Request, Stream] {
        goals.push(goal(workload, Contender::Minimal, 0.98));
        goals.push(goal(workload, Contender::Nothing, 0.95));
        goals.push(goal(workload, TRACKED, 1.0));
    }
    let traffic = Workload::ALL.into_iter();
    for workload in traffic.filter(|one| *one != Workload::Call) {
        goals.push(goal(workload, Contender::Enforce(1), 0.97));
    }
    goals
}

/// What our hook may take of connect(2), in what an empty program takes.
const CALL: f64 = 1.5;

/// That ratio: (ours − none) / (empty − none), of the medians of one call's time.
fn overhead(results: &Results) -> Option<f64> {
    let takes = |contender| {
        let rate = results.summary(contender, Workload::Call, Figure::Rate)?;
        (rate.median > 0.0).then(|| 1.0 / rate.median)
    };
    let none = takes(Contender::Nothing)?;
    let (ours, empty) = (takes(OURS)? - none, takes(Contender::Empty)? - none);
    (empty > 0.0).then(|| ours / empty)
}

/// A table of the goals and what became of them; of those who took part.
#[must_use]
pub fn table(results: &Results) -> String {
    let mut table = "| workload | of | at least | measured | |\n|---|---|--:|--:|---|\n".to_owned();
    for goal in goals() {
        let Some(ratio) = results.ratio(goal.of, goal.base, goal.workload) else {
            continue;
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {} | {:.2} | {ratio:.3} | {} |",
            goal.workload.title(),
            goal.base.title(),
            goal.least,
            if ratio >= goal.least {
                "reached"
            } else {
                "missed"
            }
        );
    }
    if let Some(ratio) = overhead(results) {
        let word = if ratio <= CALL { "reached" } else { "missed" };
        let _ = writeln!(
            table,
            "| {}, over none | empty programs, over none | at most {CALL:.2} | {ratio:.3} | {word} |",
            Workload::Call.title(),
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::end_to_end::{
        results::{Rounds, Series, Settings},
        traffic::Measured,
    };

    fn series(contender: Contender, rate: f64) -> Series {
        Series {
            contender,
            title: contender.title(),
            entries: 1,
            workloads: vec![Rounds {
                workload: Workload::Connect,
                unit: Workload::Connect.unit().to_owned(),
                rounds: vec![Measured {
                    rate,
                    ..Measured::default()
                }],
            }],
        }
    }

    fn results(contenders: Vec<Series>) -> Results {
        Results {
            settings: Settings {
                rounds: 1,
                window_ms: 1,
                warm_up_ms: 1,
            },
            quiet: crate::quiet::Quiet::default(),
            contenders,
        }
    }

    #[test]
    fn what_is_too_slow_is_said_to_be_missed() {
        let results = results(vec![
            series(Contender::Nothing, 100.0),
            series(LINEAR, 34.0),
            series(OURS, 90.0),
        ]);
        let table = table(&results);
        assert!(
            table.contains("| none | 0.92 | 0.900 | missed |"),
            "{table}"
        );
        let of_rules = "| nft rules, 1k | 2.50 | 2.647 | reached |";
        assert!(table.contains(of_rules), "{table}");
    }

    #[test]
    fn nothing_is_said_of_who_did_not_take_part() {
        let table = table(&results(vec![series(Contender::Nothing, 100.0)]));
        assert!(!table.contains("reached") && !table.contains("missed"));
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let before = results(vec![series(OURS, 1.5)]);
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), before);
    }
}
