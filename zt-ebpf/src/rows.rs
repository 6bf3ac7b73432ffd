//! Lookups in the versioned maps: the value that is valid in a generation.

use aya_ebpf::btf_maps::lpm_trie::Key;
use zt_common::{
    address::{AddressKey, Ip, Peer, Workload},
    identity::{self, Number},
    policy::{Entry, PolicyKey, RANGE_PREFIX},
    version::Generation,
};

use crate::maps::{
    RangeData, zt_address_v1, zt_cidr_v1, zt_policy_v1, zt_range_v1, zt_trust_v1, zt_workload_v1,
};

#[inline(always)]
pub fn workload(cgroup: u64, generation: Generation) -> Option<Workload> {
    // SAFETY: the row repeats its key, and `at` checks it.
    unsafe { zt_workload_v1.get(cgroup) }?.at(&cgroup, generation)
}

#[inline(always)]
pub fn address(key: &AddressKey, generation: Generation) -> Option<Peer> {
    // SAFETY: as in `workload`.
    unsafe { zt_address_v1.get(key) }?.at(key, generation)
}

/// The peer by the longest prefix; `world` where there is none.
///
/// A prefix whose row is not valid in `generation` cannot hide a shorter one
/// that is: a change gives a new prefix the old generation's answer as well.
#[inline(always)]
pub fn cidr(ip: &Ip, generation: Generation) -> Peer {
    let world = Peer {
        identity: identity::WORLD,
        ..Peer::default()
    };
    let Some(row) = zt_cidr_v1.get(&Key::new(128, *ip)) else {
        return world;
    };
    row.at(&row.key, generation).unwrap_or(world)
}

/// What the policy says of a pair, protocol and destination port.
#[inline(always)]
pub fn entry(key: &mut PolicyKey, generation: Generation) -> Entry {
    // SAFETY: as in `workload`.
    let exact = unsafe { zt_policy_v1.get(*key) }.and_then(|row| row.at(key, generation));
    let port = key.port;
    if let Some(entry) = exact {
        return entry;
    }
    if port == 0 {
        return Entry::default();
    }
    key.port = 0;
    // SAFETY: as in `workload`.
    let any = unsafe { zt_policy_v1.get(*key) }.and_then(|row| row.at(key, generation));
    key.port = port;
    match any {
        None => Entry::default(),
        Some(entry) if entry.ranges == 0 => entry,
        Some(entry) => range(key, generation).unwrap_or(entry),
    }
}

#[inline(always)]
fn range(key: &PolicyKey, generation: Generation) -> Option<Entry> {
    let data = RangeData {
        source: key.source.to_be_bytes(),
        destination: key.destination.to_be_bytes(),
        protocol: key.protocol,
        zero: [0; 5],
        port: key.port.to_be_bytes(),
    };
    let row = zt_range_v1.get(&Key::new(RANGE_PREFIX + 16, data))?;
    row.at(&row.key, generation)
}

/// Whether nothing may pass to or from this identity.
#[inline(always)]
pub fn quarantined(number: Number) -> bool {
    // A number outside the array is nobody's; its policy says no anyway.
    zt_trust_v1
        .get(number)
        .is_some_and(|trust| trust.quarantined != 0)
}
