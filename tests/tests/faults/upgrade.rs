//! Other binaries take over, and several at once try to.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use zt_agent::kernel::{links::POINTS, sys};
use zt_tests::process::Running;

use crate::{
    beside::{Beside, Usage},
    stage::{Settings, Stage, wait},
};

/// Another file with another content that is the same program.
fn another_binary(of: &Path, at: PathBuf, version: &str) -> PathBuf {
    fs::copy(of, &at).unwrap();
    // Behind what the loader looks at.
    let mut file = File::options().append(true).open(&at).unwrap();
    writeln!(file, "zt-agent {version}").unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    at
}

/// Ids of the links and of the programs behind them.
fn attached(stage: &Stage) -> Vec<(u32, u32)> {
    let of = |program: &str| {
        let link = sys::get_pinned(&stage.pins().join("links").join(program)).unwrap();
        let info = format!("/proc/self/fdinfo/{}", link.as_raw_fd());
        let info = fs::read_to_string(info).unwrap();
        let number = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().parse().unwrap()
        };
        (number("link_id:"), number("prog_id:"))
    };
    POINTS.iter().map(|point| of(point.program)).collect()
}

#[test]
fn an_upgrade_replaces_the_programs_behind_the_same_links_without_a_gap() {
    let mut stage = Stage::running(Settings::default());
    let built = stage.agent.program().to_owned();
    let binaries = [
        another_binary(&built, stage.directory().join("zt-agent-next"), "9.9.9"),
        another_binary(&built, stage.directory().join("agent"), "10.0.0"),
        built,
    ];
    // The first restart settles what a first start leaves.
    stage.agent.stop().unwrap();
    stage.agent.start().unwrap();
    let before = Usage::of(&stage);
    let first = attached(&stage);
    let mut beside = Beside::start(&stage, Duration::from_secs(9));
    let mut upgrades = 0;
    while beside.goes_on() || upgrades < binaries.len() {
        let old = attached(&stage);
        // In order and not, by turns.
        if upgrades % 2 == 0 {
            stage.agent.stop().unwrap();
        } else {
            stage.agent.kill().unwrap();
        }
        stage
            .agent
            .set_program(binaries[upgrades % binaries.len()].clone());
        stage.agent.start().unwrap();
        let exe = format!("/proc/{}/exe", stage.agent.pid().unwrap());
        assert_eq!(fs::read_link(exe).unwrap(), *stage.agent.program());
        let new = attached(&stage);
        for (old, new) in old.iter().zip(&new) {
            assert_eq!(old.0, new.0, "the link stays");
            assert_ne!(old.1, new.1, "the program is another one");
        }
        beside.holds();
        upgrades += 1;
    }
    println!("{upgrades} upgrades");
    beside.end(&mut stage);
    assert!(
        attached(&stage)
            .iter()
            .zip(&first)
            .all(|(now, then)| now.0 == then.0)
    );
    Usage::of(&stage).is_like(&before, 8 * 1024);
}

#[test]
fn of_many_agents_that_start_at_once_one_runs_and_the_others_change_nothing() {
    let mut stage = Stage::running(Settings::default());
    let beside = Beside::start(&stage, Duration::from_secs(7));
    stage.agent.kill().unwrap();
    let mut agents: Vec<Running> = (0..5)
        .map(|_| stage.agent.attend(&["run"], None).unwrap())
        .collect();
    wait(Duration::from_secs(20), || {
        stage.agent.readiness().is_ok_and(|(code, _)| code == 200)
    });
    // Whoever did not win has ended by then, or soon.
    sleep(Duration::from_millis(500));
    let mut ended = Vec::new();
    for agent in &mut agents {
        ended.extend(agent.ended().unwrap().map(|status| status.code()));
    }
    assert_eq!(ended, [Some(3); 4], "one of five runs");
    let pid = stage.status()["pid"].as_u64().unwrap();
    assert!(agents.iter().any(|agent| u64::from(agent.pid()) == pid));
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    drop(agents);
    stage.agent.start().unwrap();
    beside.end(&mut stage);
}
