//! Maps that do not hold what was written: rows, names, quarantine; and maps
//! that nobody can write to any more.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::Pod;
use zt_agent::{
    kernel::{names::NameMaps, sys, view::View},
    model::{Name, Numbers},
};
use zt_common::{
    address::{AddressKey, CidrKey},
    identity::{self, Trust},
    policy::{PolicyKey, RangeKey},
    version::{AddressRow, CidrRow, InterfaceRow, PolicyRow, RangeRow, Row, WorkloadRow},
};

use crate::{
    stage::{CLIENT, OTHER, POLICY, SERVER, Stage, wait},
    watched::{NOTICED, freeze, is_named, is_repaired, map, pins, repairs, watched},
};

/// One more rule for each of the maps that the usual policy leaves empty.
fn with_all_maps() -> Stage {
    let stage = watched();
    stage.write_policy(&format!(
        "{POLICY}    - from: {{spiffe: spiffe://t/client}}\n      to:\n        - {{spiffe: spiffe://t/server, ports: [\"9000-9100\"]}}\n        - {{cidr: 203.0.113.0/24, ports: [443]}}\n"
    ));
    wait(NOTICED, || !view(&stage).tables.cidr.is_empty());
    stage
}

fn view(stage: &Stage) -> View {
    View::read(&pins(stage)).unwrap()
}

/// Deletes a row, alters another one, and adds a third, which has the key that
/// `more` makes of the first one's.
fn alter<K: Pod + PartialEq, V: Pod>(
    map: &OwnedFd,
    more: impl Fn(&mut K),
    write: impl Fn(&K, &mut V),
) {
    let map = map.as_fd();
    let first: K = sys::map_next_key(map, None).unwrap().unwrap();
    let row: V = sys::map_lookup(map, &first).unwrap().unwrap();
    let (mut added, mut new) = (first, row);
    more(&mut added);
    write(&added, &mut new);
    sys::map_update(map, &added, &new).unwrap();
    sys::map_delete(map, &first).unwrap();
    let second: Option<K> = sys::map_next_key(map, None).unwrap();
    if let Some(second) = second.filter(|second| *second != added) {
        // With another row's key nobody believes it.
        sys::map_update(map, &second, &row).unwrap();
    }
}

fn rekey<K: Copy, T, const PAD: usize>(key: &K, row: &mut Row<K, T, PAD>) {
    row.key = *key;
}

#[test]
fn rows_that_mean_something_else_are_restored_in_every_map() {
    let stage = with_all_maps();
    let wanted = view(&stage).tables;
    type Alter = fn(&Stage);
    let maps: [(&str, Alter); 5] = [
        ("zt_policy_v1", |stage| {
            alter::<PolicyKey, PolicyRow>(&map(stage, "zt_policy_v1"), |k| k.port ^= 1, rekey);
        }),
        ("zt_range_v1", |stage| {
            let more = |k: &mut RangeKey| k.port[0] ^= 0x80;
            alter::<RangeKey, RangeRow>(&map(stage, "zt_range_v1"), more, rekey);
        }),
        ("zt_address_v1", |stage| {
            let more = |k: &mut AddressKey| k.ip[15] ^= 0x40;
            alter::<AddressKey, AddressRow>(&map(stage, "zt_address_v1"), more, rekey);
        }),
        ("zt_cidr_v1", |stage| {
            let more = |k: &mut CidrKey| k.ip[0] ^= 0x80;
            alter::<CidrKey, CidrRow>(&map(stage, "zt_cidr_v1"), more, rekey);
        }),
        ("zt_workload_v1", |stage| {
            let more = |k: &mut u64| *k += 1_000_000;
            alter::<u64, WorkloadRow>(&map(stage, "zt_workload_v1"), more, rekey);
        }),
    ];
    for (count, (name, alter)) in (1..).zip(maps) {
        alter(&stage);
        is_repaired(&stage, "rows", count);
        assert_eq!(view(&stage).tables, wanted, "{name}");
        let log = stage.agent.log();
        let line = log
            .lines()
            .rfind(|line| line.contains("rows meant something else"));
        assert!(line.unwrap().contains(name), "{name}: {log}");
    }
    // A map that is empty here.
    let interfaces = map(&stage, "zt_interface_v1");
    let row = InterfaceRow::starting(7, Default::default(), 1);
    sys::map_update(interfaces.as_fd(), &7u32, &row).unwrap();
    is_repaired(&stage, "rows", 6);
    assert_eq!(view(&stage).tables, wanted);
}

#[test]
fn a_rule_that_somebody_adds_by_hand_does_not_last() {
    let stage = watched();
    let now = view(&stage);
    let number = |id: &str| now.numbers.get(&Name::Spiffe(id.parse().unwrap())).unwrap();
    let policy = map(&stage, "zt_policy_v1");
    let key = |from: &str| PolicyKey {
        source: number(from),
        destination: number(SERVER),
        port: 8080,
        protocol: 6,
        zero: 0,
    };
    let mut row: PolicyRow = sys::map_lookup(policy.as_fd(), &key(CLIENT))
        .unwrap()
        .unwrap();
    row.key = key(OTHER);
    sys::map_update(policy.as_fd(), &row.key, &row).unwrap();
    let mut held = stage
        .other
        .tcp_held(stage.to(), Duration::from_secs(2))
        .unwrap();
    is_repaired(&stage, "rows", 1);
    // What had come through meanwhile is cut.
    if held.first.replied() {
        assert!(!held.again().unwrap().replied());
    }
}

#[test]
fn nobody_is_let_out_of_quarantine_in_the_kernel_only() {
    let stage = watched();
    stage.tell(&["quarantine", "add", CLIENT]);
    wait(NOTICED, || stage.metric("zt_quarantined", &[]) == 1.0);
    let numbers = view(&stage).numbers;
    let number = numbers.get(&Name::Spiffe(CLIENT.parse().unwrap())).unwrap();
    let trust = map(&stage, "zt_trust_v1");
    sys::map_update(trust.as_fd(), &number, &Trust { quarantined: 0 }).unwrap();
    wait(NOTICED, || repairs(&stage, "quarantine") == 1.0);
    stage.is_denied(&stage.client);
    stage.tell(&["quarantine", "remove", CLIENT]);
    wait(NOTICED, || stage.connect(&stage.client).replied());
    assert_eq!(repairs(&stage, "quarantine"), 1.0);
}

#[test]
fn altered_names_are_written_again_and_foreign_ones_go() {
    let stage = watched();
    let names = NameMaps::open(&pins(&stage)).unwrap();
    let all = |numbers: &Numbers| -> Vec<String> {
        let identities = numbers.names().map(|(name, n)| format!("{n} {name}"));
        let rules = numbers.rules().map(|(rule, n)| format!("{n} {rule}"));
        identities.chain(rules).collect()
    };
    let before = all(&names.read().unwrap());
    let identities = map(&stage, "zt_identity_v1");
    let rules = map(&stage, "zt_rule_v1");
    let first: u32 = identity::FIRST_SPIFFE;
    let mut row: identity::Name = sys::map_lookup(identities.as_fd(), &first)
        .unwrap()
        .unwrap();
    row.name[12] = b'X'.cast_signed();
    sys::map_update(identities.as_fd(), &first, &row).unwrap();
    sys::map_update(identities.as_fd(), &40_000u32, &row).unwrap();
    sys::map_delete(identities.as_fd(), &identity::WORLD).unwrap();
    sys::map_delete(rules.as_fd(), &1u32).unwrap();
    is_repaired(&stage, "names", 1);
    assert_eq!(all(&names.read().unwrap()), before);
    let world = sys::map_lookup::<u32, identity::Name>(identities.as_fd(), &identity::WORLD);
    assert!(world.unwrap().is_some());
    let foreign = sys::map_lookup::<u32, identity::Name>(identities.as_fd(), &40_000);
    assert!(foreign.unwrap().is_none());
}

#[test]
fn a_frozen_map_is_named_and_what_was_enforced_stays() {
    let stage = watched();
    // While the agent has it mapped for writing nobody can.
    assert!(freeze(&map(&stage, "zt_control_v1")).is_err());
    freeze(&map(&stage, "zt_policy_v1")).unwrap();
    is_named(&stage, "froze zt_policy_v1");
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    // A change is refused as a whole.
    stage.write_policy(&crate::stage::both());
    wait(NOTICED, || stage.metric("zt_policy_failed", &[]) == 1.0);
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
}
