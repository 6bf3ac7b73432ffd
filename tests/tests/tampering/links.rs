//! Links: detached, or with another program behind them.

use std::os::fd::AsFd as _;

use zt_agent::kernel::{links::POINTS, sys};
use zt_tests::stranger;

use crate::watched::{is_repaired, open, pins, watched};

#[test]
fn detached_links_are_attached_again() {
    let stage = watched();
    let pins = pins(&stage);
    for point in POINTS {
        sys::link_detach(open(&pins.link(point.program)).as_fd()).unwrap();
    }
    is_repaired(&stage, "link", POINTS.len());
    // Each hook once: nothing of ours runs twice, and nothing else does.
    for point in POINTS {
        let cgroup = std::fs::File::open(stage.managed.path()).unwrap();
        let programs = sys::effective(cgroup.as_fd(), point.attach_type).unwrap();
        assert_eq!(programs.len(), 1, "{}", point.hook);
    }
}

#[test]
fn a_program_in_the_place_of_ours_is_named_and_replaced() {
    let mut stage = watched();
    let pins = pins(&stage);
    let program = stranger::egress("impostor").unwrap();
    let egress = open(&pins.link("zt_egress"));
    sys::link_update(egress.as_fd(), program.as_fd()).unwrap();
    // The command looks for itself.
    let status = stage.ask(&["status"]);
    let seen = status.output.contains("impostor");
    is_repaired(&stage, "program", 1);
    if !seen {
        // The agent was quicker.
        assert_eq!(status.code, 0, "{status:?}");
    }

    // Without an agent it is still named, and the next agent puts it right.
    stage.agent.kill().unwrap();
    sys::link_update(egress.as_fd(), program.as_fd()).unwrap();
    let status = stage.ask(&["status"]);
    assert_eq!(status.code, 1);
    let words = "cgroup_skb/egress: the program behind our link is impostor, not zt_egress";
    assert!(status.output.contains(words), "{status:?}");
    stage.agent.start().unwrap();
    assert_eq!(stage.ask(&["status"]).code, 0);
    stage.is_denied(&stage.other);
}
