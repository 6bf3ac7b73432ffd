//! Whether a pinned map is what this binary takes it for.
//!
//! aya reuses a pinned map without looking. One with larger values would
//! overflow our buffers, one of another version be misread, one of another
//! type drop rows by itself (an LRU) or have no room for a number (a short
//! array), and what is missing there is not denied.

use aya::maps::{MapData, MapInfo};
use aya_obj::{Map, Object};

use super::{KernelError, load::MAPS, pins::Pins};

/// The characters of a name that the kernel keeps (`BPF_OBJ_NAME_LEN` − 1).
const NAME_LEN: usize = 15;

/// Types of `enum bpf_map_type` that are indexed by number: too short a one
/// has no element for some numbers.
const ARRAYS: [u32; 2] = [2, 6];

/// Compares every map that is pinned with its declaration in the object.
///
/// # Errors
/// [`KernelError::Layout`] names the first that differs.
pub fn check(pins: &Pins, object: &[u8]) -> Result<(), KernelError> {
    let broken = |error: &dyn std::fmt::Display| KernelError::Load(error.to_string());
    let object = Object::parse(object).map_err(|error| broken(&error))?;
    for (name, key, value) in MAPS {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let failed = |error: aya::maps::MapError| KernelError::Load(format!("{name}: {error}"));
        let info = MapData::from_pin(&path)
            .and_then(|map| map.info())
            .map_err(failed)?;
        let found = Layout::found(&info);
        let declared = object.maps.get(*name);
        let declared = declared.ok_or_else(|| broken(&format!("the object has no {name}")))?;
        let wanted = Layout {
            sizes: (*key, *value),
            ..Layout::declared(name, declared)
        };
        if found != wanted {
            return Err(KernelError::Layout {
                name: (*name).to_owned(),
                found: found.to_string(),
                wanted: wanted.to_string(),
            });
        }
    }
    Ok(())
}

/// What has to be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    /// It carries the version of what the bytes mean.
    name: String,
    /// `enum bpf_map_type`.
    kind: u32,
    flags: u32,
    /// Of key and value, in bytes.
    sizes: (usize, usize),
    /// Of an array.
    length: Option<u32>,
}

impl Layout {
    fn found(info: &MapInfo) -> Self {
        let kind = info.map_type().map_or(0, |kind| kind as u32);
        Self {
            name: String::from_utf8_lossy(info.name()).into_owned(),
            kind,
            flags: info.map_flags(),
            sizes: (info.key_size() as usize, info.value_size() as usize),
            length: ARRAYS.contains(&kind).then(|| info.max_entries()),
        }
    }

    fn declared(name: &str, map: &Map) -> Self {
        let kind = map.map_type();
        Self {
            name: name.chars().take(NAME_LEN).collect(),
            kind,
            flags: map.map_flags(),
            sizes: (map.key_size() as usize, map.value_size() as usize),
            length: ARRAYS.contains(&kind).then(|| map.max_entries()),
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            kind,
            flags,
            sizes: (key, value),
            length,
        } = self;
        write!(
            f,
            "{name:?} of type {kind}, flags {flags:#x}, key {key} bytes, value {value}"
        )?;
        length.map_or(Ok(()), |length| write!(f, ", {length} elements"))
    }
}
