//! A new agent finds maps that another one made.

use std::{fs, path::Path};

use aya::maps::{Array, HashMap, MapData};
use zt_agent::kernel::{names::NameMaps, pins::Pins, table::Table, view::View};
use zt_common::{
    address::Workload,
    identity::Trust,
    policy::{Entry, PolicyKey},
    version::{FOREVER, Generation},
};

use crate::stage::{CLIENT, OTHER, SERVER, Settings, Stage};

const NO_PREALLOC: u32 = 1;

/// Puts another map where one of ours was pinned.
fn replace(at: &Path, pin: impl FnOnce(&Path)) {
    fs::remove_file(at).unwrap();
    pin(at);
}

/// CVE-2022-21679: the new half of an upgrade wrote what the old half did not
/// know, which read it as "no condition" and let everybody pass. Here maps that
/// are not exactly what the new agent writes are refused by name; what was
/// enforced before stays so, and nothing is touched.
#[test]
fn cve_2022_21679_maps_of_another_layout_are_refused_and_enforcement_stays() {
    let mut stage = Stage::running(Settings::default());
    stage.agent.stop().unwrap();
    let pins = Pins::new(stage.pins());
    let generation = View::read(&pins).unwrap().generation;
    let map = |name: &str| pins.map(name);
    type Make = fn(&Path);
    let others: [(&str, Make); 5] = [
        ("zt_policy_v1", |at| {
            // Larger values.
            let map = HashMap::<MapData, [u8; 12], [u8; 120]>::create(1024, NO_PREALLOC);
            map.unwrap().pin(at).unwrap();
        }),
        ("zt_policy_v1", |at| {
            // The same sizes; an older version meant something else by them.
            let map = HashMap::<MapData, [u8; 12], [u8; 112]>::create(1024, NO_PREALLOC);
            map.unwrap().pin(at).unwrap();
        }),
        ("zt_workload_v1", |at| {
            let map = HashMap::<MapData, u64, [u8; 56]>::create(256, 0);
            map.unwrap().pin(at).unwrap();
        }),
        ("zt_trust_v1", |at| {
            // No room for the quarantine of most identities.
            Array::<MapData, u32>::create(300, 0)
                .unwrap()
                .pin(at)
                .unwrap();
        }),
        ("zt_flow_v1", |at| {
            // The pin of another map of ours.
            let map = MapData::from_pin(at.with_file_name("zt_spill_v1")).unwrap();
            map.pin(at).unwrap();
        }),
    ];
    for (name, make) in others {
        let kept = stage.pins().join("kept");
        let ours = MapData::from_pin(map(name)).unwrap();
        replace(&map(name), make);
        let refused = stage.ask(&["run"]);
        assert_eq!(refused.code, 3, "{name}: {refused:?}");
        assert!(refused.errors.contains(name), "{refused:?}");
        assert!(refused.errors.contains("layout"), "{refused:?}");
        stage.passes(&stage.client);
        stage.is_denied(&stage.other);
        replace(&map(name), |at| ours.pin(at).unwrap());
        assert!(!kept.exists());
    }
    assert_eq!(View::read(&pins).unwrap().generation, generation);
    stage.agent.start().unwrap();
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
}

/// Rows that no agent of this version wrote are gone, and said to be, before
/// the new agent says that it is ready; none of them opens anything later.
#[test]
fn cve_2022_21679_rows_of_garbage_are_repaired_at_the_start_and_it_is_said() {
    let mut stage = Stage::running(Settings::default());
    stage.passes(&stage.client);
    stage.agent.kill().unwrap();
    let pins = Pins::new(stage.pins());
    let before = View::read(&pins).unwrap();
    let numbers = NameMaps::open(&pins).unwrap().read().unwrap();
    let number = |id: &str| {
        numbers
            .get(&zt_agent::model::Name::Spiffe(id.parse().unwrap()))
            .unwrap()
    };
    let policy: Table<PolicyKey, Entry, 4> = Table::open(&pins, "zt_policy_v1").unwrap();
    let workload: Table<u64, Workload, 0> = Table::open(&pins, "zt_workload_v1").unwrap();
    let (key, _) = before.tables.policy.first_key_value().unwrap();
    assert_eq!(
        (key.source, key.destination),
        (number(CLIENT), number(SERVER))
    );
    let good = policy.get(key).unwrap().unwrap();

    // Under its own key, which opens at once (the maps are the truth), from the
    // next generation on, and in every generation there is.
    let other = PolicyKey {
        source: number(OTHER),
        ..*key
    };
    let mut open = good;
    open.key = other;
    let mut later = open;
    later.key.port = 8081;
    later.versions[0].from = before.generation + 1;
    later.versions[1] = later.versions[0];
    let mut always = open;
    always.key.port = 8082;
    for version in &mut always.versions {
        (version.from, version.until) = (0 as Generation, FOREVER);
        version.value = good
            .versions
            .iter()
            .find(|v| v.until == FOREVER)
            .unwrap()
            .value;
    }
    policy.write(&[open, later, always]).unwrap();
    // Nothing but noise, under keys that may come to be used.
    let client = stage.client.cgroup().id().unwrap();
    let mut noise = workload.get(&client).unwrap().unwrap();
    noise.key = 0x5a5a_5a5a;
    let map = zt_agent::kernel::sys::get_pinned(&pins.map("zt_workload_v1")).unwrap();
    let fd = std::os::fd::AsFd::as_fd(&map);
    zt_agent::kernel::sys::map_update(fd, &(client + 1_000_000), &noise).unwrap();
    // Somebody is quarantined who has no number, and a name is no name.
    let trust = zt_agent::kernel::sys::get_pinned(&pins.map("zt_trust_v1")).unwrap();
    let cut = Trust { quarantined: 7 };
    zt_agent::kernel::sys::map_update(std::os::fd::AsFd::as_fd(&trust), &40_000u32, &cut).unwrap();

    stage.agent.start().unwrap();
    let after = View::read(&pins).unwrap();
    assert_eq!(after.tables, before.tables);
    assert!(policy.get(&later.key).unwrap().is_none());
    assert!(policy.get(&always.key).unwrap().is_none());
    assert!(workload.get(&(client + 1_000_000)).unwrap().is_none());
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    let log = stage.agent.log();
    assert!(
        log.contains("zt_workload_v1") && log.contains("not what was written"),
        "{log}"
    );
    // And from now on.
    stage.write_policy(&crate::stage::both());
    stage.until_other(true);
    stage.write_policy(crate::stage::POLICY);
    stage.until_other(false);
    stage.passes(&stage.client);
}
