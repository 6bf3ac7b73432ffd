//! What the kernel holds now, only read: for the commands that look. It works
//! without an agent and never settles, collects or repairs anything.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::Pod;
use zt_common::{
    state::Control,
    version::{Generation, Row},
};

use super::{
    KernelError, cgroup,
    names::NameMaps,
    pins::Pins,
    store::{read_table, valid},
    sys,
    table::{Keyed, Table},
};
use crate::{compile::Tables, model::Numbers};

/// A look at all versioned maps, of one generation.
#[derive(Clone, Debug)]
pub struct View {
    /// Active when it was read; 0: none ever was, and nothing passes.
    pub generation: Generation,
    pub control: Control,
    pub tables: Tables,
    pub numbers: Numbers,
}

/// Looks that are taken before giving up on a quiet moment.
const ATTEMPTS: usize = 5;

impl View {
    /// Reads the pinned maps, again if a change came in between.
    ///
    /// # Errors
    /// When nothing is pinned, or a call fails.
    pub fn read(pins: &Pins) -> Result<Self, KernelError> {
        let mut view = Self::once(pins)?;
        for _ in 1..ATTEMPTS {
            if control(pins)?.active == view.control.active {
                break;
            }
            view = Self::once(pins)?;
        }
        Ok(view)
    }

    fn once(pins: &Pins) -> Result<Self, KernelError> {
        let control = control(pins)?;
        let (generation, _) = Control::unpack(control.active);
        Ok(Self {
            generation,
            control,
            tables: Tables {
                policy: read_table(&Table::open(pins, "zt_policy_v1")?, generation)?,
                range: prefixes(&Table::open(pins, "zt_range_v1")?, generation)?,
                address: read_table(&Table::open(pins, "zt_address_v1")?, generation)?,
                cidr: prefixes(&Table::open(pins, "zt_cidr_v1")?, generation)?,
                workload: read_table(&Table::open(pins, "zt_workload_v1")?, generation)?,
                interface: read_table(&Table::open(pins, "zt_interface_v1")?, generation)?,
            },
            numbers: NameMaps::open(pins)?.read()?,
        })
    }
}

/// The control element.
///
/// # Errors
/// When nothing is pinned, or the call fails.
pub fn control(pins: &Pins) -> Result<Control, KernelError> {
    let map = sys::get_pinned(&pins.map("zt_control_v1"))
        .map_err(|_| KernelError::NotRunning(pins.directory().into()))?;
    let control = sys::map_lookup(map.as_fd(), &0u32)
        .map_err(KernelError::call("lookup", "zt_control_v1"))?;
    Ok(control.unwrap_or_default())
}

/// Rows of a trie, of which the copy of the key does not matter.
fn prefixes<K, T, const PAD: usize>(
    table: &Table<K, T, PAD>,
    generation: Generation,
) -> Result<BTreeMap<K, T>, KernelError>
where
    K: Pod + Ord,
    T: Copy,
    Row<K, T, PAD>: Pod,
{
    let rows = table.rows()?;
    let valid = |(key, row): &Keyed<K, T, PAD>| Some((*key, valid(row, generation)?));
    Ok(rows.iter().filter_map(valid).collect())
}

/// Depth down to which [`cgroup_paths`] looks: workloads are at most
/// [`zt_common::MAX_DEPTH`] levels below the root.
const DEPTH: usize = zt_common::MAX_DEPTH;

/// Paths of the cgroups below `root`, by their ids.
#[must_use]
pub fn cgroup_paths(root: &Path) -> BTreeMap<u64, PathBuf> {
    let mut paths = BTreeMap::new();
    collect(root, DEPTH, &mut paths);
    paths
}

fn collect(directory: &Path, depth: usize, paths: &mut BTreeMap<u64, PathBuf>) {
    // What cannot be read has just gone, and its workload with it.
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if let Ok(id) = cgroup::id(&path) {
            if depth > 1 {
                collect(&path, depth - 1, paths);
            }
            paths.insert(id, path);
        }
    }
}
