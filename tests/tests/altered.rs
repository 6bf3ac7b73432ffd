//! Maps that somebody alters behind the agent's back.

use std::collections::BTreeSet;

use zt_agent::kernel::{table::Table, trust::TrustMap, view::View};
use zt_common::{address::Workload, identity::LIMIT, version::FOREVER};
use zt_tests::{
    Sandbox,
    node::{Node, World, allow},
};

#[test]
fn altered_rows_are_not_believed_and_restored() {
    let sandbox = Sandbox::new().unwrap();
    let cgroup = sandbox.cgroup().child("a").unwrap();
    let world = World::default()
        .enrol_cgroup("a", &cgroup, None)
        .rules(&format!("[{}]", allow("a", "a", "[80]", "TCP")))
        .unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    node.apply(&world.model).unwrap();
    let wanted = node.store.current().clone();
    assert_eq!(node.store.restore().unwrap(), 0);

    let id = cgroup.id().unwrap();
    let table: Table<u64, Workload, 0> = Table::open(&node.pins, "zt_workload_v1").unwrap();
    let good = table.get(&id).unwrap().unwrap();

    // Another identity, and one more workload.
    let mut other = good;
    for version in other.versions.iter_mut().filter(|v| v.until == FOREVER) {
        version.value.identity += 1;
    }
    let mut more = good;
    more.key = id + 1_000_000;
    table.write(&[other, more]).unwrap();
    assert_eq!(node.store.restore().unwrap(), 2);
    assert_eq!(node.store.read().unwrap(), wanted);

    // A row with another key in it: the programs do not believe it.
    let name = node.pins.map("zt_workload_v1");
    let map = zt_agent::kernel::sys::get_pinned(&name).unwrap();
    let fd = std::os::fd::AsFd::as_fd(&map);
    let mut foreign = table.get(&id).unwrap().unwrap();
    foreign.key = 7;
    zt_agent::kernel::sys::map_update(fd, &id, &foreign).unwrap();
    let view = View::read(&node.pins).unwrap();
    assert!(!view.tables.workload.contains_key(&id));
    node.store.restore().unwrap();
    let view = View::read(&node.pins).unwrap();
    assert_eq!(view.tables, wanted);
}

/// Of few and of many: that is read in other ways.
#[test]
fn who_is_quarantined_is_read_of_the_first_and_the_last_and_of_no_others() {
    let sandbox = Sandbox::new().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let trust = TrustMap::open(&node.pins).unwrap();
    let cut_off = BTreeSet::from([0, 1, 256, 4095, 4096, LIMIT - 1]);
    for number in &cut_off {
        trust.set(*number, true).unwrap();
    }
    assert_eq!(trust.quarantined(0..LIMIT).unwrap(), cut_off);
    assert_eq!(trust.quarantined(0..=LIMIT).unwrap(), cut_off);
    assert_eq!(trust.quarantined([4096, 257, 1]).unwrap(), [1, 4096].into());
    assert_eq!(trust.quarantined(1..4096).unwrap(), [1, 256, 4095].into());
    assert_eq!(trust.quarantined(257..400).unwrap(), BTreeSet::new());
    assert_eq!(trust.quarantined([]).unwrap(), BTreeSet::new());
    trust.set(4096, false).unwrap();
    assert_eq!(
        trust.quarantined(0..=4096).unwrap(),
        [0, 1, 256, 4095].into()
    );
}
