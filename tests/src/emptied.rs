//! Pinned maps as if they had just been made.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use aya::{
    Pod,
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
};
use zt_agent::kernel::{counters::Counters, load::MAPS, pins::Pins, sys, trust::TrustMap};
use zt_common::{
    address::{AddressKey, CidrKey},
    flow::{FlowKey, FragmentKey},
    policy::{PolicyKey, RangeKey},
    state::{Control, CountKey, Totals},
};

/// What has no rows to delete: arrays, the ring, and what lives with sockets.
const OTHERS: [&str; 6] = [
    "zt_control_v1",
    "zt_trust_v1",
    "zt_socket_v1",
    "zt_events_v1",
    "zt_totals_v1",
    "zt_rulehits_v1",
];

/// Empties all maps but the ring: who has it open reads it to its end. No program
/// may run, and whoever keeps what is in the maps must read them anew. Of the
/// identities and rules, those are forgotten that have a name.
pub fn empty(pins: &Pins) -> Result<()> {
    // First, since their names say which there are.
    let trust = TrustMap::open(pins)?;
    for number in keys::<u32>(pins, "zt_identity_v1")? {
        trust.set(number, false)?;
    }
    let mut counters = Counters::open(pins)?;
    for rule in keys::<u32>(pins, "zt_rule_v1")? {
        counters.reset_hits(rule)?;
    }
    reset_totals(pins)?;
    let control = sys::get_pinned(&pins.map("zt_control_v1"))?;
    sys::map_update(control.as_fd(), &0_u32, &Control::default())?;
    for (name, _, _) in MAPS {
        match *name {
            "zt_workload_v1" | "zt_share_v1" => delete::<u64>(pins, name)?,
            "zt_interface_v1" | "zt_identity_v1" | "zt_rule_v1" => delete::<u32>(pins, name)?,
            "zt_address_v1" => delete::<AddressKey>(pins, name)?,
            "zt_cidr_v1" => delete::<CidrKey>(pins, name)?,
            "zt_policy_v1" => delete::<PolicyKey>(pins, name)?,
            "zt_range_v1" => delete::<RangeKey>(pins, name)?,
            "zt_flow_v1" | "zt_spill_v1" => delete::<FlowKey>(pins, name)?,
            "zt_fragment_v1" => delete::<FragmentKey>(pins, name)?,
            "zt_count_v1" => delete::<CountKey>(pins, name)?,
            other => ensure!(OTHERS.contains(&other), "say here how to empty {other}"),
        }
    }
    Ok(())
}

fn delete<K: Pod>(pins: &Pins, name: &str) -> Result<()> {
    let map = sys::get_pinned(&pins.map(name))?;
    for key in keys::<K>(pins, name)? {
        sys::map_delete(map.as_fd(), &key).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// The keys of a map that nobody changes.
fn keys<K: Pod>(pins: &Pins, name: &str) -> Result<Vec<K>> {
    let map = sys::get_pinned(&pins.map(name))?;
    let mut keys = Vec::new();
    while let Some(key) = sys::map_next_key(map.as_fd(), keys.last())? {
        keys.push(key);
    }
    Ok(keys)
}

fn reset_totals(pins: &Pins) -> Result<()> {
    let map = Map::PerCpuArray(MapData::from_pin(pins.map("zt_totals_v1"))?);
    let mut totals: PerCpuArray<_, Totals> = map.try_into()?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let zero = PerCpuValues::try_from(vec![Totals::default(); cpus])?;
    Ok(totals.set(0, zero, 0)?)
}
