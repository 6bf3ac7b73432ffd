//! What runs beside a fault, and what the agent holds before and after it.

use std::{
    collections::BTreeMap,
    fmt, fs,
    thread::sleep,
    time::{Duration, Instant},
};

use zt_tests::{
    patience,
    workload::{Held, Looping},
};

use crate::stage::{PATIENT, Stage};

/// Traffic of which all must pass, and some of which nothing may.
pub struct Beside {
    held: Held,
    good: Looping,
    bad: Looping,
    until: Instant,
}

impl Beside {
    /// For `run`, on a machine of the usual speed.
    pub fn start(stage: &Stage, run: Duration) -> Self {
        let run = patience::scaled(run);
        let held = stage.client.tcp_held(stage.to(), PATIENT).unwrap();
        assert!(held.first.replied());
        Self {
            held,
            good: stage.looping(&stage.client, run),
            bad: stage.looping(&stage.other, run),
            until: Instant::now() + run,
        }
    }

    /// Whether the loops run for another while.
    pub fn goes_on(&self) -> bool {
        self.until.saturating_duration_since(Instant::now()) > Duration::from_millis(700)
    }

    /// The open connection still carries.
    #[track_caller]
    pub fn holds(&mut self) {
        let again = self.held.again().unwrap();
        assert!(again.replied(), "the open connection was cut: {again:?}");
    }

    /// Waits for the loops; nothing forbidden passed, nothing allowed did not.
    #[track_caller]
    pub fn end(mut self, stage: &mut Stage) {
        let (good, bad) = (self.good.summary().unwrap(), self.bad.summary().unwrap());
        println!("allowed {good:?}, forbidden {bad:?}");
        assert!(good.ok > 20 && good.failed.is_empty(), "{good:?}");
        assert!(bad.ok == 0 && bad.failed.keys().eq(["EPERM"]), "{bad:?}");
        let own = format!(" {}:", stage.network.ipv4(11));
        let arrived = stage.received();
        assert!(
            !arrived.iter().any(|line| line.contains(&own)),
            "from {own}"
        );
        let again = self.held.again().unwrap();
        assert!(again.replied(), "the open connection was cut: {again:?}");
    }
}

/// What a process holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Descriptors, by what they are.
    pub descriptors: BTreeMap<String, usize>,
    pub threads: usize,
    pub resident_kib: usize,
    /// Files in the pin directory.
    pub pinned: usize,
}

impl Usage {
    /// Of the agent now: the least of several looks, because for moments it has
    /// a thread or a file more.
    pub fn of(stage: &Stage) -> Self {
        let mut least = Self::at_this_moment(stage);
        for _ in 0..8 {
            sleep(Duration::from_millis(15));
            let now = Self::at_this_moment(stage);
            for (kind, count) in &mut least.descriptors {
                *count = now
                    .descriptors
                    .get(kind)
                    .map_or(0, |now| (*now).min(*count));
            }
            least.threads = least.threads.min(now.threads);
            least.resident_kib = least.resident_kib.min(now.resident_kib);
        }
        least
    }

    fn at_this_moment(stage: &Stage) -> Self {
        let pid = stage.agent.pid().unwrap();
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            // One may be closed meanwhile.
            if let Ok(target) = fs::read_link(entry.path()) {
                *descriptors
                    .entry(kind(&target.to_string_lossy()))
                    .or_default() += 1;
            }
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let digits = line.unwrap().trim().split(' ').next().unwrap();
            digits.parse().unwrap()
        };
        Self {
            descriptors,
            threads: number("Threads:"),
            resident_kib: number("VmRSS:"),
            pinned: stage.pinned().len(),
        }
    }

    /// The same as before: descriptors of each kind, threads and pins, and
    /// memory up to so much more.
    #[track_caller]
    pub fn is_like(&self, before: &Self, more_kib: usize) {
        println!("before {before}\nafter  {self}");
        for (kind, count) in &self.descriptors {
            let was = before.descriptors.get(kind).copied().unwrap_or(0);
            // Somebody may be asking it something just now.
            let spare = if kind.starts_with("anon_inode:bpf") {
                0
            } else {
                2
            };
            assert!(*count <= was + spare, "{kind}: {was} before, {count} after");
        }
        // Whoever answered last is kept for ten seconds.
        assert!(self.threads <= before.threads + 1, "{before} {self}");
        assert_eq!(self.pinned, before.pinned);
        assert!(
            self.resident_kib <= before.resident_kib + more_kib,
            "{before} {self}"
        );
    }
}

fn kind(target: &str) -> String {
    let kind = target.split('[').next().unwrap_or(target);
    if kind.starts_with('/') {
        "file".to_owned()
    } else {
        kind.trim_end_matches(':').to_owned()
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB, {} threads, {} pins, {:?}",
            self.resident_kib, self.threads, self.pinned, self.descriptors
        )
    }
}
