//! What the tests of this folder share.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ed25519_dalek::VerifyingKey;
use zt_common::{
    codes::{Direction, Hook, Protocol, Reason, Verdict},
    event::Event,
};

use super::{
    KernelState, Names, Report, Trail, TrailConfig, key,
    record::{Record, Time},
    verify_path,
};
use crate::model::{Name, Numbers, RuleRef};

pub const GATEWAY: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway";
pub const POSTGRES: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres";
pub const EPOCH: u64 = 0x00c0_ffee_0000_0001;

/// The gateway (256, cgroup 4711) opens a connection to postgres (257).
pub fn event() -> Event {
    Event {
        time: 1_000,
        sequence: 7,
        cgroup: 4711,
        remote: Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped().octets(),
        source: 256,
        destination: 257,
        generation: 3,
        rule: 1,
        latency_ns: 42_125,
        remote_port: 5432,
        local_port: 40_000,
        cpu: 1,
        protocol: Protocol::Tcp as u8,
        hook: Hook::Connect4 as u8,
        direction: Direction::Egress as u8,
        verdict: Verdict::Allow as u8,
        reason: Reason::AllowedByRule as u8,
        ..Event::default()
    }
}

/// Decisions that are never identical.
pub fn distinct(number: u16) -> Event {
    Event {
        remote_port: number,
        sequence: number.into(),
        ..event()
    }
}

pub fn names() -> Names {
    let mut numbers = Numbers::default();
    numbers.adopt(Name::Spiffe(GATEWAY.parse().unwrap()), 256);
    numbers.adopt(Name::Spiffe(POSTGRES.parse().unwrap()), 257);
    numbers.adopt(Name::Class("203.0.113.0/24".parse().unwrap()), 49_152);
    let policy = "hanzo-core-policy".into();
    numbers.adopt_rule(RuleRef { policy, number: 2 }, 1);
    Names::new(&numbers, [(4711, "demo.slice/gateway".into())])
}

pub fn record(event: &Event) -> Arc<Record> {
    Arc::new(Record::of(event, &names(), &"worker-3".into(), 0))
}

pub fn at(event: Event, time: u64) -> (Event, Arc<Record>) {
    let event = Event { time, ..event };
    let mut record = Arc::unwrap_or_clone(record(&event));
    record.timestamp = Time(time);
    (event, Arc::new(record))
}

/// A trail's directory, and the consumer position of its pretended kernel.
pub struct Place {
    _directory: tempfile::TempDir,
    pub config: TrailConfig,
    pub kernel: KernelState,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = TrailConfig::new(
            directory.path().join("audit/audit.jsonl"),
            directory.path().join("state"),
            "worker-3".into(),
            0,
        );
        config.fold_window = Duration::ZERO;
        let kernel = KernelState {
            epoch: EPOCH,
            ..KernelState::default()
        };
        Self {
            _directory: directory,
            config,
            kernel,
        }
    }

    pub fn open(&self) -> Trail {
        Trail::open(self.config.clone(), self.kernel).unwrap()
    }

    /// Runs an agent that consumes `count` distinct decisions, takes a
    /// checkpoint and stops.
    pub fn run(&mut self, count: u16) {
        let mut trail = self.open();
        for number in 1..=count {
            trail.decision(&distinct(number), &names(), false);
        }
        self.kernel.consumed += u64::from(count);
        trail.checkpoint(self.totals(), 3);
        trail.close();
    }

    /// What the kernel would say now.
    pub fn totals(&self) -> super::KernelTotals {
        super::KernelTotals {
            decisions: self.kernel.consumed + self.kernel.lost_ring,
            emitted: self.kernel.consumed,
            lost_ring: self.kernel.lost_ring,
            uncounted: 0,
        }
    }

    pub fn key(&self) -> VerifyingKey {
        key::read_public(&key::public_path(&self.config.key_directory)).unwrap()
    }

    pub fn verify(&self) -> Report {
        verify_path(&self.config.file, &self.key()).unwrap()
    }

    pub fn lines(&self) -> Vec<serde_json::Value> {
        lines(&self.config.file)
    }

    /// Rewrites the current file's lines.
    pub fn tamper(&self, change: impl FnOnce(&mut Vec<String>)) {
        let text = fs::read_to_string(&self.config.file).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        change(&mut lines);
        fs::write(&self.config.file, lines.join("\n") + "\n").unwrap();
    }

    pub fn file(&self, suffix: &str) -> PathBuf {
        let mut name = self.config.file.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }
}

pub fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    let parse = |line| serde_json::from_str(line).unwrap();
    text.lines().map(parse).collect()
}
