//! An agent that looks often, and what it must say when it has found something.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use zt_agent::kernel::{pins::Pins, sys};

use crate::stage::{Settings, Stage, wait};

/// The agent looks every second or two; on a busy machine it is late.
pub const NOTICED: Duration = Duration::from_secs(8);

pub fn watched() -> Stage {
    Stage::running(Settings {
        verify_seconds: 1,
        ..Settings::default()
    })
}

pub fn pins(stage: &Stage) -> Pins {
    Pins::new(stage.pins())
}

pub fn open(path: &Path) -> OwnedFd {
    sys::get_pinned(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn map(stage: &Stage, name: &str) -> OwnedFd {
    open(&pins(stage).map(name))
}

pub fn repairs(stage: &Stage, what: &str) -> f64 {
    stage.metric("zt_repairs_total", &[&format!("what=\"{what}\"")])
}

/// So many repairs of a kind were counted, and are told everywhere; the agent
/// is ready again, and enforces what it did.
#[track_caller]
pub fn is_repaired(stage: &Stage, what: &str, count: usize) {
    wait(NOTICED, || repairs(stage, what) >= count as f64);
    assert_eq!(
        repairs(stage, what),
        count as f64,
        "{what}\n{}",
        stage.agent.log()
    );
    let status = stage.status();
    assert_eq!(status["agent"]["repairs"][what], count, "{status}");
    let last = status["agent"]["last_repair"].as_str().unwrap();
    assert!(last.contains(what), "{last}");
    let text = stage.ask(&["status"]).output;
    let line = format!("repairs.{what}");
    assert!(text.contains(&line), "{line}: {text}");
    let log = stage.agent.log();
    assert!(log.contains("somebody altered what we wrote"), "{log}");
    let told = || {
        let records = stage.records();
        let told =
            |record: &&serde_json::Value| record["kind"] == "repair" && record["what"] == what;
        records.iter().filter(told).count() == count
    };
    wait(NOTICED, told);
    wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
    assert_eq!(stage.status()["problems"], serde_json::json!([]));
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
}

/// What cannot be put right is named everywhere, and the agent is not ready.
#[track_caller]
pub fn is_named(stage: &Stage, words: &str) {
    wait(NOTICED, || stage.metric("zt_damage", &[]) > 0.0);
    let (code, said) = stage.agent.readiness().unwrap();
    assert_eq!(code, 503);
    assert!(said.contains(words), "{words}: {said}");
    let answer = stage.ask(&["status"]);
    assert_eq!(answer.code, 1);
    assert!(answer.output.contains(words), "{words}: {answer:?}");
    assert!(stage.status()["problems"].to_string().contains(words));
    assert!(stage.agent.log().contains(words));
}

/// The kernel's id of a map or link, from procfs.
pub fn id(object: &OwnedFd) -> (String, u32) {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd())).unwrap();
    let line = (text.lines())
        .find(|line| line.starts_with("map_id:") || line.starts_with("link_id:"))
        .unwrap_or_else(|| panic!("{text}"));
    let (kind, id) = line.split_once(':').unwrap();
    (kind.to_owned(), id.trim().parse().unwrap())
}

/// `BPF_MAP_FREEZE`
pub fn freeze(map: &OwnedFd) -> io::Result<()> {
    const MAP_FREEZE: libc::c_long = 22;
    let attr = map.as_raw_fd();
    // SAFETY: the attribute is the descriptor, four bytes that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, MAP_FREEZE, &raw const attr, 4) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
