//! From overlapping port ranges to rows that one lookup answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
};

use zt_common::policy::{Entry, PolicyKey, RANGE_PREFIX, RangeKey};

use super::precedence::{Ruling, Weight, decide};
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

impl Plan {
    /// Adds its rows for a pair; the port of `pair` is 0.
    pub fn emit(
        &self,
        pair: &PolicyKey,
        policy: &mut impl Extend<(PolicyKey, Entry)>,
        range: &mut impl Extend<(RangeKey, Entry)>,
    ) {
        let at = |port| PolicyKey { port, ..*pair };
        let exact = self.exact.iter();
        policy.extend(exact.map(|(port, entry)| (at(*port), *entry)));
        let blocks = self.blocks.iter();
        range.extend(blocks.map(|(block, entry)| (block.key(pair), *entry)));
    }
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
    let others = segments
        .iter()
        .filter(|s| s.is_single() && s.entry != common);
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
            plan.blocks
                .extend(blocks.map(|block| (block, segment.entry)));
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
fn flatten<'a>(terms: impl Iterator<Item = &'a Term>) -> Vec<Segment> {
    let terms: Vec<&Term> = terms.collect();
    if let [term] = &terms[..]
        && let Some(segments) = alone(term)
    {
        return segments;
    }
    let cuts = cuts(&terms);
    let nexts = cuts.keys().skip(1).map(|next| next - 1);
    let lasts = nexts.chain([*ALL.end()]);

    let mut speaking = Speaking::default();
    let mut segments: Vec<Segment> = Vec::with_capacity(cuts.len());
    for ((first, changes), last) in cuts.iter().zip(lasts) {
        for (at, begins) in changes {
            speaking.change(*at, terms[*at], *begins);
        }
        let entry = decide(speaking.decisive(&terms));
        append(&mut segments, *first..=last, entry);
    }
    segments
}

fn append(segments: &mut Vec<Segment>, ports: RangeInclusive<u16>, entry: Entry) {
    let (first, last) = ports.into_inner();
    match segments.last_mut() {
        Some(before) if before.entry == entry => before.last = last,
        _ => segments.push(Segment { first, last, entry }),
    }
}

/// The same for a term that speaks alone, as most do. `None`: its ranges overlap, or
/// are not in order.
fn alone(term: &Term) -> Option<Vec<Segment>> {
    let said = decide(std::iter::once(&term.ruling));
    let mut segments = Vec::with_capacity(2 * term.ports.len() + 1);
    let mut next = Some(*ALL.start());
    for range in &term.ports {
        let (first, last) = ((*range.start()).max(*ALL.start()), *range.end());
        let before = next.filter(|next| *next <= first && first <= last)?;
        if before < first {
            append(&mut segments, before..=first - 1, Entry::default());
        }
        append(&mut segments, first..=last, said);
        next = last.checked_add(1);
    }
    if let Some(rest) = next {
        append(&mut segments, rest..=*ALL.end(), Entry::default());
    }
    Some(segments)
}

/// Where terms (by their place) begin (`true`) and end to speak. The first
/// port is always there.
fn cuts(terms: &[&Term]) -> BTreeMap<u16, Vec<(usize, bool)>> {
    let mut cuts: BTreeMap<u16, Vec<_>> = BTreeMap::from([(*ALL.start(), Vec::new())]);
    for (at, term) in terms.iter().enumerate() {
        for range in term.ports.iter().filter(|range| !range.is_empty()) {
            let first = (*range.start()).max(*ALL.start());
            cuts.entry(first).or_default().push((at, true));
            if let Some(after) = range.end().checked_add(1) {
                cuts.entry(after).or_default().push((at, false));
            }
        }
    }
    cuts
}

/// The terms that speak at one port, the decisive ones first: thousands of
/// rules for one pair must not be compared at each of thousands of ports.
#[derive(Default)]
struct Speaking {
    /// How many ranges of a term there are at this port.
    ranges: HashMap<usize, usize>,
    all: BTreeSet<(Weight, usize)>,
    /// Without those that are only audited.
    real: BTreeSet<(Weight, usize)>,
}

impl Speaking {
    fn change(&mut self, at: usize, term: &Term, begins: bool) {
        let ranges = self.ranges.entry(at).or_default();
        *ranges = if begins {
            *ranges + 1
        } else {
            ranges.saturating_sub(1)
        };
        let speaks = *ranges > 0;
        let key = (term.ruling.weight(), at);
        let real = (!term.ruling.audit).then_some(&mut self.real);
        for set in [Some(&mut self.all), real].into_iter().flatten() {
            if speaks {
                set.insert(key);
            } else {
                set.remove(&key);
            }
        }
    }

    /// Those that decide, now and with the audited ones: no others matter.
    fn decisive<'a>(&self, terms: &[&'a Term]) -> impl Iterator<Item = &'a Ruling> + Clone {
        let first = |set: &BTreeSet<(Weight, usize)>| set.first().map(|(_, at)| &terms[*at].ruling);
        [first(&self.real), first(&self.all)].into_iter().flatten()
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zt_common::policy::Side;

    use super::*;
    use crate::{
        compile::{Tables, lookup},
        model::RuleAction,
    };

    fn term(rank: usize, action: RuleAction, ports: &[(u16, u16)]) -> Term {
        Term {
            ruling: Ruling {
                rank: (rank, 1),
                number: u32::try_from(rank).unwrap() + 1,
                action,
                deadline: 0,
                audit: false,
            },
            ports: ports.iter().map(|(first, last)| *first..=*last).collect(),
        }
    }

    fn allow(ports: &[(u16, u16)]) -> Term {
        term(0, RuleAction::Allow, ports)
    }

    fn planned(terms: &[Term]) -> Plan {
        plan(terms.iter())
    }

    fn exact_ports(plan: &Plan) -> Vec<u16> {
        plan.exact.iter().map(|(port, _)| *port).collect()
    }

    #[test]
    fn single_ports_are_rows_of_their_own_and_the_rest_has_none() {
        let plan = planned(&[allow(&[(80, 80), (443, 443)])]);
        assert_eq!(exact_ports(&plan), [80, 443]);
        assert!(plan.blocks.is_empty());
    }

    #[test]
    fn any_port_is_one_row() {
        let plan = planned(&[allow(&[(1, 65535)])]);
        assert_eq!((exact_ports(&plan), plan.blocks), (vec![0], vec![]));
    }

    #[test]
    fn an_exception_from_any_port_is_a_row_beside_it() {
        let plan = planned(&[allow(&[(1, 65535)]), term(1, RuleAction::Deny, &[(22, 22)])]);
        assert_eq!(exact_ports(&plan), [22, 0]);
        assert_eq!(plan.exact[0].1.now.action, 2);
    }

    #[test]
    fn a_single_port_that_is_like_the_rest_has_no_row() {
        let denied = term(1, RuleAction::Deny, &[(20, 20), (22, 22)]);
        let plan = planned(&[allow(&[(1, 65535)]), denied]);
        assert_eq!(exact_ports(&plan), [20, 22, 0]);
    }

    #[test]
    fn a_single_port_that_nobody_allows_is_kept_out_of_the_rest() {
        let plan = planned(&[allow(&[(1, 79), (81, 65535)])]);
        assert_eq!(exact_ports(&plan), [80, 0]);
        assert_eq!(plan.exact[0].1, Entry::default());
    }

    #[test]
    fn a_range_is_cut_into_blocks_below_a_pointer() {
        let plan = planned(&[allow(&[(5, 16), (100, 100)])]);
        assert_eq!(exact_ports(&plan), [0, 100]);
        let pointer = plan.exact[0].1;
        assert_eq!((pointer.ranges, pointer.now), (1, Side::default()));
        let cuts: Vec<_> = plan.blocks.iter().map(|(b, _)| (b.first, b.bits)).collect();
        assert_eq!(cuts, [(5, 16), (6, 15), (8, 13), (16, 16)]);
        assert!(plan.blocks.iter().all(|(_, entry)| entry.ranges == 0));
    }

    #[test]
    fn neighbours_that_say_the_same_are_one() {
        let plan = planned(&[allow(&[(80, 80), (81, 81)]), allow(&[(82, 83)])]);
        let cuts: Vec<_> = plan.blocks.iter().map(|(b, _)| (b.first, b.bits)).collect();
        assert_eq!(cuts, [(80, 14)]);
    }

    #[test]
    fn what_only_the_audited_say_is_a_difference() {
        let mut audited = term(1, RuleAction::Deny, &[(80, 80)]);
        audited.ruling.audit = true;
        let plan = planned(&[allow(&[(1, 65535)]), audited]);
        assert_eq!(exact_ports(&plan), [80, 0]);
        let (_, entry) = plan.exact[0];
        assert_eq!((entry.now.action, entry.would.action), (1, 2));
    }

    #[test]
    fn the_last_port_is_no_overflow() {
        let plan = planned(&[allow(&[(65534, 65535)])]);
        let cuts: Vec<_> = plan.blocks.iter().map(|(b, _)| (b.first, b.bits)).collect();
        assert_eq!(cuts, [(65534, 15)]);
        assert_eq!(exact_ports(&planned(&[allow(&[(65535, 65535)])])), [65535]);
    }

    fn terms() -> impl Strategy<Value = Vec<Term>> {
        let port = prop_oneof![1..40_u16, 65500..=65535_u16, 1..=65535_u16];
        let range = (port.clone(), port).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let action = prop_oneof![Just(RuleAction::Allow), Just(RuleAction::Deny)];
        let one = (
            action,
            prop::collection::vec(range, 0..4),
            0..4_u64,
            any::<bool>(),
        );
        prop::collection::vec(one, 1..6).prop_map(|bodies| {
            let terms = bodies.into_iter().enumerate();
            terms
                .map(|(rank, (action, ports, deadline, audit))| {
                    let mut term = term(rank, action, &ports);
                    term.ruling.deadline = deadline;
                    term.ruling.audit = audit;
                    term
                })
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_lookup_gives_what_deciding_each_port_would(terms in terms()) {
            let pair = PolicyKey { source: 300, destination: 301, protocol: 6, ..PolicyKey::default() };
            let plan = planned(&terms);
            let mut tables = Tables::default();
            let exact = plan.exact.iter();
            tables.policy = exact.map(|(port, entry)| (PolicyKey { port: *port, ..pair }, *entry)).collect();
            tables.range = plan.blocks.iter().map(|(block, entry)| (block.key(&pair), *entry)).collect();
            prop_assert_eq!(tables.policy.len(), plan.exact.len());
            prop_assert_eq!(tables.range.len(), plan.blocks.len());
            for port in (1..200).chain(65400..=65535).chain((200..65400).step_by(37)) {
                let here = terms.iter().filter(|term| term.ports.iter().any(|range| range.contains(&port)));
                let naive = decide(here.map(|term| &term.ruling));
                let found = lookup::entry(&tables, 300, 301, 6, port);
                prop_assert_eq!((found.now, found.would), (naive.now, naive.would), "port {}", port);
            }
        }
    }
}
