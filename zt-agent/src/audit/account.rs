//! The sums that prove the trail complete. Pure.
//!
//! Of one epoch (one set of kernel maps):
//!
//! - the kernel decides *D* times: *D* = emitted + lost in the ring;
//! - of the emitted, *C* were consumed from the ring by some agent;
//! - *S* is what the trail says of them: the counts of all decision records
//!   and of all losses other than the ring's.
//!
//! While an agent runs, *C* = *S* + folding + shed. When it starts, it holds
//! nothing, so *C* − *S* is what an agent before it consumed and took to its
//! grave.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

/// Why decisions have no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The ring buffer was full; the only loss before consumption.
    RingFull,
    /// An agent died with them in its memory.
    Killed,
    /// The sink was too slow and its queue full.
    SinkSlow,
    /// The sink could not write (disk full, I/O error), and its queue filled.
    SinkError,
}

impl Cause {
    pub const ALL: [Self; 4] = [
        Self::RingFull,
        Self::Killed,
        Self::SinkSlow,
        Self::SinkError,
    ];

    /// The word used in records and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring-full",
            Self::Killed => "killed",
            Self::SinkSlow => "sink-slow",
            Self::SinkError => "sink-error",
        }
    }
}

/// Lost decisions by cause. As JSON: an object of the causes that occurred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses([u64; Cause::ALL.len()]);

impl Losses {
    #[must_use]
    pub const fn of(&self, cause: Cause) -> u64 {
        self.0[cause as usize]
    }

    pub fn add(&mut self, cause: Cause, count: u64) {
        let sum = &mut self.0[cause as usize];
        *sum = sum.saturating_add(count);
    }

    /// Causes with a count above 0.
    pub fn iter(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL
            .into_iter()
            .map(|cause| (cause, self.of(cause)))
            .filter(|(_, count)| *count > 0)
    }

    /// Everything lost after it was consumed: all but the ring's.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.iter()
            .filter(|(cause, _)| *cause != Cause::RingFull)
            .fold(0, |sum, (_, count)| sum.saturating_add(count))
    }

    fn take(&mut self, cause: Cause) -> u64 {
        std::mem::take(&mut self.0[cause as usize])
    }
}

impl Serialize for Losses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Losses {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut losses = Self::default();
        for (cause, count) in BTreeMap::<Cause, u64>::deserialize(deserializer)? {
            losses.add(cause, count);
        }
        Ok(losses)
    }
}

/// Sums that replace those of the file after an anomaly: everything consumed
/// so far counts as recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebase {
    pub consumed: u64,
    pub lost_ring: u64,
}

/// What one line does to the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    Recorded(u64),
    Lost(Cause, u64),
    Rebased(Rebase),
}

/// The trail's sums of one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Sum of the counts of all decision records.
    pub recorded: u64,
    pub lost: Losses,
}

impl Sums {
    /// *S*.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.recorded.saturating_add(self.lost.consumed())
    }

    /// The sums that a line states; `None` if its losses exceed its total.
    #[must_use]
    pub fn stated(total: u64, lost: Losses) -> Option<Self> {
        let recorded = total.checked_sub(lost.consumed())?;
        Some(Self { recorded, lost })
    }

    pub fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Recorded(count) => self.recorded = self.recorded.saturating_add(count),
            Effect::Lost(cause, count) => self.lost.add(cause, count),
            Effect::Rebased(rebase) => {
                self.recorded = rebase.consumed;
                self.lost = Losses::default();
                self.lost.add(Cause::RingFull, rebase.lost_ring);
            }
        }
    }
}

/// One agent's account of what it consumed.
#[derive(Clone, Debug)]
pub struct Account {
    /// *C*.
    consumed: u64,
    /// What was handed to the sink, which writes in order: *S*, once it has.
    handed: Sums,
    /// Not handed, and no loss record says so yet.
    shed: Losses,
    /// The kernel's count of ring losses, as last seen.
    lost_ring: u64,
}

impl Account {
    /// Takes over from the agent before. `found` are the sums of this epoch
    /// in the trail. What is missing is reported like anything shed.
    ///
    /// If the trail holds more than the kernel ever emitted it is not of this
    /// kernel's making; then the sums to go on with are in the second place.
    #[must_use]
    pub fn resume(found: Sums, consumed: u64, lost_ring: u64) -> (Self, Option<Rebase>) {
        let mut account = Self {
            consumed,
            handed: found,
            shed: Losses::default(),
            lost_ring,
        };
        if found.total() > consumed || found.lost.of(Cause::RingFull) > lost_ring {
            let rebase = Rebase {
                consumed,
                lost_ring,
            };
            return (account, Some(rebase));
        }
        account.shed.add(Cause::Killed, consumed - found.total());
        (account, None)
    }

    pub fn consume(&mut self) {
        self.consumed = self.consumed.saturating_add(1);
    }

    pub fn hand(&mut self, effect: Effect) {
        self.handed.apply(effect);
    }

    pub fn shed(&mut self, cause: Cause, count: u64) {
        self.shed.add(cause, count);
    }

    /// Takes note of the kernel's cumulative count of ring losses. Of counts
    /// that were read out of order the largest is right.
    pub fn see_ring_losses(&mut self, total: u64) {
        self.lost_ring = self.lost_ring.max(total);
    }

    /// A loss that no record speaks of yet.
    #[must_use]
    pub fn unreported(&self) -> Option<(Cause, u64)> {
        let ring = self
            .lost_ring
            .saturating_sub(self.handed.lost.of(Cause::RingFull));
        if ring > 0 {
            return Some((Cause::RingFull, ring));
        }
        self.shed.iter().next()
    }

    /// The loss record for `cause` was handed to the sink.
    pub fn reported(&mut self, cause: Cause, count: u64) {
        self.handed.apply(Effect::Lost(cause, count));
        if cause != Cause::RingFull {
            let before = self.shed.take(cause);
            self.shed.add(cause, before.saturating_sub(count));
        }
    }

    #[must_use]
    pub const fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Decisions shed that no loss record speaks of yet.
    #[must_use]
    pub fn shed_total(&self) -> u64 {
        self.shed.consumed()
    }

    /// All losses of this epoch, told or not.
    #[must_use]
    pub fn lost(&self) -> Losses {
        let mut lost = self.handed.lost;
        for (cause, count) in self.shed.iter() {
            lost.add(cause, count);
        }
        let ring = lost.of(Cause::RingFull);
        lost.add(Cause::RingFull, self.lost_ring.saturating_sub(ring));
        lost
    }

    #[must_use]
    pub const fn handed(&self) -> &Sums {
        &self.handed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_an_object_of_the_causes_that_occurred() {
        let mut losses = Losses::default();
        assert_eq!(serde_json::to_string(&losses).unwrap(), "{}");
        losses.add(Cause::SinkSlow, 2);
        losses.add(Cause::RingFull, 1);
        let text = serde_json::to_string(&losses).unwrap();
        assert_eq!(text, r#"{"ring-full":1,"sink-slow":2}"#);
        assert_eq!(serde_json::from_str::<Losses>(&text).unwrap(), losses);
        assert!(serde_json::from_str::<Losses>(r#"{"bad-luck":1}"#).is_err());
        assert_eq!(losses.consumed(), 2);
    }

    #[test]
    fn a_causes_name_is_the_one_in_the_records() {
        for cause in Cause::ALL {
            let text = serde_json::to_string(&cause).unwrap();
            assert_eq!(text, format!("\"{}\"", cause.name()));
        }
    }

    #[test]
    fn sums_with_more_losses_than_their_total_are_none() {
        let mut lost = Losses::default();
        lost.add(Cause::Killed, 3);
        lost.add(Cause::RingFull, 100);
        assert_eq!(Sums::stated(2, lost), None);
        assert_eq!(Sums::stated(5, lost).map(|sums| sums.recorded), Some(2));
    }

    #[test]
    fn ring_losses_seen_out_of_order_are_not_told_twice() {
        let (mut account, _) = Account::resume(Sums::default(), 0, 0);
        account.see_ring_losses(5);
        account.see_ring_losses(3);
        assert_eq!(account.unreported(), Some((Cause::RingFull, 5)));
        account.reported(Cause::RingFull, 5);
        assert_eq!(account.unreported(), None);
        assert_eq!(account.lost().of(Cause::RingFull), 5);
    }
}
