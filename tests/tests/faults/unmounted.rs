//! The file system with the pins goes away under a running agent.

use std::{fs, time::Duration};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use zt_agent::kernel::{links::POINTS, pins::Pins, view::View};

use crate::{
    beside::{Beside, Usage},
    stage::{POLICY, Settings, Stage, both, wait},
};

/// It looks every two seconds.
const NOTICED: Duration = Duration::from_secs(10);

fn says(stage: &Stage, word: &str) -> bool {
    let said = stage.agent.readiness();
    said.is_ok_and(|(code, body)| code == 503 && body.contains(word))
}

#[test]
fn an_unmounted_bpffs_ends_nothing_is_said_and_is_pinned_anew() {
    let mut stage = Stage::running(Settings::default());
    let place = stage.pins().parent().unwrap().to_path_buf();
    let before = Usage::of(&stage);
    let sorted = |stage: &Stage| {
        let mut pinned = stage.pinned();
        pinned.sort_unstable();
        pinned
    };
    let pinned = sorted(&stage);
    let epoch = View::read(&Pins::new(stage.pins())).unwrap().control.epoch;
    let mut beside = Beside::start(&stage, Duration::from_secs(12));

    // An ordinary unmount is refused, because the agent is there.
    assert!(umount2(&place, MntFlags::empty()).is_err());
    umount2(&place, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(stage.pinned(), Vec::<std::path::PathBuf>::new());
    wait(NOTICED, || says(&stage, "was unmounted"));
    beside.holds();
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    // It goes on following its sources, and counts on.
    stage.write_policy(&format!("{POLICY}# the same\n"));
    let decided = stage.metric("zt_decisions_total", &[]);
    stage.passes(&stage.client);
    wait(NOTICED, || {
        stage.metric("zt_decisions_total", &[]) > decided
    });

    let none: Option<&str> = None;
    mount(Some("bpf"), &place, Some("bpf"), MsFlags::empty(), none).unwrap();
    wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
    assert_eq!(sorted(&stage), pinned, "everything is pinned again");
    for point in POINTS {
        assert!(fs::exists(stage.pins().join("links").join(point.program)).unwrap());
    }
    assert_eq!(stage.ask(&["status"]).code, 0);
    let log = stage.agent.log();
    assert!(log.contains("they are pinned in it now"), "{log}");
    Usage::of(&stage).is_like(&before, 4 * 1024);

    // The pins are good: an agent that dies leaves its enforcement, and the
    // next one goes on with the same maps and links.
    let generation = View::read(&Pins::new(stage.pins())).unwrap().generation;
    stage.agent.kill().unwrap();
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    stage.agent.start().unwrap();
    let view = View::read(&Pins::new(stage.pins())).unwrap();
    assert_eq!((view.generation, view.control.epoch), (generation, epoch));
    beside.holds();
    beside.end(&mut stage);
    stage.write_policy(&both());
    stage.until_other(true);
}
