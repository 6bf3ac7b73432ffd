//! The agent at the interfaces of its workloads: covered, covered again when
//! somebody interferes, and left as they were by `cleanup`.

use std::process::Command;

use serde_json::Value;
use zt_agent::kernel::{pins::Pins, view::View};

use crate::stage::{PATIENT, Settings, Stage, wait};

fn stage() -> Stage {
    Stage::running(Settings {
        on_the_bridge: true,
        managed: "[\"p*\"]",
        ..Settings::default()
    })
}

fn interfaces(status: &Value) -> Vec<(String, bool)> {
    let list = status["interfaces"].as_array().unwrap();
    list.iter()
        .map(|one| {
            let sides = one["sides"].as_array().unwrap();
            let attached = sides.iter().filter(|side| side["program_id"].is_u64());
            (
                one["name"].as_str().unwrap().to_owned(),
                attached.count() == 2,
            )
        })
        .collect()
}

fn all_covered(stage: &Stage) -> bool {
    let found = interfaces(&stage.status());
    found.len() == 3 && found.iter().all(|(_, covered)| *covered)
}

/// What `nft` lists in the namespace of the bridge.
fn ruleset(stage: &Stage) -> String {
    let bridge = stage.network.bridge();
    let listed = bridge.enter(|| Ok(Command::new("nft").args(["list", "ruleset"]).output()?));
    String::from_utf8(listed.unwrap().stdout).unwrap()
}

#[test]
fn every_interface_of_a_workload_is_covered_and_named() {
    let stage = stage();
    let status = stage.status();
    assert_eq!(status["coverage"], "complete", "{status:#}");
    assert!(all_covered(&stage), "{status:#}");
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    assert!(ruleset(&stage).contains("zt-agent"));
    assert_eq!(stage.tell(&["status"]).code, 0);
}

#[test]
fn the_programs_stay_without_the_agent_and_are_replaced_by_the_next() {
    let mut stage = stage();
    let held = stage.client.tcp_held(stage.to(), PATIENT).unwrap();
    assert!(held.first.replied());
    stage.agent.kill().unwrap();
    let status = stage.status();
    assert!(
        interfaces(&status).iter().all(|(_, covered)| *covered),
        "{status:#}"
    );
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    stage.agent.start().unwrap();
    assert!(all_covered(&stage));
    stage.passes(&stage.client);
    drop(held);
}

#[test]
fn an_interface_that_is_made_anew_is_covered_again() {
    let stage = stage();
    let bridge = stage.network.bridge();
    bridge.ip(&["link", "delete", "p10"]).unwrap();
    let name = stage.client.netns().unwrap().name();
    bridge
        .ip(&[
            "link", "add", "p10", "type", "veth", "peer", "name", "eth0", "netns", name,
        ])
        .unwrap();
    bridge
        .ip(&["link", "set", "p10", "master", "br0", "up"])
        .unwrap();
    let netns = stage.client.netns().unwrap();
    netns.add_address(stage.network.ipv4(10).into()).unwrap();
    netns.ip(&["link", "set", "eth0", "up"]).unwrap();
    wait(PATIENT * 2, || all_covered(&stage));
    wait(PATIENT, || stage.connect(&stage.client).replied());
}

#[test]
fn a_program_that_is_taken_off_comes_back_and_nothing_leaves_meanwhile() {
    let stage = stage();
    for pin in stage.pinned() {
        if pin
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("tc-")
        {
            std::fs::remove_file(pin).unwrap();
        }
    }
    // Not marked by our program, everything from a managed name is dropped.
    wait(PATIENT * 3, || all_covered(&stage));
    wait(PATIENT, || stage.connect(&stage.client).replied());
    assert!(stage.agent.log().contains("our program was taken off"));
}

#[test]
fn a_flushed_default_drop_comes_back() {
    let stage = stage();
    let bridge = stage.network.bridge();
    bridge
        .enter(|| Ok(Command::new("nft").args(["flush", "ruleset"]).status()?))
        .unwrap();
    wait(PATIENT * 3, || ruleset(&stage).contains("zt-agent"));
}

#[test]
fn cleanup_leaves_the_interfaces_as_they_were() {
    let mut stage = stage();
    stage.agent.stop().unwrap();
    stage.tell(&["cleanup"]);
    assert!(!ruleset(&stage).contains("zt-agent"));
    stage.passes(&stage.other);
    assert!(stage.pinned().is_empty());
}

#[test]
fn a_workload_that_changes_its_mac_address_is_denied_and_named() {
    let stage = stage();
    stage.passes(&stage.client);
    let netns = stage.client.netns().unwrap();
    netns
        .ip(&["link", "set", "eth0", "address", "02:00:00:00:00:99"])
        .unwrap();
    wait(PATIENT * 2, || {
        let (code, said) = stage.agent.readiness().unwrap();
        code == 503 && said.contains("p10 has changed its MAC address")
    });
    assert!(!stage.connect(&stage.client).replied());
}

/// While it is down nothing leads there, and the programs know it no more.
#[test]
fn a_mac_address_that_is_changed_while_the_interface_is_down_is_changed_all_the_same() {
    let stage = stage();
    stage.passes(&stage.client);
    let netns = stage.client.netns().unwrap();
    let ready = |stage: &Stage| stage.agent.readiness().unwrap();
    netns.ip(&["link", "set", "eth0", "down"]).unwrap();
    let rows = || View::read(&Pins::new(stage.pins())).unwrap().tables;
    wait(PATIENT * 2, || rows().interface.len() == 2);
    let link = ["link", "set", "eth0", "address", "02:00:00:00:00:99", "up"];
    netns.ip(&link).unwrap();
    wait(PATIENT * 2, || {
        let (code, said) = ready(&stage);
        code == 503 && said.contains("p10 has changed its MAC address")
    });
    assert!(!stage.connect(&stage.client).replied());
}
