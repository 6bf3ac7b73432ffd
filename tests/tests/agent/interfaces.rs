//! The agent at the interfaces of its workloads: covered from the first frame,
//! covered again when somebody interferes, and left as they were by `cleanup`.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::Duration,
};

use nix::errno::Errno;
use serde_json::Value;
use zt_tests::{
    netns::Netns,
    patience,
    wire::{BROADCAST, Wire, frame},
};

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

/// Trials of each kind; a leak shows in some of a hundred.
const TRIALS: usize = 60;

/// A process that sends from before its interface exists: makes a veth on the
/// bridge `trials` times, and gives the frames that arrived at the watcher,
/// which is on the same bridge and governed by nobody.
fn leaks(stage: &Stage, watcher: &Netns, pod: &Netns, port: &str, trials: usize) -> usize {
    let bridge = stage.network.bridge();
    let ending = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(watcher, &ending));
        let sender = scope.spawn(|| send(pod, &ending));
        for _ in 0..trials {
            appear(bridge, port, pod);
            sleep(patience::scaled(Duration::from_millis(15)));
            bridge.ip(&["link", "delete", port]).unwrap();
        }
        sleep(Duration::from_millis(50));
        ending.store(true, Ordering::Relaxed);
        assert!(sender.join().unwrap() > trials, "the sender sends");
        receiver.join().unwrap()
    })
}

fn appear(bridge: &Netns, port: &str, pod: &Netns) {
    let name = pod.name();
    bridge
        .ip(&[
            "link", "add", port, "up", "type", "veth", "peer", "name", "eth0", "netns", name,
        ])
        .unwrap();
    bridge.ip(&["link", "set", port, "master", "br0"]).unwrap();
    pod.ip(&["link", "set", "eth0", "up"]).unwrap();
}

/// Sends whenever there is an interface; gives how many frames went out.
fn send(pod: &Netns, ending: &AtomicBool) -> usize {
    let mut sent = 0;
    let frame = frame(BROADCAST, [2, 0, 0, 0, 0, 9], EXPERIMENT, &[0x2a; 46]);
    while !ending.load(Ordering::Relaxed) {
        let Ok(wire) = Wire::open(pod, "eth0") else {
            continue;
        };
        while !ending.load(Ordering::Relaxed) {
            match wire.send(&frame) {
                Ok(()) => sent += 1,
                // It is gone: wait for the next. One that is not up yet is
                // worth another try.
                Err(error) if error.downcast_ref() == Some(&Errno::ENETDOWN) => {}
                Err(_) => break,
            }
        }
    }
    sent
}

/// An ethertype for local experiments (IEEE 802).
const EXPERIMENT: u16 = 0x88b5;

fn receive(watcher: &Netns, ending: &AtomicBool) -> usize {
    let wire = Wire::open(watcher, "eth0").unwrap();
    let mut seen = 0;
    while !ending.load(Ordering::Relaxed) {
        let frame = wire.next(Duration::from_millis(20)).unwrap();
        let ours = |frame: Vec<u8>| frame[12..14] == EXPERIMENT.to_be_bytes();
        seen += usize::from(frame.is_some_and(ours));
    }
    seen
}

#[test]
fn nothing_leaves_an_interface_before_it_is_covered() {
    let stage = stage();
    let watcher = stage.sandbox.netns("watcher").unwrap();
    appear(stage.network.bridge(), "watch0", &watcher);
    let pod = stage.sandbox.netns("newcomer").unwrap();
    let leaks = |port, trials| leaks(&stage, &watcher, &pod, port, trials);
    // A name that is not managed: this is what leaks.
    assert!(leaks("free0", 3) > 0, "the test sees what arrives");
    assert_eq!(leaks("pnew", TRIALS), 0, "idle");
    let ending = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !ending.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        assert_eq!(leaks("pnew", TRIALS), 0, "busy");
        ending.store(true, Ordering::Relaxed);
    });
}
