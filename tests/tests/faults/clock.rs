//! The wall clock is set.
//!
//! A time namespace has clocks of its own for the time since boot, not for the
//! wall clock, and this machine's is not ours to set. So what a step means is
//! tested where the two clocks meet: a rule's deadline becomes one of the kernel's
//! boot clock when it is compiled, by the difference of the two, and from then on
//! no wall clock is asked.

use zt_agent::{compile, source::node};
use zt_common::policy::Entry;
use zt_tests::node::{World, allow};

use zt_tests::Sandbox;

const SECOND: u64 = 1_000_000_000;

/// The deadline of the one entry that there is.
fn deadline(world: &World) -> u64 {
    let mut numbers = zt_agent::model::Numbers::default();
    let needs = compile::names(&world.model);
    for name in &needs.names {
        numbers.intern(name).unwrap();
    }
    for rule in &needs.rules {
        numbers.intern_rule(rule).unwrap();
    }
    let tables = compile::compile(&world.model, &numbers).unwrap().tables;
    let entries: Vec<&Entry> = tables.policy.values().collect();
    entries[0].now.deadline
}

#[test]
fn a_deadline_is_one_of_the_boot_clock_and_follows_no_drift() {
    let sandbox = Sandbox::new().unwrap();
    let cgroup = sandbox.cgroup().child("a").unwrap();
    let mut world = World::default()
        .enrol_cgroup("a", &cgroup, None)
        .rules(&format!("[{}]", allow("a", "a", "[80]", "TCP")))
        .unwrap();
    let offset = node::boot_offset(None).unwrap();
    let expires = offset + node::boot_time().unwrap() + 600 * SECOND;
    world.model.policies[0].rules[0].expires = Some(expires);
    world.model.boot_offset = offset;
    let set = deadline(&world);
    assert_eq!(set, expires - offset);

    // Asked again and again, the difference is the same as long as nobody sets
    // the clock, so no deadline moves and no row is written.
    for _ in 0..50 {
        let now = node::boot_offset(Some(offset)).unwrap();
        assert_eq!(now, offset);
    }
    // A clock that was wrong, and was set: the deadline is the one that was
    // written down, at the time that it is now.
    for step in [-3600, -1, 1, 3600] {
        world.model.boot_offset = offset.checked_add_signed(step * 1_000_000_000).unwrap();
        let after = deadline(&world);
        assert_eq!(
            after,
            set.checked_add_signed(-step * 1_000_000_000).unwrap()
        );
    }
    // A deadline from before this machine was switched on has lapsed; it is not
    // the 0 that means "no deadline".
    world.model.boot_offset = expires + 5;
    assert_ne!(deadline(&world), 0);
    assert!(deadline(&world) < node::boot_time().unwrap());
}
