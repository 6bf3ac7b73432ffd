//! All versioned maps together: adopt what is pinned, apply a change all at
//! once, collect what nobody can see any more.

use std::{collections::BTreeMap, sync::Arc};

use aya::Pod;
use zt_common::{
    address::{AddressKey, CidrKey, Interface, Peer, Workload},
    policy::{Entry, PolicyKey, RangeKey},
    state::Control,
    version::{FOREVER, Generation, Row, Version},
};

use super::{
    KernelError,
    control::ControlPage,
    grace::Grace,
    pins::Pins,
    repair::{Repair, What},
    sys,
    table::Table,
};
use crate::{
    compile::Tables,
    diff::{self, Change, TablesDiff},
};

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The generation in force afterwards.
    pub generation: Generation,
    /// Rows written before the flip; 0: nothing had to change.
    pub rows: usize,
    /// It took a permission away, so cached allows are decided again.
    pub narrows: bool,
}

/// The versioned maps and the word that makes a generation active. There is
/// one writer: whoever holds this.
#[derive(Debug)]
pub struct Store {
    policy: Table<PolicyKey, Entry, 4>,
    range: Table<RangeKey, Entry, 4>,
    address: Table<AddressKey, Peer, 4>,
    cidr: Table<CidrKey, Peer, 4>,
    workload: Table<u64, Workload, 0>,
    interface: Table<u32, Interface, 4>,
    control: ControlPage,
    grace: Grace,
    current: Arc<Tables>,
    /// A change was left half written: look at the maps before the next one.
    dirty: bool,
    /// What was put right since somebody asked.
    repairs: Vec<Repair>,
}

impl Store {
    /// Opens the pinned maps and takes over what they hold in the active
    /// generation. Leftovers of a change that was never made active, and rows
    /// that were not collected yet, are removed.
    ///
    /// # Errors
    /// When the maps are not pinned or a call fails.
    pub fn adopt(pins: &Pins) -> Result<Self, KernelError> {
        let control = sys::get_pinned(&pins.map("zt_control_v1"))
            .map_err(|_| KernelError::NotRunning(pins.directory().into()))?;
        let mut store = Self {
            policy: Table::open(pins, "zt_policy_v1")?,
            range: Table::open(pins, "zt_range_v1")?,
            address: Table::open(pins, "zt_address_v1")?,
            cidr: Table::open(pins, "zt_cidr_v1")?,
            workload: Table::open(pins, "zt_workload_v1")?,
            interface: Table::open(pins, "zt_interface_v1")?,
            control: ControlPage::map(std::os::fd::AsFd::as_fd(&control))?,
            grace: Grace::new()?,
            current: Arc::default(),
            dirty: true,
            repairs: Vec::new(),
        };
        store.settle()?;
        Ok(store)
    }

    /// The control element.
    #[must_use]
    pub fn control(&self) -> &ControlPage {
        &self.control
    }

    /// What the maps hold in the active generation, as last written by us.
    #[must_use]
    pub fn current(&self) -> &Tables {
        &self.current
    }

    /// The same, to keep.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Tables> {
        self.current.clone()
    }

    /// Makes the maps hold `wanted`, all of it at one instant. `takes_over`: see
    /// [`Compiled`](crate::compile::Compiled).
    ///
    /// # Errors
    /// What was in force stays in force.
    pub fn apply(
        &mut self,
        wanted: impl Into<Arc<Tables>>,
        takes_over: bool,
    ) -> Result<Applied, KernelError> {
        let wanted = wanted.into();
        // Everything below believes it.
        self.restore_control()?;
        if self.dirty {
            self.settle()?;
        }
        let change = TablesDiff::between(&self.current, &wanted);
        let (active, narrowed) = self.control.generations();
        if change.is_empty() && active != 0 {
            return Ok(Applied {
                generation: active,
                rows: 0,
                narrows: false,
            });
        }
        let narrows = diff::narrows(&change, takes_over);
        let next = after(active)?;
        self.dirty = true;
        if let Err(error) = self.write(&change, &wanted, active) {
            // Removes whatever would become valid with the next generation.
            self.settle()?;
            return Err(error);
        }
        self.control
            .activate(next, if narrows { next } else { narrowed });
        self.current = wanted;
        // The change is in force whatever comes now; what ended is tidied up
        // here or, if that fails, before the next change.
        match self.grace.wait().and_then(|()| self.collect(&change)) {
            Ok(()) => self.dirty = false,
            Err(error) => tracing::warn!(%error, "rows that ended stay for now"),
        }
        Ok(Applied {
            generation: next,
            rows: change.len(),
            narrows,
        })
    }

    /// Counts a generation in which no row differs: it tells what is in force now
    /// from what was before.
    ///
    /// # Errors
    /// When there is none left, or a change before this one cannot be tidied up.
    pub fn advance(&mut self) -> Result<(), KernelError> {
        self.restore_control()?;
        if self.dirty {
            self.settle()?;
        }
        let (active, narrowed) = self.control.generations();
        self.control.activate(after(active)?, narrowed);
        Ok(())
    }

    /// Writes every row of the change; nothing of it is valid yet.
    fn write(
        &self,
        change: &TablesDiff,
        wanted: &Tables,
        active: Generation,
    ) -> Result<(), KernelError> {
        let current = &self.current;
        let plain = |_: &_| None;
        write_table(&self.policy, &change.policy, active, plain, plain)?;
        write_table(
            &self.address,
            &change.address,
            active,
            |_: &_| None,
            |_: &_| None,
        )?;
        write_table(
            &self.workload,
            &change.workload,
            active,
            |_: &_| None,
            |_: &_| None,
        )?;
        write_table(
            &self.interface,
            &change.interface,
            active,
            |_: &_| None,
            |_: &_| None,
        )?;
        // In a trie a row hides the shorter prefixes around it, also in the
        // generation in which it is not valid: it repeats their answer there.
        write_table(
            &self.range,
            &change.range,
            active,
            |key| covering_range(&current.range, key),
            |key| covering_range(&wanted.range, key),
        )?;
        write_table(
            &self.cidr,
            &change.cidr,
            active,
            |key| covering_cidr(&current.cidr, key),
            |key| covering_cidr(&wanted.cidr, key),
        )
    }

    /// Deletes the rows that ended; called after a grace period.
    fn collect(&self, change: &TablesDiff) -> Result<(), KernelError> {
        self.policy.delete(change.policy.removed.keys())?;
        self.range.delete(change.range.removed.keys())?;
        self.address.delete(change.address.removed.keys())?;
        self.cidr.delete(change.cidr.removed.keys())?;
        self.workload.delete(change.workload.removed.keys())?;
        self.interface.delete(change.interface.removed.keys())
    }

    /// Reads the maps back and leaves only what the active generation holds.
    /// Gives the number of rows that no change of ours can have left.
    fn settle(&mut self) -> Result<usize, KernelError> {
        let (active, _) = self.control.generations();
        self.grace.wait()?;
        let mut odd = 0;
        self.current = Arc::new(Tables {
            policy: settle_table(&self.policy, active, &mut odd)?,
            range: settle_table(&self.range, active, &mut odd)?,
            address: settle_table(&self.address, active, &mut odd)?,
            cidr: settle_table(&self.cidr, active, &mut odd)?,
            workload: settle_table(&self.workload, active, &mut odd)?,
            interface: settle_table(&self.interface, active, &mut odd)?,
        });
        self.dirty = false;
        Ok(odd)
    }

    /// Reads the maps back, and if somebody altered them restores what was in
    /// force. Gives the number of rows that meant something else.
    ///
    /// # Errors
    /// When a call fails.
    pub fn restore(&mut self) -> Result<usize, KernelError> {
        self.restore_control()?;
        let wanted = self.current.clone();
        // Rows of a change that could not be tidied up are nobody's doing.
        let ours = self.dirty;
        let odd = self.settle()?;
        let altered = TablesDiff::between(&self.current, &wanted);
        if !altered.is_empty() {
            self.apply(wanted, true)?;
        } else if odd > 0 {
            // They were not believed: what that denied is decided again.
            self.narrow();
        }
        let count = altered.len().max(if ours { 0 } else { odd });
        if count > 0 {
            let found = format!(
                "{count} rows meant something else: {}",
                words(&altered, odd)
            );
            self.repairs.push(Repair::new(What::Rows, found));
        }
        Ok(count)
    }

    /// Puts the control element right if it does not hold what was written.
    /// Gives whether it had to.
    ///
    /// # Errors
    /// [`KernelError::OutOfGenerations`] if what was decided meanwhile cannot
    /// be told from what is decided from now on.
    pub fn restore_control(&mut self) -> Result<bool, KernelError> {
        let (written, found) = (self.control.written(), self.control.read());
        if written == found {
            return Ok(false);
        }
        let (ours, _) = Control::unpack(written.active);
        let (theirs, _) = Control::unpack(found.active);
        self.control.configure(&written);
        self.control.activate(ours, ours);
        self.repairs.push(Repair::new(
            What::Control,
            format!("zt_control_v1 was altered: {found:?} in the place of {written:?}"),
        ));
        if ours == 0 {
            return Ok(true);
        }
        if self.dirty {
            self.settle()?;
        }
        // Whatever was decided while it was altered is decided again: by a
        // generation that comes after all that programs can have seen.
        let next = ours.max(theirs).checked_add(1);
        let next = next.filter(|next| *next < FOREVER);
        let next = next.ok_or(KernelError::OutOfGenerations)?;
        self.control.activate(next, next);
        Ok(true)
    }

    /// What was put right since the last call.
    pub fn take_repairs(&mut self) -> Vec<Repair> {
        std::mem::take(&mut self.repairs)
    }

    /// Makes the programs decide every cached allow again.
    pub fn narrow(&mut self) {
        let (active, _) = self.control.generations();
        let next = active.checked_add(1).filter(|next| *next < FOREVER);
        if let (1.., Some(next)) = (active, next) {
            self.control.activate(next, next);
        }
    }

    /// Makes every verdict that was kept until now worthless, and waits until
    /// no program runs that began before: from then on nothing refers to what
    /// [`Self::current`] does not.
    ///
    /// # Errors
    /// When a call fails; then nothing may be reused.
    pub fn forget(&mut self) -> Result<(), KernelError> {
        if self.dirty {
            self.settle()?;
        }
        let (active, _) = self.control.generations();
        let next = active
            .checked_add(1)
            .filter(|next| *next < FOREVER)
            .ok_or(KernelError::OutOfGenerations)?;
        self.control.activate(next, next);
        self.grace.wait()
    }

    /// What the maps really hold in the active generation, read now: somebody
    /// may have altered them behind our back.
    ///
    /// # Errors
    /// When a call fails.
    pub fn read(&self) -> Result<Tables, KernelError> {
        let (active, _) = self.control.generations();
        Ok(Tables {
            policy: read_table(&self.policy, active)?,
            range: read_table(&self.range, active)?,
            address: read_table(&self.address, active)?,
            cidr: read_table(&self.cidr, active)?,
            workload: read_table(&self.workload, active)?,
            interface: read_table(&self.interface, active)?,
        })
    }
}

/// In which maps.
fn words(altered: &TablesDiff, odd: usize) -> String {
    let maps = [
        ("zt_policy_v1", altered.policy.len()),
        ("zt_range_v1", altered.range.len()),
        ("zt_address_v1", altered.address.len()),
        ("zt_cidr_v1", altered.cidr.len()),
        ("zt_workload_v1", altered.workload.len()),
        ("zt_interface_v1", altered.interface.len()),
        ("with another row's key", odd),
    ];
    let found = maps.iter().filter(|(_, count)| *count > 0);
    let words: Vec<String> = found
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    words.join(", ")
}

fn write_table<K, T, const PAD: usize>(
    table: &Table<K, T, PAD>,
    change: &Change<K, T>,
    active: Generation,
    before: impl Fn(&K) -> Option<T>,
    after: impl Fn(&K) -> Option<T>,
) -> Result<(), KernelError>
where
    K: Pod + Ord,
    T: Copy + Default,
    Row<K, T, PAD>: Pod,
{
    let next = active + 1;
    let row = |key: &K, old: Option<T>, new: Option<T>| Row {
        versions: [
            old.map_or_else(Version::default, |value| Version {
                from: active,
                until: next,
                value,
            }),
            new.map_or_else(Version::default, |value| Version {
                from: next,
                until: FOREVER,
                value,
            }),
        ],
        key: *key,
        zero: [0; PAD],
    };
    let added = change
        .added
        .iter()
        .map(|(key, new)| row(key, before(key), Some(*new)));
    let changed = change
        .changed
        .iter()
        .map(|(key, value)| row(key, Some(value.was), Some(value.becomes)));
    let removed = change
        .removed
        .iter()
        .map(|(key, old)| row(key, Some(*old), after(key)));
    let rows: Vec<_> = added.chain(changed).chain(removed).collect();
    table.write(&rows).map_err(|(_, error)| error)
}

fn settle_table<K, T, const PAD: usize>(
    table: &Table<K, T, PAD>,
    active: Generation,
    odd: &mut usize,
) -> Result<BTreeMap<K, T>, KernelError>
where
    K: Pod + Ord,
    T: Copy + Default + PartialEq,
    Row<K, T, PAD>: Pod,
{
    let mut current = BTreeMap::new();
    let (mut dead, mut mixed) = (Vec::new(), Vec::new());
    let mut damaged = 0usize;
    for (key, row) in table.rows()? {
        // The kernel does not believe a row that is not its key's.
        let altered = row.key != key;
        damaged += usize::from(altered);
        *odd += usize::from(altered);
        let future = row.versions.iter().any(|version| {
            version.until > version.from && (version.from > active || version.until != FOREVER)
        });
        match valid(&row, active) {
            None => dead.push(key),
            Some(value) => {
                current.insert(key, value);
                if future || altered {
                    mixed.push(Row::starting(key, value, active));
                }
            }
        }
    }
    if damaged > 0 {
        tracing::error!(
            map = table.name(),
            rows = damaged,
            "rows are not what was written: they are written anew"
        );
    }
    // First make room: before 6.13 a full trie cannot even replace a row.
    table.delete(&dead)?;
    table.write(&mixed).map_err(|(_, error)| error)?;
    Ok(current)
}

/// What a map holds in a generation, as the kernel believes it: a row that
/// repeats another key is nobody's.
///
/// # Errors
/// When a call fails.
pub(super) fn read_table<K, T, const PAD: usize>(
    table: &Table<K, T, PAD>,
    active: Generation,
) -> Result<BTreeMap<K, T>, KernelError>
where
    K: Pod + Ord,
    T: Copy,
    Row<K, T, PAD>: Pod,
{
    let rows = table.rows()?;
    Ok(rows
        .iter()
        .filter(|(key, row)| row.key == *key)
        .filter_map(|(key, row)| Some((*key, valid(row, active)?)))
        .collect())
}

/// What a row says in a generation.
pub(super) fn valid<K, T: Copy, const PAD: usize>(
    row: &Row<K, T, PAD>,
    active: Generation,
) -> Option<T> {
    row.versions
        .iter()
        .find(|version| version.covers(active))
        .map(|version| version.value)
}

/// The answer of the longest prefix that strictly covers `key`.
fn covering_cidr(table: &BTreeMap<CidrKey, Peer>, key: &CidrKey) -> Option<Peer> {
    (0..key.prefix_len).rev().find_map(|prefix_len| {
        let ip = masked(&key.ip, prefix_len);
        table.get(&CidrKey { prefix_len, ip }).copied()
    })
}

fn covering_range(table: &BTreeMap<RangeKey, Entry>, key: &RangeKey) -> Option<Entry> {
    let shortest = zt_common::policy::RANGE_PREFIX;
    (shortest..key.prefix_len).rev().find_map(|prefix_len| {
        let port = masked(&key.port, prefix_len - shortest);
        let shorter = RangeKey {
            prefix_len,
            port,
            ..*key
        };
        table.get(&shorter).copied()
    })
}

/// The first `bits` bits; the others zero.
fn masked<const N: usize>(bytes: &[u8; N], bits: u32) -> [u8; N] {
    let mut out = *bytes;
    for (index, byte) in (0u32..).zip(out.iter_mut()) {
        let kept = bits.saturating_sub(index * 8).min(8);
        *byte &= u8::try_from(0xff00u16 >> kept & 0xff).unwrap_or(0);
    }
    out
}

/// The last number means "for ever" in a row, and nothing may come of it.
fn after(active: Generation) -> Result<Generation, KernelError> {
    let next = active.checked_add(1).filter(|next| *next < FOREVER);
    next.ok_or(KernelError::OutOfGenerations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_keep_the_leading_bits() {
        assert_eq!(masked(&[0xff, 0xff], 0), [0, 0]);
        assert_eq!(masked(&[0xff, 0xff], 9), [0xff, 0x80]);
        assert_eq!(masked(&[0xff, 0xff], 16), [0xff, 0xff]);
        assert_eq!(masked(&[0xab, 0xcd], 4), [0xa0, 0]);
    }

    #[test]
    fn the_longest_covering_prefix_answers() {
        let key = |prefix_len, first| {
            let mut ip = [0; 16];
            ip[0] = first;
            CidrKey { prefix_len, ip }
        };
        let peer = |identity| Peer {
            identity,
            ..Peer::default()
        };
        let table = BTreeMap::from([(key(4, 0xa0), peer(1)), (key(6, 0xa8), peer(2))]);
        assert_eq!(covering_cidr(&table, &key(8, 0xab)), Some(peer(2)));
        assert_eq!(covering_cidr(&table, &key(6, 0xa8)), Some(peer(1)));
        assert_eq!(covering_cidr(&table, &key(8, 0x10)), None);
    }
}
