//! Gives numbers to identities, classes and rules, and takes them back.
//!
//! A number may mean somebody else only when nothing refers to it any more.
//! What can refer to one, and why nothing does when it is given back:
//!
//! 1. *Rows* of the versioned maps: it is in none of the generation in force,
//!    and what ended before was collected.
//! 2. *Verdicts that were kept*, in flows and in sockets, and the programs that
//!    run: [`Store::forget`] makes all of them worthless (a verdict of before a
//!    narrowing generation is never used) and waits for a grace period.
//! 3. *Events* on their way: the ring was read past everything that had been
//!    put into it by then.
//! 4. *Counters*: after that nobody counts for it. Its counts go to the reserved
//!    identity `retired`, so the sums stay what they were; a rule's begin anew.
//!    What is to be written is noted in a file first, so that a SIGKILL in
//!    between loses and doubles nothing.
//! 5. *Quarantine*: who is quarantined keeps his number. A Service does not: it is
//!    cut off for somebody behind it, as any later one with him will be; whoever
//!    is behind one could make new ones for ever. Its row is cleared.
//! 6. *Its name*, which goes last: until then a new agent finds it taken, and
//!    it takes every number that was ever given out for taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use zt_common::{
    identity::{Number, RETIRED},
    state::CountKey,
};

use super::{
    KernelError,
    counters::Counters,
    names::NameMaps,
    pins::Pins,
    ring,
    store::Store,
    trust::TrustMap,
    unused::{Numbered, Want},
};
use crate::{
    compile::{Needs, Tables},
    model::{Name, Numbers, names::OutOfNumbers},
    source::atomic,
};

/// Numbers that nobody needs are left alone up to this many: taking them back
/// has every verdict decided anew.
const SPARE: usize = 1024;

/// Owner of the numbers.
pub struct Keeper {
    pins: Pins,
    names: NameMaps,
    trust: TrustMap,
    counters: Counters,
    /// Others have a part in them: they are replaced and not altered.
    numbers: Arc<Numbers>,
    journal: PathBuf,
    /// See [`SPARE`].
    pub spare: usize,
    /// What numbers were given for last: what is in force needs them, also where
    /// no row names them. A rule may select nobody on this node.
    needed: Numbered,
    condemned: Option<Condemned>,
}

/// Numbers that go as soon as the ring was read.
#[derive(Debug)]
struct Condemned {
    those: Numbered,
    /// Events emitted by then.
    emitted: u64,
}

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
pub enum GiveError {
    #[error(transparent)]
    Out(#[from] OutOfNumbers),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Keeper {
    /// Takes over what the pinned maps say. `directory` is for its notes; it
    /// need not outlive a reboot.
    ///
    /// # Errors
    /// When the maps are not pinned, or what was begun cannot be finished.
    pub fn open(pins: &Pins, directory: &Path) -> Result<Self, KernelError> {
        let names = NameMaps::open(pins)?;
        let mut keeper = Self {
            pins: pins.clone(),
            numbers: names.read()?.into(),
            names,
            trust: TrustMap::open(pins)?,
            counters: Counters::open(pins)?,
            journal: directory.join("retiring.json"),
            spare: SPARE,
            needed: Numbered::default(),
            condemned: None,
        };
        keeper.replay()?;
        Ok(keeper)
    }

    #[must_use]
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// The same, to keep. While nothing changes it is the same one.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Numbers> {
        self.numbers.clone()
    }

    /// Writes the names anew that somebody altered, and removes those that are
    /// nobody's. Gives how many there were.
    ///
    /// # Errors
    /// When a call fails.
    pub fn restore_names(&self) -> Result<usize, KernelError> {
        // While numbers are on their way back, names are, too.
        if self.condemned.is_some() {
            return Ok(0);
        }
        self.names.restore(&self.numbers)
    }

    /// Gives everything that is needed a number. `fresh`: the names of the
    /// reserved numbers were never written.
    ///
    /// # Errors
    /// When there is none left, or the kernel refuses; then nothing changed.
    pub fn give(&mut self, needs: &Needs, fresh: bool) -> Result<(), GiveError> {
        // As a rule everything has one.
        let known = Numbered::all(needs, &self.numbers).filter(|_| !fresh);
        self.needed = match known {
            Some(needed) => needed,
            None => {
                self.give_new(needs)?;
                Numbered::of(needs, &self.numbers)
            }
        };
        // Who is needed again keeps the number.
        if let Some(Condemned { those, .. }) = &mut self.condemned {
            those.numbers = &those.numbers - &self.needed.numbers;
            those.rules = &those.rules - &self.needed.rules;
        }
        Ok(())
    }

    fn give_new(&mut self, needs: &Needs) -> Result<(), GiveError> {
        let mut numbers = self.numbers.as_ref().clone();
        for name in &needs.names {
            numbers.intern(name)?;
        }
        for rule in &needs.rules {
            numbers.intern_rule(rule)?;
        }
        self.names.write(&numbers, &self.numbers)?;
        self.numbers = numbers.into();
        Ok(())
    }

    /// Takes numbers back if many are not needed; call it when a change is in
    /// force. `now`: however few they are. Gives whether any came back.
    ///
    /// # Errors
    /// When a call fails; the numbers stay as they are.
    pub fn tidy(&mut self, store: &mut Store, now: bool) -> Result<bool, KernelError> {
        if self.condemned.is_none() && (now || self.are_many_dead()) {
            self.condemn(store, &self.needed.clone(), None)?;
        }
        self.finish()
    }

    /// The same, however few they are, if one of those for which `needs` has too
    /// few would come back: otherwise nothing is decided anew for it. What `needs`
    /// and what is in force both want does not: it would be given again.
    ///
    /// # Errors
    /// When a call fails; the numbers stay as they are.
    pub fn make_room(&mut self, store: &mut Store, needs: &Needs) -> Result<bool, KernelError> {
        if self.condemned.is_none() {
            let kept = self.needed.and(&Numbered::of(needs, &self.numbers));
            let want = Want::of(needs, &self.numbers);
            self.condemn(store, &kept, Some(want))?;
        }
        self.finish()
    }

    /// Once the ring was read.
    fn finish(&mut self) -> Result<bool, KernelError> {
        if self.condemned.is_none() {
            return Ok(false);
        }
        let read = ring::consumed(&self.pins)?;
        match self
            .condemned
            .take_if(|condemned| condemned.emitted <= read)
        {
            Some(condemned) => self.retire(condemned),
            None => Ok(false),
        }
    }

    /// Whether numbers wait for the ring to be read.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.condemned.is_some()
    }

    fn are_many_dead(&self) -> bool {
        let (names, rules) = self.numbers.count();
        let many = |given: usize, needed: usize| given > needed + needed.max(self.spare);
        many(names, self.needed.numbers.len()) || many(rules, self.needed.rules.len())
    }

    fn condemn(
        &mut self,
        store: &mut Store,
        kept: &Numbered,
        want: Option<Want>,
    ) -> Result<(), KernelError> {
        // Not for nothing.
        let dead = self.dead(store.current(), kept)?;
        if !want.map_or(!dead.is_empty(), |want| want.is_among(&dead, &self.numbers)) {
            return Ok(());
        }
        store.forget()?;
        self.condemned = Some(Condemned {
            those: self.dead(store.current(), kept)?,
            emitted: ring::emitted(&self.pins)?,
        });
        Ok(())
    }

    /// What is given and in no table, and neither kept nor somebody's who is
    /// quarantined.
    fn dead(&self, tables: &Tables, kept: &Numbered) -> Result<Numbered, KernelError> {
        let mut dead = Numbered::unused(&self.numbers, tables, kept);
        let (people, _) = self.quarantined(&dead.numbers)?;
        dead.numbers = &dead.numbers - &people;
        Ok(dead)
    }

    /// Who of these is quarantined: people, of whom nobody may forget it, and
    /// Services.
    fn quarantined(
        &self,
        among: &BTreeSet<Number>,
    ) -> Result<(BTreeSet<Number>, BTreeSet<Number>), KernelError> {
        let found = self.trust.quarantined(among.iter().copied())?;
        let services = self.numbers.names();
        let services = services.filter(|(name, _)| matches!(name, Name::Service(_)));
        let services: BTreeSet<Number> = services.map(|(_, number)| number).collect();
        Ok((&found - &services, &found & &services))
    }

    fn retire(&mut self, mut condemned: Condemned) -> Result<bool, KernelError> {
        let (people, services) = self.quarantined(&condemned.those.numbers)?;
        condemned.those.numbers = &condemned.those.numbers - &people;
        let Numbered { numbers, rules } = &condemned.those;
        let folding = Folding::of(&self.counters.counts()?, numbers);
        self.note(&folding)?;
        self.counters.fold(&folding.gone(), &folding.counts())?;
        self.forget_notes()?;
        for rule in rules {
            self.counters.reset_hits(*rule)?;
        }
        for number in services {
            self.trust.set(number, false)?;
        }
        self.names.remove(numbers, rules)?;
        Arc::make_mut(&mut self.numbers).release(numbers, rules);
        tracing::info!(
            identities = numbers.len(),
            rules = rules.len(),
            "numbers that nothing refers to can be given out again"
        );
        Ok(!numbers.is_empty() || !rules.is_empty())
    }

    fn note(&self, folding: &Folding) -> Result<(), KernelError> {
        let note = Note {
            epoch: super::view::control(&self.pins)?.epoch,
            folding: folding.clone(),
        };
        let failed = |text: String| KernelError::Io {
            path: self.journal.clone(),
            source: std::io::Error::other(text),
        };
        let bytes = serde_json::to_vec(&note).map_err(|error| failed(error.to_string()))?;
        atomic::write(&self.journal, &bytes).map_err(|error| failed(error.to_string()))
    }

    fn forget_notes(&self) -> Result<(), KernelError> {
        match fs::remove_file(&self.journal) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(KernelError::io(&self.journal)(error))
            }
            _ => Ok(()),
        }
    }

    /// Finishes what an agent before this one began.
    fn replay(&mut self) -> Result<(), KernelError> {
        let Ok(bytes) = fs::read(&self.journal) else {
            return Ok(());
        };
        if let Ok(note) = serde_json::from_slice::<Note>(&bytes)
            && note.epoch == super::view::control(&self.pins)?.epoch
        {
            self.counters
                .fold(&note.folding.gone(), &note.folding.counts())?;
        }
        self.forget_notes()
    }
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Of the maps: a reboot makes new ones.
    epoch: u64,
    folding: Folding,
}

/// Counts that go, and counts as they will be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Folding {
    gone: Vec<Key>,
    counts: Vec<(Key, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    source: Number,
    destination: Number,
    verdict: u8,
    reason: u8,
    direction: u8,
}

impl From<CountKey> for Key {
    fn from(key: CountKey) -> Self {
        Self {
            source: key.source,
            destination: key.destination,
            verdict: key.verdict,
            reason: key.reason,
            direction: key.direction,
        }
    }
}

impl From<Key> for CountKey {
    fn from(key: Key) -> Self {
        Self {
            source: key.source,
            destination: key.destination,
            verdict: key.verdict,
            reason: key.reason,
            direction: key.direction,
            zero: 0,
        }
    }
}

impl Folding {
    /// Everything that was counted for one of `numbers` becomes `retired`'s.
    fn of(counts: &BTreeMap<CountKey, u64>, numbers: &BTreeSet<Number>) -> Self {
        let after = |number: Number| {
            if numbers.contains(&number) {
                RETIRED
            } else {
                number
            }
        };
        let mut gone = Vec::new();
        let mut sums: BTreeMap<CountKey, u64> = BTreeMap::new();
        for (key, count) in counts {
            let new = CountKey {
                source: after(key.source),
                destination: after(key.destination),
                ..*key
            };
            if new != *key {
                let before = || counts.get(&new).copied().unwrap_or(0);
                *sums.entry(new).or_insert_with(before) += count;
                gone.push((*key).into());
            }
        }
        let counts = sums.into_iter().map(|(key, count)| (key.into(), count));
        Self {
            gone,
            counts: counts.collect(),
        }
    }

    fn gone(&self) -> Vec<CountKey> {
        self.gone.iter().map(|key| (*key).into()).collect()
    }

    fn counts(&self) -> BTreeMap<CountKey, u64> {
        let counts = self.counts.iter();
        counts.map(|(key, count)| ((*key).into(), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: Number, destination: Number, reason: u8) -> CountKey {
        CountKey {
            source,
            destination,
            verdict: 1,
            reason,
            direction: 1,
            zero: 0,
        }
    }

    #[test]
    fn folding_keeps_every_sum_and_is_the_same_done_twice() {
        let before = BTreeMap::from([
            (key(300, 301, 1), 5),
            (key(300, 302, 1), 7),
            (key(301, 300, 2), 11),
            (key(RETIRED, 302, 1), 100),
            (key(302, 302, 1), 1),
        ]);
        let folding = Folding::of(&before, &BTreeSet::from([300, 301]));
        let fold = |counts: &BTreeMap<CountKey, u64>| {
            let mut after = counts.clone();
            after.retain(|key, _| !folding.gone().contains(key));
            after.extend(folding.counts());
            after
        };
        let after = fold(&before);
        let expected = BTreeMap::from([
            (key(RETIRED, RETIRED, 1), 5),
            (key(RETIRED, RETIRED, 2), 11),
            (key(RETIRED, 302, 1), 107),
            (key(302, 302, 1), 1),
        ]);
        assert_eq!(after, expected);
        assert_eq!(fold(&after), expected);
        assert_eq!(before.values().sum::<u64>(), after.values().sum::<u64>());
        let note = serde_json::to_vec(&Note {
            epoch: 7,
            folding: folding.clone(),
        })
        .unwrap();
        assert_eq!(
            serde_json::from_slice::<Note>(&note).unwrap().folding,
            folding
        );
    }
}
