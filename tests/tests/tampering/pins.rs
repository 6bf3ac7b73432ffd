//! Pins: removed, or leading to something else.

use std::{fs, os::fd::AsFd as _, time::Duration};

use zt_agent::kernel::{links::POINTS, load::MAPS, sys};
use zt_tests::{report::Summary, stranger};

use crate::{
    stage::{Stage, wait},
    watched::{NOTICED, id, is_repaired, open, pins, watched},
};

/// What a forbidden and an allowed caller see, again and again, while `alter`
/// is done and put right.
fn meanwhile(stage: &Stage, alter: impl FnOnce()) -> (Summary, Summary) {
    let forbidden = stage.looping(&stage.other, Duration::from_secs(5));
    let allowed = stage.looping(&stage.client, Duration::from_secs(5));
    alter();
    (forbidden.summary().unwrap(), allowed.summary().unwrap())
}

#[track_caller]
fn nothing_changed((forbidden, allowed): (Summary, Summary)) {
    assert_eq!(forbidden.ok, 0, "{forbidden:?}");
    assert!(
        forbidden.failed.keys().all(|errno| errno == "EPERM"),
        "{forbidden:?}"
    );
    assert!(allowed.ok > 0 && allowed.failed.is_empty(), "{allowed:?}");
}

#[test]
fn removed_pins_of_maps_are_put_back_and_enforcement_has_no_gap() {
    let stage = watched();
    let pins = pins(&stage);
    let before: Vec<_> = MAPS
        .iter()
        .map(|(name, ..)| id(&open(&pins.map(name))))
        .collect();
    nothing_changed(meanwhile(&stage, || {
        for (name, ..) in MAPS {
            fs::remove_file(pins.map(name)).unwrap();
        }
        fs::remove_dir(pins.directory().join("maps")).unwrap();
    }));
    is_repaired(&stage, "map-pin", MAPS.len());
    let after: Vec<_> = MAPS
        .iter()
        .map(|(name, ..)| id(&open(&pins.map(name))))
        .collect();
    assert_eq!(before, after);
}

#[test]
fn removed_pins_of_links_are_put_back_and_enforcement_has_no_gap() {
    let stage = watched();
    let pins = pins(&stage);
    let ids = || {
        let link = |program: &str| id(&open(&pins.link(program)));
        POINTS
            .iter()
            .map(|point| link(point.program))
            .collect::<Vec<_>>()
    };
    let before = ids();
    nothing_changed(meanwhile(&stage, || {
        for point in POINTS {
            fs::remove_file(pins.link(point.program)).unwrap();
        }
        fs::remove_dir(pins.directory().join("links")).unwrap();
    }));
    is_repaired(&stage, "link-pin", POINTS.len());
    // The links themselves were never gone.
    assert_eq!(before, ids());
}

#[test]
fn pins_that_lead_to_something_else_are_put_right() {
    let stage = watched();
    let pins = pins(&stage);
    let policy = id(&open(&pins.map("zt_policy_v1")));
    let (outer, inner) = sys::array_of_maps().unwrap();
    let program = stranger::egress("odd").unwrap();
    nothing_changed(meanwhile(&stage, || {
        // Another map, of another size; one of ours; a program; a link.
        let link = open(&pins.link("zt_egress"));
        let trust = open(&pins.map("zt_trust_v1"));
        for (name, object) in [
            ("zt_policy_v1", inner.as_fd()),
            ("zt_address_v1", outer.as_fd()),
            ("zt_workload_v1", trust.as_fd()),
            ("zt_identity_v1", program.as_fd()),
            ("zt_rule_v1", link.as_fd()),
        ] {
            fs::remove_file(pins.map(name)).unwrap();
            sys::pin(object, &pins.map(name)).unwrap();
        }
    }));
    is_repaired(&stage, "map-pin", 5);
    assert_eq!(policy, id(&open(&pins.map("zt_policy_v1"))));

    // Two links that change places: the kernel would take a program for one
    // hook at the other.
    let four = open(&pins.link("zt_connect4"));
    let six = open(&pins.link("zt_connect6"));
    for (name, object) in [("zt_connect4", &six), ("zt_connect6", &four)] {
        fs::remove_file(pins.link(name)).unwrap();
        sys::pin(object.as_fd(), &pins.link(name)).unwrap();
    }
    is_repaired(&stage, "link-pin", 2);
    assert_eq!(id(&four), id(&open(&pins.link("zt_connect4"))));
}

#[test]
fn without_an_agent_the_command_sees_a_pin_that_leads_to_something_else() {
    let mut stage = watched();
    let pins = pins(&stage);
    let policy = open(&pins.map("zt_policy_v1"));
    let trust = open(&pins.map("zt_trust_v1"));
    stage.agent.kill().unwrap();
    fs::remove_file(pins.map("zt_trust_v1")).unwrap();
    sys::pin(policy.as_fd(), &pins.map("zt_trust_v1")).unwrap();
    let status = stage.status();
    let problems = status["problems"].to_string();
    assert!(
        problems.contains("zt_trust_v1: what is pinned is not"),
        "{status}"
    );
    assert_eq!(
        status["kernel"]["pins_astray"],
        serde_json::json!(["zt_trust_v1"])
    );
    // An agent does not start on it.
    stage.agent.launch().unwrap();
    wait(NOTICED, || stage.agent.log().contains("has another layout"));
    stage.is_denied(&stage.other);
    fs::remove_file(pins.map("zt_trust_v1")).unwrap();
    sys::pin(trust.as_fd(), &pins.map("zt_trust_v1")).unwrap();
    stage.agent.start().unwrap();
    assert_eq!(stage.ask(&["status"]).code, 0);
}

#[test]
fn a_pin_directory_that_is_removed_whole_is_made_again() {
    let stage = watched();
    let pins = pins(&stage);
    nothing_changed(meanwhile(&stage, || {
        fs::remove_dir_all(pins.directory()).unwrap();
    }));
    wait(NOTICED * 4, || {
        let all = MAPS.iter().all(|(name, ..)| pins.map(name).exists());
        all && POINTS.iter().all(|point| pins.link(point.program).exists())
    });
    wait(NOTICED * 4, || stage.agent.readiness().unwrap().0 == 200);
}
