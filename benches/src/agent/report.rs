//! The results for people.

use std::fmt::Write as _;

use super::{
    bare::{Bare, Sender},
    size::Size,
    trail::Outcome,
};
use crate::statistics::Summary;

/// KiB that the agent may have resident.
const RESIDENT: u64 = 64 * 1024;
/// Distinct decisions a second of which none may be lost.
const SUSTAINED: u64 = 50_000;
/// The part of what a reader that only counts takes that ours has to.
const CARRIED: f64 = 0.7;

/// What the agent takes.
#[must_use]
pub fn size(size: &Size) -> String {
    let mut text = format!(
        "An agent with {} identities and {} entries of the policy map: ready after {:.2} s.\n\n\
         | | resident, MiB | processor |\n|---|--:|--:|\n",
        size.identities, size.entries, size.ready
    );
    let rows = [
        ("idle".to_owned(), size.idle_resident, size.idle_processor),
        (
            format!("{:.0} workloads a second come and go", size.churned),
            size.churn_resident,
            size.churn_processor,
        ),
    ];
    for (name, resident, processor) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {name} | {} | {:.1}% |",
            mebibytes(resident),
            processor * 100.0
        );
    }
    let _ = writeln!(
        text,
        "| at most, ever | {} | |",
        mebibytes(size.most_resident)
    );
    if let Some(Summary { low, median, high }) = Summary::of(&size.enrolled) {
        let _ = writeln!(
            text,
            "\nA workload was enrolled after {median:.1} ms ({low:.1}–{high:.1})."
        );
    }
    let word = word(size.idle_resident <= RESIDENT);
    let _ = writeln!(text, "\nAt most {} MiB resident: {word}.", RESIDENT / 1024);
    text
}

fn mebibytes(kibibytes: u64) -> String {
    format!("{}.{}", kibibytes / 1024, kibibytes % 1024 * 10 / 1024)
}

const fn word(is_reached: bool) -> &'static str {
    if is_reached { "reached" } else { "missed" }
}

/// What became of the decisions, and what a ring with nothing else carries.
#[must_use]
pub fn trail(outcomes: &[Outcome], bare: &[Bare]) -> String {
    let mut text = "| producers | calls/s | through the ring/s | decisions | recorded | lost | in the file after | decisions = recorded + lost | no loss |\n\
        |--:|--:|--:|--:|--:|---|--:|---|---|\n"
        .to_owned();
    for outcome in outcomes {
        let lost: Vec<String> = outcome
            .lost
            .iter()
            .map(|(cause, count)| format!("{count} {cause}"))
            .collect();
        let lost = if lost.is_empty() {
            "0".to_owned()
        } else {
            lost.join(", ")
        };
        let case = outcome.case;
        let rate = case.rate * u64::from(case.producers);
        let must = (1..=SUSTAINED).contains(&rate);
        let none = if must { word(outcome.lost() == 0) } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {} | {} | {lost} | {:.1} s | {} | {none} |",
            case.producers,
            outcome.rate,
            outcome.carried,
            outcome.decisions,
            outcome.recorded,
            outcome.settled,
            word(outcome.fits()),
        );
    }
    text.push_str("\nThe same calls, and a reader that only counts:\n\n| producers | who sends | calls/s | through the ring/s | lost | the agent of that | |\n|--:|---|--:|--:|--:|--:|---|\n");
    for bare in bare {
        let is_same = |one: &&Outcome| one.case.rate == 0 && one.case.producers == bare.producers;
        let ours = outcomes.iter().find(is_same);
        let part = ours.map(|ours| ours.carried / bare.carried);
        let (sender, is_goal) = match bare.sender {
            Sender::Floor => ("a program that does nothing else", false),
            Sender::Ours => ("our programs, which decide", true),
        };
        let part = part.map_or_else(String::new, |part| {
            let word = if is_goal { word(part >= CARRIED) } else { "" };
            format!("{part:.2} | {word}")
        });
        // As above.
        let _ = writeln!(
            text,
            "| {} | {sender} | {:.0} | {:.0} | {} | {part} |",
            bare.producers, bare.rate, bare.carried, bare.lost
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::produce::Case;

    fn outcome(rate: u64, lost: u64) -> Outcome {
        Outcome {
            case: Case {
                producers: 1,
                count: 100,
                rate,
            },
            rate: 1.0,
            carried: 69.0,
            decisions: 100,
            recorded: 90,
            lost: vec![("ring-full".to_owned(), lost)],
            settled: 0.1,
        }
    }

    #[test]
    fn what_is_neither_recorded_nor_counted_is_said() {
        let of = |rate, lost| trail(&[outcome(rate, lost)], &[]);
        assert!(of(0, 10).contains("| reached |  |"), "{}", of(0, 10));
        assert!(of(0, 9).contains("| missed |  |"), "{}", of(0, 9));
        let sustained = of(SUSTAINED, 10);
        assert!(sustained.contains("| reached | missed |"), "{sustained}");
    }

    #[test]
    fn too_little_of_what_a_bare_reader_takes_is_said() {
        let [floor, ours] = [Sender::Floor, Sender::Ours].map(|sender| Bare {
            sender,
            producers: 1,
            carried: 100.0,
            ..Bare::default()
        });
        let text = trail(&[outcome(0, 10), outcome(5, 10)], &[floor]);
        assert!(text.contains("| 0.69 |  |"), "{text}");
        let text = trail(&[outcome(0, 10), outcome(5, 10)], &[ours]);
        assert!(text.contains("| 0.69 | missed |"), "{text}");
    }

    #[test]
    fn too_much_memory_is_said() {
        let of = |idle_resident| {
            size(&Size {
                idle_resident,
                ..Size::default()
            })
        };
        assert!(of(RESIDENT).contains("64 MiB resident: reached"));
        assert!(of(RESIDENT + 1).contains("64 MiB resident: missed"));
    }
}
