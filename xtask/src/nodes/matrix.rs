//! Who reaches whom, asked from inside the pods and looked at by the ones reached.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use zt_tests::report::{Attempt, Reached};

use super::place::Place;
use super::services::{NAMESPACE, Pod, Way};
use super::stage::Stage;
use crate::demo::services::{Service, is_permitted};

/// Of one connection; an emulated node is slow.
const LIMIT_MS: &str = "10000";

/// How often a question that came out wrong is listed.
const SHOWN: usize = 12;

pub type End = (Service, Place);

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub from: End,
    pub to: End,
    pub way: Way,
}

impl Cell {
    pub fn permitted(self) -> bool {
        is_permitted(self.from.0, self.to.0)
    }

    fn describe(self) -> String {
        let Self { from, to, way } = self;
        format!(
            "{}@{} → {}@{} by {}",
            from.0,
            from.1,
            to.0,
            to.1,
            way.name()
        )
    }
}

/// What came of every cell.
pub struct Round {
    pub attempts: BTreeMap<Cell, Attempt>,
    /// How many connections each pod took from each other's address.
    accepted: BTreeMap<(End, End), usize>,
}

/// A round that is as it has to be. `enforced`: what happens between two is what the
/// policy says, and not whatever they like.
pub fn right(
    stage: &Stage,
    pods: &[Pod],
    ways: &[Way],
    enforced: impl Fn(End, End) -> bool,
) -> Result<Round> {
    let round = ask(stage, pods, ways)?;
    let wrong = round.wrong(enforced);
    if !wrong.is_empty() {
        let shown = wrong.iter().take(SHOWN).cloned().collect::<Vec<_>>();
        bail!(
            "{} of {} are not as they have to be:\n{}",
            wrong.len(),
            round.attempts.len(),
            shown.join("\n")
        );
    }
    Ok(round)
}

/// Two services on every node, for where all would take long: one may reach the
/// other, and nobody may do anything else.
pub fn few(pods: &[Pod]) -> Vec<Pod> {
    let is_one = |pod: &&Pod| [Service::Iam, Service::Redis].contains(&pod.service);
    pods.iter().filter(is_one).cloned().collect()
}

/// Has every pod try to reach every other, in each of some ways.
fn ask(stage: &Stage, pods: &[Pod], ways: &[Way]) -> Result<Round> {
    let before = accepted(stage, pods)?;
    let mut attempts = BTreeMap::new();
    // One of each node at a time.
    for service in Service::ALL {
        let sources: Vec<&Pod> = pods.iter().filter(|pod| pod.service == service).collect();
        let answers: Vec<Result<_>> = thread::scope(|scope| {
            let asked: Vec<_> = (sources.iter())
                .map(|from| scope.spawn(|| ask_from(stage, from, pods, ways)))
                .collect();
            asked
                .into_iter()
                .map(|one| {
                    one.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        for answer in answers {
            attempts.extend(answer?);
        }
    }
    let mut accepted = accepted(stage, pods)?;
    for (ends, count) in &mut accepted {
        *count -= before.get(ends).copied().unwrap_or(0);
    }
    Ok(Round { attempts, accepted })
}

fn ask_from(stage: &Stage, from: &Pod, pods: &[Pod], ways: &[Way]) -> Result<Vec<(Cell, Attempt)>> {
    let others = pods.iter().filter(|pod| pod.label() != from.label());
    let cells: BTreeMap<String, (Cell, String)> = others
        .flat_map(|to| {
            ways.iter().map(move |&way| {
                let cell = Cell {
                    from: (from.service, from.place),
                    to: (to.service, to.place),
                    way,
                };
                let name = format!("{}/{}", to.label(), way.name().replace(' ', ""));
                (name.clone(), (cell, format!("{name}={}", to.at(way))))
            })
        })
        .collect();
    let mut arguments = vec![
        "exec",
        "--namespace",
        NAMESPACE,
        &from.name,
        "--",
        "/usr/bin/zt-probe",
        "reach",
        "--timeout-ms",
        LIMIT_MS,
    ];
    arguments.extend(cells.values().map(|(_, target)| target.as_str()));
    let said = stage
        .kubectl(&arguments)?
        .ok()
        .with_context(|| format!("in {}", from.name))?;
    let mut answers = Vec::new();
    for line in said.lines() {
        let Reached { name, attempt } =
            serde_json::from_str(line).with_context(|| line.to_owned())?;
        let (cell, _) = cells.get(&name).with_context(|| name.clone())?;
        answers.push((*cell, attempt));
    }
    ensure!(
        answers.len() == cells.len(),
        "{}: {} answers to {} questions",
        from.name,
        answers.len(),
        cells.len()
    );
    Ok(answers)
}

/// How many connections a pod took from another.
pub fn heard(stage: &Stage, from: &Pod, to: &Pod) -> Result<usize> {
    let counts = accepted(stage, &[from.clone(), to.clone()])?;
    let ends = ((from.service, from.place), (to.service, to.place));
    Ok(counts.get(&ends).copied().unwrap_or(0))
}

/// Whom each pod says that it took a connection from. Its log is read on its node:
/// that is quicker than by the API.
fn accepted(stage: &Stage, pods: &[Pod]) -> Result<BTreeMap<(End, End), usize>> {
    let mut counts = BTreeMap::new();
    for place in Place::ALL {
        let command = format!(
            "grep -Ho 'accept tcp [0-9.]*:' /var/log/pods/{NAMESPACE}_*/serve/*.log || true"
        );
        let said = stage.node(place)?.sh(&command)?;
        for to in pods.iter().filter(|pod| pod.place == place) {
            let log = format!("/var/log/pods/{NAMESPACE}_{}_", to.name);
            let of_pod = said.lines().filter(|line| line.starts_with(&log));
            let lines: Vec<&str> = of_pod.collect();
            for from in pods {
                let end = format!("accept tcp {}:", from.address);
                let count = lines.iter().filter(|line| line.ends_with(&end)).count();
                counts.insert(((from.service, from.place), (to.service, to.place)), count);
            }
        }
    }
    Ok(counts)
}

impl Round {
    /// What is not as it has to be: without enforcement everything passes, with it
    /// what the policy permits.
    pub fn wrong(&self, enforced: impl Fn(End, End) -> bool) -> Vec<String> {
        let mut wrong = Vec::new();
        for (cell, attempt) in &self.attempts {
            let must = !enforced(cell.from, cell.to) || cell.permitted();
            let reply = format!("{}:hello", cell.to.0);
            let replied = attempt.reply.as_deref() == Some(reply.as_str());
            if replied != must {
                wrong.push(format!("{}: {attempt:?}", cell.describe()));
            }
        }
        for ((from, to), count) in &self.accepted {
            let passes = !enforced(*from, *to) || is_permitted(from.0, to.0);
            let must = if passes { self.asked(*from, *to) } else { 0 };
            if *count != must {
                wrong.push(format!(
                    "{}@{} took {count} connections of {}@{}, not {must}",
                    to.0, to.1, from.0, from.1
                ));
            }
        }
        wrong
    }

    /// What came of a question, in a word.
    pub fn outcome(&self, cell: Cell) -> &str {
        self.attempts.get(&cell).map_or("-", outcome)
    }

    /// In how many ways one asked another.
    fn asked(&self, from: End, to: End) -> usize {
        let cells = self.attempts.keys();
        cells
            .filter(|cell| (cell.from, cell.to) == (from, to))
            .count()
    }
}

/// One table for each way and pair of nodes: what happened without enforcement, and
/// with it.
pub fn table(observed: &Round, enforced: &Round) -> String {
    let mut text = String::new();
    for way in Way::ALL {
        for from in Place::ALL {
            for to in Place::ALL {
                // Writing to a string cannot fail.
                let _ = writeln!(
                    text,
                    "\nfrom {from} to {to}, by {}: observe / enforce",
                    way.name()
                );
                let _ = write!(text, "{:10}", "");
                for service in Service::ALL {
                    let _ = write!(text, "{:>16}", format!("{service}:{}", service.port()));
                }
                text.push('\n');
                for source in Service::ALL {
                    let _ = write!(text, "{source:10}");
                    for target in Service::ALL {
                        let cell = Cell {
                            from: (source, from),
                            to: (target, to),
                            way,
                        };
                        let shown =
                            format!("{} / {}", observed.outcome(cell), enforced.outcome(cell));
                        let _ = write!(text, "{shown:>16}");
                    }
                    text.push('\n');
                }
            }
        }
    }
    text
}

fn outcome(attempt: &Attempt) -> &str {
    if attempt.replied() {
        return "ok";
    }
    attempt.errno.as_deref().unwrap_or("nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: End = (Service::Chat, Place::A);
    const REDIS: End = (Service::Redis, Place::B);

    const NOWHERE: fn(End, End) -> bool = |_, _| false;
    const EVERYWHERE: fn(End, End) -> bool = |_, _| true;

    /// Chat and Redis, which the policy keeps apart, and what Redis accepted.
    fn round(reply: Option<&str>, accepted: usize) -> Round {
        let attempt = Attempt {
            reply: reply.map(str::to_owned),
            ..Attempt::default()
        };
        let cell = |way| Cell {
            from: CHAT,
            to: REDIS,
            way,
        };
        Round {
            attempts: Way::ALL.map(|way| (cell(way), attempt.clone())).into(),
            accepted: [((CHAT, REDIS), accepted)].into(),
        }
    }

    #[test]
    fn without_enforcement_everything_has_to_arrive() {
        assert!(round(Some("redis:hello"), 2).wrong(NOWHERE).is_empty());
        assert_eq!(round(None, 2).wrong(NOWHERE).len(), 2);
        // Somebody else answered.
        assert_eq!(round(Some("iam:hello"), 2).wrong(NOWHERE).len(), 2);
        assert_eq!(round(Some("redis:hello"), 1).wrong(NOWHERE).len(), 1);
    }

    #[test]
    fn with_enforcement_nothing_forbidden_may_be_answered_or_accepted() {
        assert!(round(None, 0).wrong(EVERYWHERE).is_empty());
        assert_eq!(round(Some("redis:hello"), 0).wrong(EVERYWHERE).len(), 2);
        // Refused to the one who asked is not enough.
        assert_eq!(round(None, 1).wrong(EVERYWHERE).len(), 1);
    }

    #[test]
    fn where_nobody_enforces_what_is_forbidden_has_to_arrive_too() {
        let to_a = |_: End, to: End| to.1 == Place::A;
        assert!(round(Some("redis:hello"), 2).wrong(to_a).is_empty());
        assert_eq!(round(None, 0).wrong(to_a).len(), 3);
    }
}
