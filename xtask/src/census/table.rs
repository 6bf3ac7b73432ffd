//! The counts as a table: written, read, and compared with another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use super::kernel::helper;

const COLUMNS: [&str; 3] = ["instructions", "helper calls", "map lookups"];

/// In place of a count that there is none of.
const NONE: &str = "-";

/// Of the counts of a kernel's verifier, percent: its own way through the programs
/// changes a little with an update.
const TOLERANCE: u64 = 2;

const ABOUT: &str = "\
# What the kernel programs take, counted and not timed. `cargo xtask counts` compares,
# and fails where something grew; `cargo xtask counts --accept` writes this file.
#
# cached: executed for one packet whose verdict is known, by what kind it is.
# linux-…: walked by the verifier of that kernel.
# whole: in a program and everything that it calls, each function once.
#
";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub instructions: u64,
    pub helpers: u64,
    pub lookups: u64,
}

impl Counts {
    /// Counts a call of the helper of this number.
    pub fn add_call(&mut self, number: i32) {
        self.helpers += 1;
        self.lookups += u64::from(helper::LOOKUPS.contains(&number));
    }
}

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Cached,
    /// By the verifier of a kernel, such as `6.1`.
    Verified(String),
    Whole,
}

impl Part {
    fn read(word: &str) -> Result<Self> {
        match (word, word.strip_prefix("linux-")) {
            ("cached", _) => Ok(Self::Cached),
            ("whole", _) => Ok(Self::Whole),
            (_, Some(series)) => Ok(Self::Verified(series.to_owned())),
            _ => bail!("{word} is nothing that is counted"),
        }
    }

    /// How much more is no growth.
    fn tolerance(&self, count: u64) -> u64 {
        match self {
            Self::Verified(_) => count * TOLERANCE / 100,
            Self::Cached | Self::Whole => 0,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cached => f.pad("cached"),
            Self::Whole => f.pad("whole"),
            Self::Verified(series) => f.pad(&format!("linux-{series}")),
        }
    }
}

type Row = [Option<u64>; COLUMNS.len()];

/// Counts by part and program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: BTreeMap<(Part, String), Row>,
}

/// What became of one count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nobody may pass over it.
    Bad(String),
    Good(String),
}

impl Table {
    pub fn add(&mut self, part: Part, program: &str, counts: Counts) {
        let row = [counts.instructions, counts.helpers, counts.lookups];
        self.rows.insert((part, program.to_owned()), row.map(Some));
    }

    /// What a kernel's verifier says of each program.
    pub fn add_verified(&mut self, series: &str, programs: &[(String, u32)]) {
        let part = Part::Verified(series.to_owned());
        for (program, count) in programs {
            let row = [Some(u64::from(*count)), None, None];
            self.rows.insert((part.clone(), program.clone()), row);
        }
    }

    pub fn parts(&self) -> BTreeSet<&Part> {
        self.rows.keys().map(|(part, _)| part).collect()
    }

    pub fn without(mut self, part: &Part) -> Self {
        self.rows.retain(|(other, _), _| other != part);
        self
    }

    /// With the parts of `other` in place of its own.
    pub fn replaced(mut self, other: &Self) -> Self {
        let parts = other.parts();
        self.rows.retain(|(part, _), _| !parts.contains(part));
        self.rows.extend(other.rows.clone());
        self
    }

    /// # Errors
    /// When it is not what [`Table`] writes.
    pub fn read(text: &str) -> Result<Self> {
        let mut table = Self::default();
        for line in text.lines() {
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            let read = || -> Result<((Part, String), Row)> {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [part, program, counts @ ..] = &words[..] else {
                    bail!("no counts");
                };
                ensure!(counts.len() == COLUMNS.len(), "not {}", COLUMNS.len());
                let mut row = Row::default();
                for (count, word) in row.iter_mut().zip(counts) {
                    *count = match *word {
                        NONE => None,
                        number => Some(number.parse().context("not a number")?),
                    };
                }
                Ok(((Part::read(part)?, (*program).to_owned()), row))
            };
            let (key, row) = read().with_context(|| format!("the line `{line}`"))?;
            table.rows.insert(key, row);
        }
        Ok(table)
    }

    /// What is different from `before`: of what was counted in both of them. A
    /// kernel that was not asked before, or now, says nothing.
    pub fn changes_since(&self, before: &Self) -> Vec<Change> {
        let always = [Part::Cached, Part::Whole];
        let (now, then) = (self.parts(), before.parts());
        let is_comparable =
            |part: &Part| always.contains(part) || now.contains(part) && then.contains(part);
        let keys: BTreeSet<_> = self.rows.keys().chain(before.rows.keys()).collect();
        let mut changes = Vec::new();
        for key in keys.into_iter().filter(|(part, _)| is_comparable(part)) {
            let (part, program) = key;
            match (before.rows.get(key), self.rows.get(key)) {
                (Some(before), Some(now)) => {
                    changes.extend(changed(part, program, before, now));
                }
                (None, _) => changes.push(Change::Bad(format!("{program} ({part}): is new"))),
                (_, None) => changes.push(Change::Bad(format!("{program} ({part}): is gone"))),
            }
        }
        changes
    }
}

fn changed(part: &Part, program: &str, before: &Row, now: &Row) -> Vec<Change> {
    let mut changes = Vec::new();
    for (column, (before, now)) in COLUMNS.iter().zip(before.iter().zip(now)) {
        let (before, now) = (before.unwrap_or(0), now.unwrap_or(0));
        let change = format!("{program} ({part}): {column} {before} → {now}");
        let tolerated = part.tolerance(before);
        if now > before + tolerated {
            changes.push(Change::Bad(change));
        } else if now + tolerated < before {
            changes.push(Change::Good(change));
        }
    }
    changes
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["#", "program"].into_iter().chain(COLUMNS);
        let mut lines = vec![heading.map(str::to_owned).collect::<Vec<_>>()];
        for ((part, program), row) in &self.rows {
            let counts =
                row.map(|count| count.map_or_else(|| NONE.to_owned(), |count| count.to_string()));
            let names = [part.to_string(), program.clone()];
            lines.push(names.into_iter().chain(counts).collect());
        }
        let width = |column: usize| {
            let cells = lines.iter().map(|line| line[column].len());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..2 + COLUMNS.len()).map(width).collect();
        f.write_str(ABOUT)?;
        for line in &lines {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Names begin below each other, and numbers end so.
                match column {
                    0 => write!(f, "{cell:width$}")?,
                    1 => write!(f, "  {cell:width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(instructions: u64, helpers: u64, lookups: u64) -> Counts {
        Counts {
            instructions,
            helpers,
            lookups,
        }
    }

    fn table() -> Table {
        let mut table = Table::default();
        table.add(Part::Whole, "zt_egress", counts(1000, 20, 10));
        table.add(Part::Cached, "zt_egress/tcp", counts(100, 6, 4));
        let verified = [("zt_egress".to_owned(), 10_000)];
        table.add_verified("6.1", &verified);
        table
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = table().to_string();
        assert!(
            text.starts_with("# What the kernel programs take"),
            "{text}"
        );
        assert!(text.contains("cargo xtask counts --accept"), "{text}");
        assert!(
            text.ends_with(
                "cached     zt_egress/tcp           100             6            4\n\
                 linux-6.1  zt_egress             10000             -            -\n\
                 whole      zt_egress              1000            20           10\n"
            ),
            "{text}"
        );
        assert_eq!(Table::read(&text).unwrap(), table());
        for wrong in ["whole x 1 2", "whole x 1 2 many", "part x 1 2 3", "whole"] {
            let error = Table::read(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn what_grew_is_named_with_both_counts() {
        let mut now = table();
        assert_eq!(now.changes_since(&table()), []);
        now.add(Part::Cached, "zt_egress/tcp", counts(100, 7, 5));
        let bad = |text: &str| Change::Bad(text.to_owned());
        let expected = [
            bad("zt_egress/tcp (cached): helper calls 6 → 7"),
            bad("zt_egress/tcp (cached): map lookups 4 → 5"),
        ];
        assert_eq!(now.changes_since(&table()), expected);
    }

    #[test]
    fn what_shrank_is_good() {
        let mut now = table();
        now.add(Part::Whole, "zt_egress", counts(999, 20, 10));
        let expected = Change::Good("zt_egress (whole): instructions 1000 → 999".to_owned());
        assert_eq!(now.changes_since(&table()), [expected]);
    }

    #[test]
    fn a_program_that_is_gone_or_new_is_bad() {
        let mut more = table();
        more.add(Part::Whole, "zt_more", counts(1, 0, 0));
        let new = Change::Bad("zt_more (whole): is new".to_owned());
        assert_eq!(more.changes_since(&table()), [new]);
        let gone = Change::Bad("zt_more (whole): is gone".to_owned());
        assert_eq!(table().changes_since(&more), [gone]);
        // Also if it was the only one.
        let gone = table().changes_since(&table()).len();
        assert_eq!(gone, 0);
        assert_eq!(Table::default().changes_since(&table()).len(), 2);
    }

    #[test]
    fn a_kernel_counts_where_it_is_in_both_and_may_differ_a_little() {
        let with = |series: &str, count| {
            let mut now = table().without(&Part::Verified("6.1".to_owned()));
            now.add_verified(series, &[("zt_egress".to_owned(), count)]);
            now.changes_since(&table())
        };
        assert_eq!(with("6.12", 1), []);
        assert_eq!(with("6.1", 10_200), []);
        assert_eq!(with("6.1", 9_800), []);
        assert!(matches!(with("6.1", 10_201)[..], [Change::Bad(_)]));
        assert!(matches!(with("6.1", 9_799)[..], [Change::Good(_)]));
    }

    #[test]
    fn what_was_not_counted_anew_stays() {
        let mut now = Table::default();
        now.add(Part::Whole, "zt_other", counts(1, 1, 1));
        let replaced = table().replaced(&now);
        let mut expected = table();
        expected.rows.remove(&(Part::Whole, "zt_egress".to_owned()));
        expected.add(Part::Whole, "zt_other", counts(1, 1, 1));
        assert_eq!(replaced, expected);
    }
}
