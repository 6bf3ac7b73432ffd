//! Lookups in the versioned maps: the value that is valid in a generation.

use aya_ebpf::btf_maps::lpm_trie::Key;
use zt_common::{
    address::{AddressKey, Ip, Peer, Workload},
    identity::{self, Number},
    policy::{Entry, PolicyKey, RANGE_PREFIX},
    version::{Generation, same},
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
    row.current(generation).map_or(world, |found| found.value)
}

/// What the policy says of a pair, protocol and destination port: written to
/// `entry`, which must hold the default. A global function, see
/// [`crate::decide::zt_weigh`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_entry(key: *mut PolicyKey, generation: u32, entry: *mut Entry) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(key), Some(entry)) = (unsafe { (key.as_mut(), entry.as_mut()) }) else {
        return 0;
    };
    if exact(key, generation, entry) || key.port == 0 {
        return 0;
    }
    let port = key.port;
    key.port = 0;
    let any = exact(key, generation, entry);
    key.port = port;
    if any && entry.ranges != 0 {
        range(key, generation, entry);
    }
    0
}

#[inline(always)]
fn exact(key: &PolicyKey, generation: Generation, entry: &mut Entry) -> bool {
    // SAFETY: as in `workload`.
    let found = unsafe { zt_policy_v1.get(*key) };
    let Some(version) = found.and_then(|row| row.version(key, generation)) else {
        return false;
    };
    *entry = version.value;
    // The row may have become another key's while it was copied.
    if found.is_some_and(|row| same(&row.key, key)) {
        return true;
    }
    *entry = Entry::default();
    false
}

#[inline(always)]
fn range(key: &PolicyKey, generation: Generation, entry: &mut Entry) {
    let data = RangeData {
        source: key.source.to_be_bytes(),
        destination: key.destination.to_be_bytes(),
        protocol: key.protocol,
        zero: [0; 5],
        port: key.port.to_be_bytes(),
    };
    if let Some(found) = zt_range_v1
        .get(&Key::new(RANGE_PREFIX + 16, data))
        .and_then(|row| row.current(generation))
    {
        *entry = found.value;
    }
}

/// Whether nothing may pass to or from this identity.
#[inline(always)]
pub fn quarantined(number: Number) -> bool {
    // A number outside the array is nobody's; its policy says no anyway.
    zt_trust_v1
        .get(number)
        .is_some_and(|trust| trust.quarantined != 0)
}
