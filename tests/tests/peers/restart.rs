//! The agent dies and comes back while connections are tried.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use zt_tests::patience;

use crate::stage::{PATIENT, Settings, Stage};

/// CVE-2023-27595: at a start the agent removed its filters before it put the
/// new ones in place, and for that moment no policy was enforced. Here an
/// agent that is killed leaves its programs where they are, and the next one
/// replaces each behind its link in one step.
#[test]
fn cve_2023_27595_an_agent_that_restarts_under_load_leaves_no_gap() {
    let mut stage = Stage::running(Settings::default());
    let own = stage.network.ipv4(11).to_string();
    let run = patience::scaled(Duration::from_secs(8));
    let mut held = stage.client.tcp_held(stage.to(), PATIENT).unwrap();
    let good = stage.looping(&stage.client, run);
    let bad = stage.looping(&stage.other, run);
    let start = Instant::now();
    let mut restarts = 0;
    while start.elapsed() < run - Duration::from_millis(500) || restarts < 4 {
        stage.agent.kill().unwrap();
        // In the middle of what a start does, too.
        if restarts % 2 == 0 {
            stage.agent.launch().unwrap();
            sleep(Duration::from_millis(20 + 37 * (restarts % 12)));
            stage.agent.kill().unwrap();
        }
        stage.agent.start().unwrap();
        assert!(held.again().unwrap().replied(), "after restart {restarts}");
        restarts += 1;
    }
    let (good, bad) = (good.summary().unwrap(), bad.summary().unwrap());
    println!("{restarts} restarts, allowed {good:?}, forbidden {bad:?}");
    assert!(good.ok > 100 && good.failed.is_empty(), "{good:?}");
    assert!(bad.ok == 0 && bad.failed.keys().eq(["EPERM"]), "{bad:?}");
    let arrived = stage.received();
    assert!(!arrived.is_empty());
    assert!(
        !arrived.iter().any(|line| line.contains(&own)),
        "something of {own} arrived"
    );
    assert!(held.again().unwrap().replied());
}
