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

    /// One event was consumed; `record` puts it into words, if they are needed: where
    /// it finds no room nobody reads them, and who writes needs the time.
    pub fn decision(
        &mut self,
        event: &Event,
        now: Time,
        record: &mut dyn FnMut() -> Arc<Record>,
        offer: Offer<'_>,
    ) {
        self.account.consume();
        if self.fold.passes(event, record) {
            match self.report(now, offer) {
                Ok(()) => self.hand(record(), offer),
                Err(cause) => self.account.shed(cause, 1),
            }
        }
    }

    /// Writes the folded records whose window has ended by `boot`
    /// (`CLOCK_BOOTTIME` ns), and any loss that is still to be told.
    pub fn tick(&mut self, boot: u64, now: Time, offer: Offer<'_>) {
        // With a full queue they wait here rather than be shed there.
        while self.report(now, offer).is_ok()
            && let Some(record) = self.fold.due(boot)
        {
            self.hand(record, offer);
        }
    }

    /// Writes everything held.
    pub fn flush(&mut self, now: Time, offer: Offer<'_>) {
        for record in self.fold.flush() {
            self.hand(record, offer);
        }
        let _ = self.report(now, offer);
    }

    /// `total` is the kernel's cumulative count.
    pub fn ring_lost(&mut self, total: u64, now: Time, offer: Offer<'_>) {
        self.account.see_ring_losses(total);
        let _ = self.report(now, offer);
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

    /// Hands over a loss record for each loss that has none.
    ///
    /// # Errors
    /// If there was no room for all: why.
    fn report(&mut self, now: Time, offer: Offer<'_>) -> Result<(), Cause> {
        while let Some((cause, count)) = self.account.unreported() {
            offer(Content::Loss(Loss::new(now, cause, count)))?;
            self.account.reported(cause, count);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::super::testing::{at, distinct};
    use super::*;

    const QUEUE: usize = 4;

    #[test]
    fn what_finds_no_room_is_not_put_into_words() {
        let mut intake = Intake::resume(Fold::new(100, 2), Sums::default(), 0, 0).0;
        let full = &mut |_: Content| Err(Cause::SinkSlow);
        let (first, record) = at(distinct(1), 0);
        intake.decision(&first, Time(0), &mut || record.clone(), full);
        let (second, _) = at(distinct(2), 0);
        intake.decision(&second, Time(0), &mut || panic!("nobody reads it"), full);
        assert_eq!(intake.account().shed_total(), 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A decision whose event reached the ring and is consumed.
        Decide(u16),
        /// A decision whose event found the ring full.
        LoseInRing,
        SeeRingLosses,
        Tick(u64),
        /// The writer gets so many lines into the file.
        Write(usize),
        Fail(bool),
        Checkpoint,
        Kill,
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u16..3).prop_map(Step::Decide),
            1 => Just(Step::LoseInRing),
            1 => Just(Step::SeeRingLosses),
            2 => (0u64..150).prop_map(Step::Tick),
            4 => (1usize..4).prop_map(Step::Write),
            1 => any::<bool>().prop_map(Step::Fail),
            1 => Just(Step::Checkpoint),
            1 => Just(Step::Kill),
            1 => Just(Step::Close),
        ]
    }

    /// A kernel, an agent and a file.
    struct World {
        time: u64,
        decisions: u64,
        lost_ring: u64,
        intake: Intake,
        queue: VecDeque<Content>,
        failing: bool,
        file: Sums,
    }

    impl World {
        fn new() -> Self {
            Self {
                time: 0,
                decisions: 0,
                lost_ring: 0,
                intake: Intake::resume(Fold::new(100, 2), Sums::default(), 0, 0).0,
                queue: VecDeque::new(),
                failing: false,
                file: Sums::default(),
            }
        }

        fn with(&mut self, act: impl FnOnce(&mut Intake, Time, Offer<'_>)) {
            let (queue, failing) = (&mut self.queue, self.failing);
            act(&mut self.intake, Time(self.time), &mut |content| {
                if queue.len() < QUEUE {
                    queue.push_back(content);
                    Ok(())
                } else if failing {
                    Err(Cause::SinkError)
                } else {
                    Err(Cause::SinkSlow)
                }
            });
        }

        fn write(&mut self, count: usize) {
            for content in self.queue.drain(..count.min(self.queue.len())) {
                if let Content::Checkpoint(point) = &content {
                    check(point, &self.file);
                }
                self.file.apply(content.effect());
            }
        }

        fn restart(&mut self) {
            self.queue.clear();
            let consumed = self.decisions - self.lost_ring;
            let fold = Fold::new(100, 2);
            let (intake, rebase) = Intake::resume(fold, self.file, consumed, self.lost_ring);
            assert_eq!(rebase, None);
            self.intake = intake;
        }

        fn act(&mut self, step: &Step) {
            let time = self.time;
            match step {
                Step::Decide(kind) => {
                    self.decisions += 1;
                    let (event, record) = at(distinct(*kind), time);
                    self.with(|intake, now, offer| {
                        intake.decision(&event, now, &mut || record.clone(), offer);
                    });
                }
                Step::LoseInRing => {
                    self.decisions += 1;
                    self.lost_ring += 1;
                }
                Step::SeeRingLosses => {
                    let total = self.lost_ring;
                    self.with(|intake, now, offer| intake.ring_lost(total, now, offer));
                }
                Step::Tick(pause) => {
                    self.time += pause;
                    let time = self.time;
                    self.with(|intake, now, offer| intake.tick(time, now, offer));
                }
                Step::Write(count) => self.write(if self.failing { 0 } else { *count }),
                Step::Fail(failing) => self.failing = *failing,
                Step::Checkpoint => {
                    let kernel = self.kernel();
                    self.with(|intake, now, offer| {
                        intake.checkpoint(kernel, 1, now, offer);
                    });
                }
                Step::Kill => self.restart(),
                Step::Close => {
                    self.with(|intake, now, offer| intake.flush(now, offer));
                    self.write(QUEUE);
                    self.restart();
                }
            }
        }

        fn kernel(&self) -> KernelTotals {
            KernelTotals {
                decisions: self.decisions,
                emitted: self.decisions - self.lost_ring,
                lost_ring: self.lost_ring,
                uncounted: 0,
            }
        }

        /// D = S + ring losses + what is in flight, seen from the file.
        fn assert_reconciled(&self) {
            let queued: u64 = self
                .queue
                .iter()
                .map(|content| match content.effect() {
                    super::super::account::Effect::Recorded(count) => count,
                    super::super::account::Effect::Lost(cause, count)
                        if cause != Cause::RingFull =>
                    {
                        count
                    }
                    _ => 0,
                })
                .sum();
            let account = self.intake.account();
            let in_flight = queued + self.intake.pending() + account.shed_total();
            assert_eq!(
                self.decisions - self.lost_ring,
                self.file.total() + in_flight
            );
            assert_eq!(account.consumed(), self.decisions - self.lost_ring);
            assert!(self.file.lost.of(Cause::RingFull) <= self.lost_ring);
        }
    }

    fn check(point: &Checkpoint, file: &Sums) {
        assert_eq!(point.recorded, file.recorded);
        let flight = point.in_flight;
        assert_eq!((flight.unsettled, flight.ring), (0, 0));
        let told = file.total() + flight.folding + flight.shed;
        assert_eq!(point.kernel.emitted, told);
        assert_eq!(point.kernel.lost_ring, file.lost.of(Cause::RingFull));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn every_decision_is_recorded_lost_by_a_cause_or_in_flight(
            steps in prop::collection::vec(step(), 0..120)
        ) {
            let mut world = World::new();
            for step in &steps {
                world.act(step);
                world.assert_reconciled();
            }
            // With room again, everything is told.
            world.failing = false;
            for step in [Step::SeeRingLosses, Step::Tick(0), Step::Tick(200)] {
                for _ in 0..8 {
                    world.act(&step);
                    world.write(QUEUE);
                }
            }
            let sums = world.file;
            prop_assert_eq!(sums.total(), world.decisions - world.lost_ring);
            prop_assert_eq!(sums.lost.of(Cause::RingFull), world.lost_ring);
        }
    }

    #[test]
    fn what_a_killed_agent_had_consumed_is_a_loss() {
        let mut world = World::new();
        for kind in [1, 1, 2] {
            world.act(&Step::Decide(kind));
        }
        world.act(&Step::Write(1));
        world.act(&Step::Kill);
        world.act(&Step::Tick(0));
        world.act(&Step::Write(1));
        assert_eq!(world.file.recorded, 1);
        assert_eq!(world.file.lost.of(Cause::Killed), 2);
    }

    #[test]
    fn a_full_queue_sheds_by_cause_and_tells_when_there_is_room() {
        let mut world = World::new();
        for kind in 0..7 {
            world.act(&Step::Decide(kind));
        }
        world.act(&Step::Fail(true));
        world.act(&Step::Decide(7));
        world.act(&Step::Fail(false));
        world.write(QUEUE);
        world.act(&Step::Tick(0));
        world.write(QUEUE);
        assert_eq!(world.file.recorded, 4);
        assert_eq!(world.file.lost.of(Cause::SinkSlow), 3);
        assert_eq!(world.file.lost.of(Cause::SinkError), 1);
    }

    #[test]
    fn a_trail_that_holds_more_than_the_kernel_emitted_is_rebased() {
        let found = Sums {
            recorded: 10,
            ..Sums::default()
        };
        let (intake, rebase) = Intake::resume(Fold::new(0, 0), found, 4, 1);
        let wanted = Rebase {
            consumed: 4,
            lost_ring: 1,
        };
        assert_eq!(rebase, Some(wanted));
        assert_eq!(intake.account().lost().of(Cause::Killed), 0);
    }
}
