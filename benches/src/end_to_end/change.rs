//! How long a policy takes from its document into force.
//!
//! | what | how |
//! |---|---|
//! | from a document to the last map write | parse, compile, apply, with 1, 1k and 64k entries; the same rows in one bare batch per map; as many elements of a set by `nft -f` |
//! | one rule more or less | with that many others, 20 times a second: from the compiled change to the first datagram that it decides |
//! | quarantine | from the write to the last answer on an open connection; its owner hears of it from the agent, which does not run here |

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use zt_agent::{
    compile::{self, Compiled, Tables},
    model::{Mode, Name, NodeModel},
};
use zt_common::version::Row;
use zt_tests::{
    Sandbox, interrupt,
    node::{Node, allow, identity, policies},
    process::Running,
};

use super::{
    floor::Floor,
    nft::Nft,
    ours,
    place::{FORBIDDEN, PORT, Place, Watched},
    watch::{Turned, now},
};
use crate::{PORTS, policy, ports, statistics::Summary};

const SIZES: [u32; 3] = [1, 1_000, 65_536];
/// Between two changes.
const PACE: Duration = Duration::from_millis(50);
/// How long a change may take before something is wrong.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often each is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub rounds: usize,
    pub changes: usize,
}

/// All of it, milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    pub sizes: Vec<Size>,
    /// From the write to the last answer.
    pub quarantine: Vec<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Size {
    pub entries: u32,
    /// Rows of all maps.
    pub rows: usize,
    pub parse: Vec<f64>,
    pub compile: Vec<f64>,
    pub apply: Vec<f64>,
    /// The same rows of the policy and the addresses, by nobody's logic.
    pub bare: Vec<f64>,
    pub nft: Vec<f64>,
    /// A change of one rule, until the programs go by it.
    pub one: Vec<f64>,
}

/// # Errors
/// When something does not decide what it has to, and when interrupted.
pub fn run(
    place: &mut Place,
    counts: Counts,
    floor: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Changes> {
    let home = Sandbox::new()?;
    let mut node = ours::node(&home, place)?;
    let mut changes = Changes::default();
    for entries in SIZES {
        say(&format!("{entries} entries from their document"));
        let mut size = sizes(place, &mut node, entries, counts.rounds, floor)?;
        say(&format!("one rule beside {entries} entries"));
        size.one = one_rule(place, &mut node, entries, counts.changes)?;
        changes.sizes.push(size);
    }
    say("quarantine");
    changes.quarantine = quarantine(place, &mut node, counts.changes)?;
    Ok(changes)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// The rules as somebody would write them: one for each peer.
fn document(entries: u32, with_another: bool) -> String {
    let own = allow("client", "server", &format!("[{PORT}]"), "TCP");
    let another = allow("client", "server", &format!("[{FORBIDDEN}]"), "UDP");
    let ports = format!("{:?}", ports());
    let others = (0..entries / u32::from(PORTS))
        .map(|peer| allow("client", &format!("peer/{peer}"), &ports, "TCP"));
    // At the end: a rule is named by its number, and so are those after it.
    policy(
        [own]
            .into_iter()
            .chain(others)
            .chain(with_another.then_some(another)),
    )
}

fn model(place: &Place, entries: u32, with_another: bool) -> Result<NodeModel> {
    let mut model = ours::world(place, Mode::Enforce, entries)?.model;
    model.policies = policies(&document(entries, with_another))?;
    Ok(model)
}

fn compiled(node: &mut Node, model: &NodeModel) -> Result<Compiled> {
    node.keeper.give(&compile::names(model), false)?;
    Ok(compile::compile(model, node.keeper.numbers())?)
}

fn sizes(
    place: &Place,
    node: &mut Node,
    entries: u32,
    rounds: usize,
    floor: &Path,
) -> Result<Size> {
    let text = document(entries, false);
    let mut model = model(place, entries, false)?;
    let mut size = Size {
        entries,
        ..Size::default()
    };
    for _ in 0..rounds {
        interrupt::check()?;
        node.store.apply(Tables::default(), true)?;
        let start = Instant::now();
        model.policies = policies(&text)?;
        size.parse.push(milliseconds(start.elapsed()));
        let start = Instant::now();
        let compiled = compiled(node, &model)?;
        size.compile.push(milliseconds(start.elapsed()));
        let tables = Arc::new(compiled.tables);
        let start = Instant::now();
        let applied = node.store.apply(tables.clone(), compiled.takes_over)?;
        size.apply.push(milliseconds(start.elapsed()));
        size.rows = applied.rows;
        let bare = bare(floor, &tables)?;
        size.bare.push(milliseconds(bare));
        let nft = Nft::load_time(place, entries)?;
        size.nft.push(milliseconds(nft));
    }
    Ok(size)
}

/// The rows of the two large maps, in empty maps of the same kinds and sizes.
fn bare(floor: &Path, tables: &Tables) -> Result<Duration> {
    let floor = Floor::new(floor, "empty")?;
    let policy = tables.policy.iter();
    let policy: Vec<_> = policy
        .map(|(key, value)| Row::starting(*key, *value, 1))
        .collect();
    let address = tables.address.iter();
    let address: Vec<_> = address
        .map(|(key, value)| Row::starting(*key, *value, 1))
        .collect();
    let (policy_keys, address_keys): (Vec<_>, Vec<_>) = (
        tables.policy.keys().copied().collect(),
        tables.address.keys().copied().collect(),
    );
    let start = Instant::now();
    floor.put_all::<_, Row<_, _, 4>>("floor_policy", &policy_keys, &policy)?;
    floor.put_all::<_, Row<_, _, 4>>("floor_address", &address_keys, &address)?;
    Ok(start.elapsed())
}

/// In place while `measure` runs, and away again whatever came of it.
fn attached<T>(
    place: &Place,
    node: &mut Node,
    measure: impl FnOnce(&mut Node) -> Result<T>,
) -> Result<T> {
    let begun = node.attach();
    let begun = begun.and_then(|()| node.cover_from(&place.host, &place.party));
    let measured = begun.and_then(|()| measure(node));
    let ended = node.uncover().and_then(|()| node.detach_all());
    measured.and_then(|measured| ended.map(|()| measured))
}

fn one_rule(place: &Place, node: &mut Node, entries: u32, changes: usize) -> Result<Vec<f64>> {
    let mut tables = |with_another| -> Result<Arc<Tables>> {
        let model = model(place, entries, with_another)?;
        Ok(compiled(node, &model)?.tables.into())
    };
    let (without, with) = (tables(false)?, tables(true)?);
    node.store.apply(without.clone(), true)?;
    attached(place, node, |node| {
        let mut watch = Watch::new(place, Watched::Datagrams, FORBIDDEN)?;
        ensure!(!watch.next()?.passes, "what is not allowed passes");
        let mut took = Vec::new();
        let start = Instant::now();
        for number in 0..changes {
            interrupt::check()?;
            let tick = PACE * u32::try_from(number)?;
            thread::sleep(tick.saturating_sub(start.elapsed()));
            let passes = number.is_multiple_of(2);
            let change = if passes { &with } else { &without };
            let written = now()?;
            node.store.apply(change.clone(), false)?;
            let turned = watch.next()?;
            ensure!(turned.passes == passes, "it is not decided by the change");
            took.push(since(written, turned.seen));
            node.events();
        }
        Ok(took)
    })
}

/// Until the last answer.
fn quarantine(place: &Place, node: &mut Node, changes: usize) -> Result<Vec<f64>> {
    let compiled = compiled(node, &model(place, SIZES[2], false)?)?;
    node.store.apply(compiled.tables, true)?;
    let number = {
        let name = Name::Spiffe(identity("client").parse()?);
        let number = node.keeper.numbers().get(&name);
        number.context("the client has no number")?
    };
    attached(place, node, |node| {
        let mut watch = Watch::new(place, Watched::Connections, PORT)?;
        let mut last = Vec::new();
        for change in 0..changes {
            interrupt::check()?;
            ensure!(watch.next()?.passes, "the connection begins with its end");
            // Not at the same point of the exchange each time.
            thread::sleep(Duration::from_micros(2_000 + change as u64 * 37 % 1_000));
            let written = now()?;
            node.trust.set(number, true)?;
            let turned = watch.next()?;
            node.trust.set(number, false)?;
            ensure!(!turned.passes, "it ends with its beginning");
            last.push(since(written, turned.at));
            node.events();
        }
        Ok(last)
    })
}

/// Milliseconds; 0 of what was before.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of some seconds")]
fn since(before: u64, after: u64) -> f64 {
    after.saturating_sub(before) as f64 / 1e6
}

/// A client of the workload that tells when something turns.
struct Watch {
    running: Running,
    read: usize,
}

impl Watch {
    fn new(place: &Place, watched: Watched, port: u16) -> Result<Self> {
        Ok(Self {
            running: place.watch(watched, port)?,
            read: 0,
        })
    }

    fn next(&mut self) -> Result<Turned> {
        let line = self.running.wait_after(self.read, PATIENCE, |_| true);
        let line = line.context("nothing turns")?;
        self.read += 1;
        serde_json::from_str(&line).context(line)
    }
}

/// The value that all but one of a hundred are below, and the largest.
fn worst(of: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * 99).div_ceil(100);
    Some((*sorted.get(rank.checked_sub(1)?)?, *sorted.last()?))
}

/// For people.
#[must_use]
pub fn table(changes: &Changes) -> String {
    let mut table = "Milliseconds: medians, with quartiles.\n\n\
        | entries | rows | parse | compile | apply | bare batches | nft -f |\n\
        |--:|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for size in &changes.sizes {
        let columns = [
            &size.parse,
            &size.compile,
            &size.apply,
            &size.bare,
            &size.nft,
        ];
        let cells: Vec<String> = columns.iter().map(|of| spread(of)).collect();
        table.push_str(&format!(
            "| {} | {} | {} |\n",
            size.entries,
            size.rows,
            cells.join(" | ")
        ));
    }
    table.push_str(
        "\n| until in force, ms | median | 99th percentile | most |\n|---|--:|--:|--:|\n",
    );
    for size in &changes.sizes {
        let name = format!("one rule beside {}, from the compiled change", size.entries);
        table.push_str(&until(&name, &size.one));
    }
    table.push_str(&until(
        "quarantine, to the last answer",
        &changes.quarantine,
    ));
    table
}

fn spread(of: &[f64]) -> String {
    Summary::of(of).map_or_else(String::new, |Summary { low, median, high }| {
        format!("{median:.2} ({low:.2}–{high:.2})")
    })
}

fn until(name: &str, of: &[f64]) -> String {
    let (Some(summary), Some((p99, most))) = (Summary::of(of), worst(of)) else {
        return String::new();
    };
    format!(
        "| {name} | {:.2} | {p99:.2} | {most:.2} |\n",
        summary.median
    )
}

/// What has to be reached, and what became of it.
#[must_use]
pub fn goals(changes: &Changes) -> String {
    let mut table = "| what | limit | measured | |\n|---|--:|--:|---|\n".to_owned();
    let mut goal = |what: &str, limit: String, measured: f64, reached: bool| {
        let word = if reached { "reached" } else { "missed" };
        table.push_str(&format!("| {what} | {limit} | {measured:.2} | {word} |\n"));
    };
    let median = |of: &[f64]| Summary::of(of).map(|of| of.median);
    if let Some(size) = changes.sizes.last()
        && let (Some(apply), Some(bare), Some(nft)) =
            (median(&size.apply), median(&size.bare), median(&size.nft))
    {
        let (over, faster) = (apply / bare, nft / apply);
        let limit = "≤ 2".to_owned();
        goal(
            "apply 64k entries, of bare batches",
            limit,
            over,
            over <= 2.0,
        );
        let limit = "≥ 8".to_owned();
        goal("nft -f of as many, of that", limit, faster, faster >= 8.0);
    }
    let mut in_time = |what: &str, of: &[f64]| {
        if let Some((p99, _)) = worst(of) {
            goal(what, "≤ 5 ms".to_owned(), p99, p99 <= 5.0);
        }
    };
    if let Some(size) = changes.sizes.last() {
        in_time("one rule beside 64k, 99th percentile", &size.one);
    }
    in_time(
        "quarantine to the last answer, 99th percentile",
        &changes.quarantine,
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_hundred_may_be_late() {
        let mut took = vec![1.0; 199];
        took.push(9.0);
        assert_eq!(worst(&took), Some((1.0, 9.0)));
        took.extend([9.0, 9.0]);
        assert_eq!(worst(&took), Some((9.0, 9.0)));
        assert_eq!(worst(&[]), None);
    }

    #[test]
    fn what_is_too_slow_is_said_to_be_missed() {
        let size = Size {
            entries: 65_536,
            apply: vec![30.0],
            bare: vec![10.0],
            nft: vec![300.0],
            one: vec![6.0],
            ..Size::default()
        };
        let goals = goals(&Changes {
            sizes: vec![size],
            quarantine: vec![1.0],
        });
        assert!(goals.contains("| ≤ 2 | 3.00 | missed |"), "{goals}");
        assert!(goals.contains("| ≥ 8 | 10.00 | reached |"), "{goals}");
        assert!(goals.contains("| ≤ 5 ms | 6.00 | missed |"), "{goals}");
        assert!(goals.contains("| ≤ 5 ms | 1.00 | reached |"), "{goals}");
    }
}
