//! Files that come and go while the agent reads them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::mount::{MsFlags, mount};
use zt_tests::patience;

use crate::{
    beside::{Beside, Usage},
    stage::{POLICY, Settings, Stage, both, wait},
};

/// What the settings ask for; the agent looks once a second.
const NOTICED: Duration = Duration::from_secs(8);
/// A file that is empty for longer is so on purpose; the agent waits 500 ms.
const EMPTIED: Duration = Duration::from_millis(400);
const SLOW_FILES: usize = 20;
/// The agent says so after 10 s.
const SAID: Duration = Duration::from_secs(60);
/// Until one that was started says how it is: the kernel looks at its programs first,
/// beside those of other tests.
const STARTED: Duration = Duration::from_secs(15);

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
    let mut beside = Beside::start(&stage, Duration::from_secs(10));
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

    beside.end(&mut stage);
    Usage::of(&stage).is_like(&before, 4 * 1024);
    stage.write_policy(&both());
    stage.until_other(true);
}

/// A file that is emptied and then written is read between the two, or while that
/// happens. What an agent makes of nothing is that nobody may do anything.
#[test]
fn a_policy_file_that_is_saved_badly_opens_and_cuts_nothing() {
    let mut stage = slow_to_read();
    let before = Usage::of(&stage);
    for attempt in 1.. {
        let mut beside = Beside::start(&stage, Duration::from_secs(8));
        let longest = save_badly(&stage);
        wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
        if longest < EMPTIED {
            beside.holds();
            beside.end(&mut stage);
            break;
        }
        // Then it was empty and no more was coming, as far as anybody could see.
        println!("this machine was not there for {longest:?}");
        assert!(attempt < 10, "this machine is too busy to say anything");
        stage.until_other(false);
    }
    // The texts of what is in force, of what is written, and of one more.
    Usage::of(&stage).is_like(&before, 8 * 1024);
    stage.write_policy(&both());
    stage.until_other(true);
}

/// A running agent whose files take longer to read than one of them to be saved: that
/// one is read last.
fn slow_to_read() -> Stage {
    let mut stage = Stage::new(Settings::default());
    for n in 0..SLOW_FILES {
        let text = POLICY.replace("name: core", &format!("name: also-{n}"));
        let text = text.replace("t/client", "t/somebody");
        let text = format!("{text}{}", "# room\n".repeat(16 << 10));
        fs::write(stage.policies().join(format!("also-{n}.yaml")), text).unwrap();
    }
    stage.agent.start().unwrap();
    stage
}

/// Nothing of them is used, which somebody must hear of: a rule may have been taken
/// away.
#[test]
fn files_that_change_all_the_time_are_said_and_their_last_word_counts() {
    let stage = slow_to_read();
    let started = Instant::now();
    let is_said = || {
        let (code, text) = stage.agent.readiness().unwrap();
        code == 503 && text.contains("changing faster than they are read")
    };
    for n in 0.. {
        stage.write_policy(&format!("{POLICY}# {n}\n"));
        // What is read is another file's business.
        fs::write(stage.policies().join(".core.yaml.swp"), n.to_string()).unwrap();
        if n % 100 == 0 && is_said() {
            break;
        }
        assert!(started.elapsed() < patience::scaled(SAID), "nobody says so");
        sleep(Duration::from_millis(5));
    }
    stage.passes(&stage.client);
    stage.write_policy(&both());
    stage.until_other(true);
    wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
    // Files that are not read may change as they like.
    let stop = Instant::now() + Duration::from_secs(3);
    stage.write_policy(POLICY);
    while Instant::now() < stop {
        fs::write(stage.policies().join("notes.txt"), "x").unwrap();
        fs::remove_file(stage.policies().join("notes.txt")).unwrap();
    }
    stage.is_denied(&stage.other);
}

/// Some seconds of it. Returns for how long the file was empty at most.
fn save_badly(stage: &Stage) -> Duration {
    let mut longest = Duration::ZERO;
    for pause in (0..150).map(|round| round * 7 % 41) {
        let emptied = Instant::now();
        fs::write(stage.policy(), "").unwrap();
        sleep(Duration::from_millis(pause));
        fs::write(stage.policy(), POLICY).unwrap();
        longest = longest.max(emptied.elapsed());
        sleep(Duration::from_millis(pause / 2));
    }
    longest
}

/// A start with files that have errors goes on with those that were accepted
/// last: they must not be older than what is in force.
#[test]
fn what_was_taken_back_stays_so_though_it_could_not_be_kept_for_the_next_start() {
    let mut stage = Stage::new(Settings::default());
    let state = stage.directory().join("state");
    fs::create_dir(&state).unwrap();
    let (kind, options) = (Some("tmpfs"), Some("size=128k,mode=700"));
    mount(kind, &state, kind, MsFlags::empty(), options).unwrap();
    stage.agent.start().unwrap();
    stage.write_policy(&both());
    stage.until_other(true);
    // What was kept before that goes, and leaves room, a moment later.
    let kept = || {
        let entries = fs::read_dir(&state).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.contains("accepted")).count()
    };
    wait(NOTICED, || kept() == 2);
    let filler = state.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 1024]).is_ok() {}
    drop(file);

    // More than what goes leaves room for.
    let large = format!("{POLICY}{}", "# room\n".repeat(8 << 10));
    stage.write_policy(&large);
    stage.until_other(false);
    wait(NOTICED, || {
        let (code, said) = stage.agent.readiness().unwrap();
        code == 503 && said.contains("cannot be kept for the next start")
    });
    stage.agent.kill().unwrap();
    stage.write_policy("nonsense\n");
    stage.agent.launch().unwrap();
    let unready = |stage: &Stage, word: &str| {
        wait(STARTED, || {
            let answer = stage.agent.readiness();
            answer.is_ok_and(|(code, said)| code == 503 && said.contains(word))
        });
    };
    unready(&stage, "core.yaml");
    stage.is_denied(&stage.other);
    stage.passes(&stage.client);

    // It is kept as soon as it can be, and then it is what counts.
    stage.write_policy(&large);
    unready(&stage, "cannot be kept for the next start");
    fs::remove_file(&filler).unwrap();
    wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
    stage.agent.kill().unwrap();
    stage.write_policy("nonsense\n");
    stage.tell(&["cleanup"]);
    stage.agent.launch().unwrap();
    unready(&stage, "core.yaml");
    stage.is_denied(&stage.other);
    stage.passes(&stage.client);
}
