//! The programs at the interfaces of workloads: taken off, with another one in
//! their place, or with another one before them.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use zt_agent::{
    kernel::{
        frames::POINTS,
        sys,
        tc::{self, Mechanism, Side},
    },
    netlink::traffic_control::{self, Slot},
};
use zt_tests::{patience, stranger};

use crate::{
    stage::{Settings, Stage, wait},
    watched::{NOTICED, is_repaired, open, repairs},
};

/// Goes on with the next program, and so leaves everything to ours.
const NEXT: i32 = -1;

/// At the interfaces of three workloads.
const PROGRAMS: usize = 6;

fn watched() -> Stage {
    Stage::running(Settings {
        verify_seconds: 1,
        on_the_bridge: true,
        managed: "[\"p*\"]",
        ..Settings::default()
    })
}

/// Index, side and pin of every program of ours.
fn sides(stage: &Stage) -> Vec<(u32, Side, PathBuf)> {
    let status = stage.status();
    let list = status["interfaces"].as_array().unwrap();
    let indices = list
        .iter()
        .map(|one| u32::try_from(one["index"].as_u64().unwrap()).unwrap());
    let of = |index| {
        POINTS.map(|point| {
            let way = point.hook.strip_prefix("tc/").unwrap();
            let (way, _) = way.split_once('-').unwrap();
            let pin = stage.pins().join(format!("links/tc-{index}-{way}"));
            (index, point.side, pin)
        })
    };
    indices.flat_map(of).collect()
}

/// Something done as root of the node.
fn on_the_node<T: Send>(stage: &Stage, work: impl FnOnce(Mechanism) -> T + Send) -> T {
    let bridge = stage.network.bridge();
    bridge.enter(|| Ok(work(tc::probe()?))).unwrap()
}

/// Puts a program in the place of ours.
fn replace(stage: &Stage, (index, side, pin): &(u32, Side, PathBuf), program: &OwnedFd) {
    /// Where the agent's own is.
    const OURS: Slot = Slot {
        priority: 1,
        handle: 0x7a74,
    };
    on_the_node(stage, |mechanism| match mechanism {
        Mechanism::Tcx => sys::link_update(open(pin).as_fd(), program.as_fd()).unwrap(),
        Mechanism::Clsact => {
            traffic_control::set_program(*index, *side, OURS, program.as_fd(), "impostor").unwrap();
        }
    });
}

/// A program before ours, for as long as this lives.
struct Before<'a> {
    stage: &'a Stage,
    index: u32,
    side: Side,
    link: Option<OwnedFd>,
}

impl<'a> Before<'a> {
    /// Of one priority, the last that was added is asked first.
    const SLOT: Slot = Slot {
        priority: 1,
        handle: 0x1,
    };

    fn attach(stage: &'a Stage, index: u32, side: Side, program: &OwnedFd) -> Self {
        let link = on_the_node(stage, |mechanism| match mechanism {
            Mechanism::Tcx => {
                let kind = match side {
                    Side::Ingress => 46,
                    Side::Egress => 47,
                };
                Some(sys::tcx_link_create(program.as_fd(), index, kind).unwrap())
            }
            Mechanism::Clsact => {
                let program = program.as_fd();
                traffic_control::set_program(index, side, Self::SLOT, program, "first").unwrap();
                None
            }
        });
        Self {
            stage,
            index,
            side,
            link,
        }
    }
}

impl Drop for Before<'_> {
    fn drop(&mut self) {
        if self.link.take().is_none() {
            let (index, side) = (self.index, self.side);
            on_the_node(self.stage, |_| {
                traffic_control::delete(index, side, Self::SLOT)
            })
            .unwrap();
        }
    }
}

#[test]
fn programs_that_are_taken_off_interfaces_are_attached_again() {
    let stage = watched();
    let sides = sides(&stage);
    assert_eq!(sides.len(), PROGRAMS);
    on_the_node(&stage, |mechanism| {
        for (index, side, pin) in &sides {
            tc::detach(mechanism, *index, *side, pin).unwrap();
        }
    });
    is_repaired(&stage, "link", PROGRAMS);
    if on_the_node(&stage, |mechanism| mechanism) == Mechanism::Tcx {
        // With the pin left behind.
        for (_, _, pin) in &sides {
            sys::link_detach(open(pin).as_fd()).unwrap();
        }
        is_repaired(&stage, "link", 2 * PROGRAMS);
    }
    // Once each.
    on_the_node(&stage, |mechanism| {
        for (index, side, pin) in &sides {
            let programs = tc::programs(mechanism, *index, *side, pin).unwrap();
            assert_eq!(programs.len(), 1, "{programs:?}");
        }
    });
}

#[test]
fn a_program_in_the_place_of_ours_at_an_interface_is_named_and_replaced() {
    let mut stage = watched();
    let sides = sides(&stage);
    let program = stranger::classifier(NEXT, "impostor").unwrap();
    let (what, words) = match on_the_node(&stage, |mechanism| mechanism) {
        Mechanism::Tcx => (
            "program",
            "tc/from-workload: the program behind our link is impostor, not zt_tc_from",
        ),
        Mechanism::Clsact => ("link", "tc/from-workload: our program is not attached"),
    };
    for side in &sides {
        replace(&stage, side, &program);
    }
    is_repaired(&stage, what, PROGRAMS);

    // Without an agent it is still named, nothing leaves unseen, and the next
    // agent puts it right.
    stage.agent.kill().unwrap();
    let (from, _) = sides
        .iter()
        .partition::<Vec<_>, _>(|one| one.1 == Side::Ingress);
    for side in from {
        replace(&stage, side, &program);
    }
    let status = stage.ask(&["status"]);
    assert_eq!(status.code, 1);
    assert!(status.output.contains(words), "{status:?}");
    assert!(!stage.connect(&stage.client).replied());
    stage.agent.start().unwrap();
    assert_eq!(stage.ask(&["status"]).code, 0);
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
}

#[test]
fn a_program_before_ours_at_an_interface_is_named_until_it_is_gone() {
    let stage = watched();
    let program = stranger::classifier(NEXT, "the_first").unwrap();
    let failed = || stage.metric("zt_interfaces_failed", &[]);
    let (index, ..) = sides(&stage)[0];
    for point in POINTS {
        let first = Before::attach(&stage, index, point.side, &program);
        let status = stage.ask(&["status"]);
        assert_eq!(status.code, 1, "{status:?}");
        let words = "is not ours and decides before our program";
        assert!(status.output.contains(words), "{status:?}");
        assert!(status.output.contains(point.hook), "{status:?}");
        wait(NOTICED, || failed() == 1.0);
        // From then on all the time.
        let start = Instant::now();
        while start.elapsed() < patience::scaled(Duration::from_secs(4)) {
            assert_eq!(failed(), 1.0);
            let (code, said) = stage.agent.readiness().unwrap();
            assert_eq!(code, 503);
            assert!(said.contains(point.hook), "{said}");
        }
        stage.passes(&stage.client);
        stage.is_denied(&stage.other);
        drop(first);
        wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
        assert_eq!(failed(), 0.0);
        assert_eq!(stage.ask(&["status"]).code, 0);
    }
    // Ours never moved.
    assert_eq!(repairs(&stage, "link") + repairs(&stage, "program"), 0.0);
}
