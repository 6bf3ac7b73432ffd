//! From overlapping port ranges to rows that one lookup answers.

use std::ops::RangeInclusive;

use zt_common::policy::{Entry, PolicyKey, RANGE_PREFIX, RangeKey};

use super::precedence::{Ruling, decide};
use crate::model::Ports;

/// All ports that a packet can have.
pub const ALL: RangeInclusive<u16> = 1..=u16::MAX;

/// A rule and the ports for which one of its targets speaks.
#[derive(Clone, Debug)]
pub struct Term {
    pub ruling: Ruling,
    pub ports: Vec<RangeInclusive<u16>>,
}

/// The ranges of a target.
pub fn ranges(ports: &Ports) -> Vec<RangeInclusive<u16>> {
    match ports {
        Ports::Any => vec![ALL],
        Ports::Ranges(ranges) => ranges.clone(),
    }
}

/// What is to be written for one pair and protocol, without the pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Rows of the policy table, by port.
    pub exact: Vec<(u16, Entry)>,
    /// Rows of the range table.
    pub blocks: Vec<(Block, Entry)>,
}

/// An aligned power-of-two block of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    first: u16,
    /// Bits of the port that count.
    bits: u32,
}

/// The plan for a protocol without ports.
pub fn portless<'a>(terms: impl Iterator<Item = &'a Term> + Clone) -> Plan {
    Plan {
        exact: vec![(0, decide(terms.map(|term| &term.ruling)))],
        blocks: Vec::new(),
    }
}

/// The plan for a protocol with ports.
pub fn plan<'a>(terms: impl Iterator<Item = &'a Term> + Clone) -> Plan {
    let segments = flatten(terms);
    let mut wide = segments.iter().filter(|s| !s.is_single()).map(|s| s.entry);
    let common = wide.next().unwrap_or_default();
    if wide.all(|entry| entry == common) {
        around(common, &segments)
    } else {
        ranged(&segments)
    }
}

/// All ports but a few single ones are alike: they are the row with port 0.
fn around(common: Entry, segments: &[Segment]) -> Plan {
    let others = segments.iter().filter(|s| s.is_single() && s.entry != common);
    let mut exact: Vec<_> = others.map(|s| (s.first, s.entry)).collect();
    if common != Entry::default() {
        exact.push((0, common));
    }
    Plan {
        exact,
        blocks: Vec::new(),
    }
}

/// The row with port 0 only says: look among the blocks.
fn ranged(segments: &[Segment]) -> Plan {
    let pointer = Entry {
        ranges: 1,
        ..Entry::default()
    };
    let mut plan = Plan {
        exact: vec![(0, pointer)],
        blocks: Vec::new(),
    };
    for segment in segments.iter().filter(|s| s.entry != Entry::default()) {
        if segment.is_single() {
            plan.exact.push((segment.first, segment.entry));
        } else {
            let blocks = blocks(segment.first, segment.last);
            plan.blocks.extend(blocks.map(|block| (block, segment.entry)));
        }
    }
    plan
}

/// Ports that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    first: u16,
    last: u16,
    entry: Entry,
}

impl Segment {
    const fn is_single(&self) -> bool {
        self.first == self.last
    }
}

/// Cuts 1..=65535 wherever a range begins or ends and decides each piece.
/// The pieces are in order and neighbours differ.
fn flatten<'a>(terms: impl Iterator<Item = &'a Term> + Clone) -> Vec<Segment> {
    let mut starts: Vec<u16> = vec![*ALL.start()];
    for range in terms.clone().flat_map(|term| &term.ports) {
        starts.push(*range.start());
        starts.extend(range.end().checked_add(1));
    }
    starts.retain(|port| ALL.contains(port));
    starts.sort_unstable();
    starts.dedup();

    let mut segments: Vec<Segment> = Vec::with_capacity(starts.len());
    for (at, first) in starts.iter().copied().enumerate() {
        let last = starts.get(at + 1).map_or(*ALL.end(), |next| next - 1);
        let here = terms.clone().filter(|t| t.ports.iter().any(|range| range.contains(&first)));
        let entry = decide(here.map(|term| &term.ruling));
        match segments.last_mut() {
            Some(before) if before.entry == entry => before.last = last,
            _ => segments.push(Segment { first, last, entry }),
        }
    }
    segments
}

/// The fewest aligned power-of-two blocks that make up `first..=last`.
fn blocks(first: u16, last: u16) -> impl Iterator<Item = Block> {
    let mut next = Some(first);
    std::iter::from_fn(move || {
        let start = next.filter(|start| *start <= last)?;
        let room = u32::from(last) - u32::from(start) + 1;
        let free = start.trailing_zeros().min(room.ilog2());
        let size = 1_u32 << free;
        next = u16::try_from(u32::from(start) + size).ok();
        Some(Block {
            first: start,
            bits: u16::BITS - free,
        })
    })
}

impl Block {
    /// The key of this block for the pair and protocol of `pair`.
    pub const fn key(self, pair: &PolicyKey) -> RangeKey {
        RangeKey {
            prefix_len: RANGE_PREFIX + self.bits,
            port: self.first.to_be_bytes(),
            ..RangeKey::lookup(pair)
        }
    }
}
