//! Files that come and go while the agent reads them.

use std::{fs, os::unix::fs::symlink, thread::sleep, time::Duration};

use crate::{
    beside::{Beside, Usage},
    stage::{POLICY, Settings, Stage, both, wait},
};

/// What the settings ask for; the agent looks once a second.
const NOTICED: Duration = Duration::from_secs(8);

#[test]
fn a_policy_directory_that_comes_and_goes_opens_and_cuts_nothing() {
    let mut stage = Stage::running(Settings::default());
    let (place, away) = (stage.policies(), stage.directory().join("away"));
    let ready = |stage: &Stage| {
        wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
    };
    let unready = |stage: &Stage| {
        wait(NOTICED, || stage.agent.readiness().unwrap().0 == 503);
    };
    let before = Usage::of(&stage);
    let mut beside = Beside::start(&stage, Duration::from_secs(14));
    for pause in [0, 30, 400] {
        fs::rename(&place, &away).unwrap();
        sleep(Duration::from_millis(pause));
        fs::rename(&away, &place).unwrap();
    }
    ready(&stage);
    beside.holds();

    // Something else is at its place.
    fs::rename(&place, &away).unwrap();
    unready(&stage);
    fs::write(&place, "not a directory\n").unwrap();
    sleep(Duration::from_millis(300));
    fs::remove_file(&place).unwrap();
    symlink("/nowhere", &place).unwrap();
    sleep(Duration::from_millis(300));
    fs::remove_file(&place).unwrap();
    // Empty means that nobody may do anything: that is an answer, and must
    // not be given for a directory that is being filled.
    fs::rename(&away, &place).unwrap();
    ready(&stage);
    beside.holds();

    // The file within it, saved badly: first emptied, then written.
    for _ in 0..10 {
        fs::write(stage.policy(), POLICY).unwrap();
        sleep(Duration::from_millis(20));
    }
    ready(&stage);
    beside.holds();
    beside.end(&mut stage);
    Usage::of(&stage).is_like(&before, 4 * 1024);
    stage.write_policy(&both());
    stage.until_other(true);
}
