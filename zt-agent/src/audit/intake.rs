//! From a consumed event to the sink's queue. Pure: the queue is a closure.

use std::sync::Arc;

use zt_common::event::Event;

use super::{
    account::{Account, Cause, Rebase, Sums},
    fold::Fold,
    record::{Anomaly, Checkpoint, Content, InFlight, KernelTotals, Loss, Record, Time},
};

/// Takes one line for the sink, or says why it cannot.
pub type Offer<'a> = &'a mut dyn FnMut(Content) -> Result<(), Cause>;

/// Everything between the ring and the queue. What it holds dies with the
/// agent, and is then missing from *S*.
#[derive(Debug)]
pub struct Intake {
    fold: Fold,
    account: Account,
}

impl Intake {
    /// See [`Account::resume`].
    #[must_use]
    pub fn resume(
        fold: Fold,
        found: Sums,
        consumed: u64,
        lost_ring: u64,
    ) -> (Self, Option<Rebase>) {
        let (account, rebase) = Account::resume(found, consumed, lost_ring);
        (Self { fold, account }, rebase)
    }

    /// One event was consumed; `record` is it in words.
    pub fn decision(&mut self, event: &Event, record: &Arc<Record>, offer: Offer<'_>) {
        self.account.consume();
        if self.fold.passes(event, record) {
            self.report(record.timestamp, offer);
            self.hand(record.clone(), offer);
        }
    }

    /// Writes the folded records whose window has ended by `boot`
    /// (`CLOCK_BOOTTIME` ns), and any loss that is still to be told.
    pub fn tick(&mut self, boot: u64, now: Time, offer: Offer<'_>) {
        self.report(now, offer);
        while let Some(record) = self.fold.due(boot) {
            self.hand(record, offer);
        }
    }

    /// Writes everything held.
    pub fn flush(&mut self, now: Time, offer: Offer<'_>) {
        for record in self.fold.flush() {
            self.hand(record, offer);
        }
        self.report(now, offer);
    }

    /// `total` is the kernel's cumulative count.
    pub fn ring_lost(&mut self, total: u64, now: Time, offer: Offer<'_>) {
        self.account.see_ring_losses(total);
        self.report(now, offer);
    }

    /// Something that must not happen did.
    pub fn anomaly(&mut self, anomaly: Anomaly, offer: Offer<'_>) {
        let content = Content::Anomaly(anomaly);
        let effect = content.effect();
        if offer(content).is_ok() {
            self.account.hand(effect);
        }
    }

    /// Sets the kernel's totals beside the trail's. Returns whether the queue
    /// had room.
    pub fn checkpoint(
        &mut self,
        mut kernel: KernelTotals,
        generation: u32,
        now: Time,
        offer: Offer<'_>,
    ) -> bool {
        self.ring_lost(kernel.lost_ring, now, offer);
        // A larger count may have been read before, and is in the trail.
        kernel.lost_ring = self.account.lost().of(Cause::RingFull);
        let handed = *self.account.handed();
        if handed.lost.of(Cause::RingFull) != kernel.lost_ring {
            return false;
        }
        let checkpoint = Checkpoint {
            kind: "checkpoint",
            timestamp: now,
            generation,
            kernel,
            recorded: handed.recorded,
            losses: handed.lost,
            in_flight: self.in_flight(&kernel),
        };
        offer(Content::Checkpoint(checkpoint)).is_ok()
    }

    fn in_flight(&self, kernel: &KernelTotals) -> InFlight {
        let settled = kernel.emitted.saturating_add(kernel.lost_ring);
        InFlight {
            unsettled: difference(kernel.decisions, settled),
            ring: difference(kernel.emitted, self.account.consumed()),
            folding: self.fold.pending(),
            shed: self.account.shed_total(),
        }
    }

    fn hand(&mut self, record: Arc<Record>, offer: Offer<'_>) {
        let count = record.count;
        let content = Content::Decision(record);
        let effect = content.effect();
        match offer(content) {
            Ok(()) => self.account.hand(effect),
            Err(cause) => self.account.shed(cause, count),
        }
    }

    /// Hands over a loss record for each loss that has none, while there is
    /// room.
    fn report(&mut self, now: Time, offer: Offer<'_>) {
        while let Some((cause, count)) = self.account.unreported() {
            if offer(Content::Loss(Loss::new(now, cause, count))).is_err() {
                return;
            }
            self.account.reported(cause, count);
        }
    }

    /// Decisions held by folding.
    #[must_use]
    pub const fn pending(&self) -> u64 {
        self.fold.pending()
    }

    #[must_use]
    pub const fn account(&self) -> &Account {
        &self.account
    }
}

fn difference(a: u64, b: u64) -> i64 {
    let wide = i128::from(a) - i128::from(b);
    i64::try_from(wide).unwrap_or(if wide < 0 { i64::MIN } else { i64::MAX })
}
