//! The control element: what every decision reads first.

use std::os::fd::AsFd as _;

use zt_agent::kernel::sys;
use zt_common::{
    state::{Control, control_flags},
    version::FOREVER,
};

use crate::{
    stage::{PATIENT, Stage},
    watched::{is_named, is_repaired, map, repairs, watched},
};

fn read(stage: &Stage) -> Control {
    let map = map(stage, "zt_control_v1");
    sys::map_lookup(map.as_fd(), &0u32).unwrap().unwrap()
}

fn write(stage: &Stage, control: &Control) {
    let map = map(stage, "zt_control_v1");
    sys::map_update(map.as_fd(), &0u32, control).unwrap();
}

#[test]
fn an_altered_control_element_is_put_right_whatever_was_altered() {
    let stage = watched();
    let good = read(&stage);
    let (generation, _) = Control::unpack(good.active);
    type Alter = fn(&mut Control);
    let fields: [(&str, Alter); 10] = [
        ("no generation", |c| c.active = 0),
        ("one before", |c| c.active -= Control::pack(1, 0)),
        ("one that never was", |c| c.active += Control::pack(1000, 0)),
        ("nothing was narrowed", |c| {
            c.active = Control::pack(Control::unpack(c.active).0, 0)
        }),
        ("epoch", |c| c.epoch += 1),
        ("root", |c| c.root += 1),
        ("level", |c| c.root_level += 1),
        ("flags", |c| c.flags ^= control_flags::HOST_MAY_REACH),
        ("idle", |c| c.datagram_idle = 1),
        ("share", |c| c.flow_share = 0),
    ];
    for (count, (what, alter)) in (1..).zip(fields) {
        let mut altered = read(&stage);
        alter(&mut altered);
        write(&stage, &altered);
        if altered.active == 0 {
            // Without a generation nothing passes, until it is put right.
            let attempt = stage.client.tcp(stage.to(), PATIENT / 4).unwrap();
            assert!(repairs(&stage, "control") > 0.0 || !attempt.replied());
        }
        is_repaired(&stage, "control", count);
        let now = read(&stage);
        assert_eq!(
            Control { active: 0, ..now },
            Control { active: 0, ..good },
            "{what}"
        );
        // What was cached meanwhile is decided again.
        let (active, narrowed) = Control::unpack(now.active);
        assert!(active > generation && active == narrowed, "{what}: {now:?}");
        assert!(active > Control::unpack(altered.active).0, "{what}");
    }
    // The agent goes on from there.
    stage.write_policy(&crate::stage::both());
    stage.until_other(true);
}

#[test]
fn a_last_generation_is_said_to_need_a_new_start() {
    let stage = watched();
    let mut altered = read(&stage);
    altered.active = Control::pack(FOREVER - 1, 0);
    write(&stage, &altered);
    is_named(&stage, "no generation is left");
    // It goes on with what it enforced.
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    assert_eq!(stage.metric("zt_repairs_total", &["what=\"control\""]), 1.0);
}
