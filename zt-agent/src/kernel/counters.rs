//! What the programs counted: exact, also when events are lost.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use zt_common::state::{CountKey, Totals};

use super::{KernelError, pins::Pins, sys};

/// The per-CPU counter maps.
pub struct Counters {
    totals: PerCpuArray<MapData, Totals>,
    counts: PerCpuHashMap<MapData, CountKey, u64>,
    hits: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// # Errors
    /// When they are not pinned.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let missing = |_| KernelError::NotRunning(pins.directory().into());
        let open = |name: &str| MapData::from_pin(pins.map(name)).map_err(missing);
        let wrong = |error: MapError| KernelError::Load(error.to_string());
        Ok(Self {
            totals: Map::PerCpuArray(open("zt_totals_v1")?)
                .try_into()
                .map_err(wrong)?,
            counts: Map::PerCpuHashMap(open("zt_count_v1")?)
                .try_into()
                .map_err(wrong)?,
            hits: Map::PerCpuArray(open("zt_rulehits_v1")?)
                .try_into()
                .map_err(wrong)?,
        })
    }

    /// Totals of this epoch, summed over the CPUs.
    ///
    /// # Errors
    /// When the call fails.
    pub fn totals(&self) -> Result<Totals, KernelError> {
        let mut sum = Totals::default();
        for one in self.totals.get(&0, 0).map_err(failed)?.iter() {
            sum.decisions += one.decisions;
            sum.lost_ring += one.lost_ring;
            sum.uncounted += one.uncounted;
            sum.flow_full += one.flow_full;
            sum.flow_spilled += one.flow_spilled;
        }
        Ok(sum)
    }

    /// Decisions by pair, verdict, reason and direction.
    ///
    /// # Errors
    /// When a call fails.
    pub fn counts(&self) -> Result<BTreeMap<CountKey, u64>, KernelError> {
        self.counts
            .iter()
            .map(|entry| {
                let (key, values) = entry.map_err(failed)?;
                Ok((key, values.iter().sum()))
            })
            .collect()
    }

    /// Takes rows away and puts these counts in the place of others. No
    /// program may count in any of them. Doing it again changes nothing.
    ///
    /// # Errors
    /// When a call fails.
    pub fn fold(
        &mut self,
        gone: &[CountKey],
        counts: &BTreeMap<CountKey, u64>,
    ) -> Result<(), KernelError> {
        for key in gone {
            match self.counts.remove(key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        for (key, count) in counts {
            self.counts
                .insert(*key, on_one(*count)?, 0)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Begins to count the decisions of a rule's number anew.
    ///
    /// # Errors
    /// When the call fails.
    pub fn reset_hits(&mut self, rule: u32) -> Result<(), KernelError> {
        self.hits.set(rule, on_one(0)?, 0).map_err(failed)
    }

    /// Decisions made by a rule.
    ///
    /// # Errors
    /// When the call fails.
    pub fn hits(&self, rule: u32) -> Result<u64, KernelError> {
        Ok(self.hits.get(&rule, 0).map_err(failed)?.iter().sum())
    }
}

/// A count as one CPU's; the others have none.
fn on_one(count: u64) -> Result<PerCpuValues<u64>, KernelError> {
    let wrong = |error: std::io::Error| KernelError::Load(error.to_string());
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| wrong(error))?;
    let mut values = vec![0; cpus];
    if let Some(first) = values.first_mut() {
        *first = count;
    }
    PerCpuValues::try_from(values).map_err(wrong)
}

fn failed(error: MapError) -> KernelError {
    KernelError::Load(format!("cannot read the counters: {error}"))
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    pub name: &'static str,
    pub rows: usize,
    pub limit: u32,
}

/// Counts the rows of a pinned map by walking its keys.
///
/// # Errors
/// When a call fails.
pub fn fill(pins: &Pins, name: &'static str) -> Result<Fill, KernelError> {
    let path = pins.map(name);
    let info = map_info(&path)?;
    let map = sys::get_pinned(&path).map_err(KernelError::call("get", name))?;
    let rows =
        count_keys(map.as_fd(), info.0 as usize).map_err(KernelError::call("next key", name))?;
    Ok(Fill {
        name,
        rows,
        limit: info.1,
    })
}

/// (key size, max entries)
fn map_info(path: &Path) -> Result<(u32, u32), KernelError> {
    let data = MapData::from_pin(path).map_err(failed)?;
    let info = data.info().map_err(failed)?;
    Ok((info.key_size(), info.max_entries()))
}

fn count_keys(map: BorrowedFd<'_>, key_size: usize) -> std::io::Result<usize> {
    // Keys of these maps are 4 to 32 bytes.
    match key_size {
        4 => count::<u32>(map),
        8 => count::<u64>(map),
        12 => count::<[u32; 3]>(map),
        20 => count::<[u32; 5]>(map),
        32 => count::<[u32; 8]>(map),
        other => Err(std::io::Error::other(format!("key size {other}"))),
    }
}

fn count<K: aya::Pod>(map: BorrowedFd<'_>) -> std::io::Result<usize> {
    let mut rows = 0;
    let mut last: Option<K> = None;
    while let Some(key) = sys::map_next_key(map, last.as_ref())? {
        rows += 1;
        last = Some(key);
    }
    Ok(rows)
}
