//! The wall clock is set.
//!
//! A rule's deadline becomes one of the kernel's boot clock when it is compiled,
//! by the difference of the two, and from then on no wall clock is asked. That is
//! tested everywhere. A time namespace has no wall clock of its own, and this
//! machine's is not ours to set: a clock that is really set is that of a machine
//! that runs nothing but tests (`cargo xtask vm`).

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};
use zt_agent::{audit::record::Time, compile, source::node};
use zt_common::policy::Entry;
use zt_tests::{
    Sandbox,
    feature::OWN_CLOCK,
    node::{World, allow},
    patience,
};

use crate::{
    beside::Beside,
    stage::{PATIENT, POLICY, Settings, Stage, is_refused, wait},
};

const SECOND: u64 = 1_000_000_000;

/// The deadline of the one entry that there is.
fn deadline(world: &World) -> u64 {
    let mut numbers = zt_agent::model::Numbers::default();
    let needs = compile::names(&world.model);
    for name in &needs.names {
        numbers.intern(name).unwrap();
    }
    for rule in &needs.rules {
        numbers.intern_rule(rule).unwrap();
    }
    let tables = compile::compile(&world.model, &numbers).unwrap().tables;
    let entries: Vec<&Entry> = tables.policy.values().collect();
    entries[0].now.deadline
}

#[test]
fn a_deadline_is_one_of_the_boot_clock_and_follows_no_drift() {
    let sandbox = Sandbox::new().unwrap();
    let cgroup = sandbox.cgroup().child("a").unwrap();
    let mut world = World::default()
        .enrol_cgroup("a", &cgroup, None)
        .rules(&format!("[{}]", allow("a", "a", "[80]", "TCP")))
        .unwrap();
    let offset = node::boot_offset(None).unwrap();
    let expires = offset + node::boot_time().unwrap() + 600 * SECOND;
    Arc::make_mut(&mut world.model.policies[0].rules)[0].expires = Some(expires);
    world.model.boot_offset = offset;
    let set = deadline(&world);
    assert_eq!(set, expires - offset);

    // Asked again and again, the difference is the same as long as nobody sets
    // the clock, so no deadline moves and no row is written.
    for _ in 0..50 {
        let now = node::boot_offset(Some(offset)).unwrap();
        assert_eq!(now, offset);
    }
    // A clock that was wrong, and was set: the deadline is the one that was
    // written down, at the time that it is now.
    for step in [-3600, -1, 1, 3600] {
        world.model.boot_offset = offset.checked_add_signed(step * 1_000_000_000).unwrap();
        let after = deadline(&world);
        // Of a machine that was switched on just now it may be from before that.
        let moved = set.saturating_add_signed(-step * 1_000_000_000);
        assert_eq!(after, moved.max(1));
    }
    // A deadline from before this machine was switched on has lapsed; it is not
    // the 0 that means "no deadline".
    world.model.boot_offset = expires + 5;
    assert_ne!(deadline(&world), 0);
    assert!(deadline(&world) < node::boot_time().unwrap());
}

const HOUR: Duration = Duration::from_secs(3600);
/// Where what is granted for a while listens.
const GRANTED: u16 = 8081;
/// The agent looks at the clock every second; on a busy machine it is late.
const SOON: Duration = Duration::from_secs(4);

/// Sets the wall clock, and puts it right again at the end.
struct WallClock {
    true_time: Duration,
    since: Instant,
}

impl WallClock {
    fn take() -> Self {
        Self {
            true_time: wall(),
            since: Instant::now(),
        }
    }

    fn now(&self) -> Duration {
        self.true_time + self.since.elapsed()
    }

    fn set(&self, to: Duration) {
        let to = TimeSpec::from_duration(to);
        clock_settime(ClockId::CLOCK_REALTIME, to).unwrap();
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        self.set(self.now());
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn granted_until(time: Duration) -> String {
    let time = Time(u64::try_from(time.as_nanos()).unwrap());
    format!(
        "{POLICY}    - from: {{spiffe: spiffe://t/client}}\n      to: [{{spiffe: spiffe://t/server, ports: [{GRANTED}]}}]\n      expires: {time}\n"
    )
}

fn is_told(stage: &Stage) -> bool {
    let status = stage.status();
    status["agent"]["clock_set_back_from"].is_string()
}

#[test]
fn a_clock_that_is_set_ends_grants_and_gives_none_back() {
    if OWN_CLOCK.is_missing() {
        return;
    }
    let clock = WallClock::take();
    let mut stage = Stage::running(Settings::default());
    let to = SocketAddr::from((stage.network.ipv4(20), GRANTED));
    let _serving = stage.server.serve(&[to], &[]).unwrap();
    stage.write_policy(&granted_until(clock.now() + HOUR));
    let client = stage.client.clone();
    let attempt = || client.tcp(to, PATIENT).unwrap();
    wait(PATIENT, || attempt().replied());
    let mut granted = stage.client.tcp_held(to, PATIENT).unwrap();
    assert!(granted.first.replied());
    let mut beside = Beside::start(&stage, Duration::from_secs(15));

    // Set forward by less, nothing ends.
    clock.set(clock.now() + HOUR / 2);
    sleep(patience::scaled(SOON / 2));
    assert!(granted.again().unwrap().replied());
    assert!(!is_told(&stage));
    clock.set(clock.now() + HOUR * 2);
    let start = Instant::now();
    wait(SOON, || is_refused(&attempt()));
    println!(
        "the grant ended {:?} after the clock was set",
        start.elapsed()
    );
    assert!(!granted.again().unwrap().replied());
    beside.holds();
    wait(PATIENT, || {
        let records = stage.records();
        let mut reasons = records.iter().map(|record| &record["reason"]);
        reasons.any(|reason| reason == "grant-expired")
    });
    stage.tell(&["audit", "verify"]);

    // Set right, and then too early: what has lapsed has lapsed.
    for (early, restart) in [(0, false), (3, false), (3, true)] {
        clock.set(clock.now() - HOUR * early);
        if restart {
            stage.agent.kill().unwrap();
            stage.agent.start().unwrap();
        }
        let start = Instant::now();
        while start.elapsed() < patience::scaled(SOON / 2) {
            assert!(is_refused(&attempt()), "{early} hours early, {restart}");
        }
        assert!(is_told(&stage), "{early} hours early, {restart}");
        beside.holds();
    }
    stage.tell(&["audit", "verify"]);
    beside.end(&mut stage);

    // Until after the latest time that was seen it can be granted anew.
    stage.write_policy(&granted_until(clock.now() + HOUR * 3));
    wait(PATIENT, || attempt().replied());
    // As soon as the clock shows that again it is behind no more.
    clock.set(clock.now() + HOUR * 2 + HOUR / 2);
    wait(SOON, || !is_told(&stage));
    assert!(attempt().replied());
    stage.tell(&["audit", "verify"]);
}
