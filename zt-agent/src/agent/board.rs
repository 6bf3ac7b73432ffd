//! What the threads of the agent tell each other.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};
use zt_common::version::Generation;

use crate::{
    audit::{Names, Record, TrailStatus, record::Time},
    kernel::repair::Repair,
    metrics::latency::Latency,
    source::{
        identities::{Uncovered, Waiting},
        resources::{Refused, Verdict},
    },
};

/// Records that a live observer may be behind before it misses some.
const OBSERVER_LAG: usize = 8192;
/// Denials that wait to be told; of a flood of them some are enough.
pub const DENIALS: usize = 256;
/// A loop that was not seen for so long hangs, ns. Applying a large policy
/// takes seconds.
const STUCK: u64 = 30_000_000_000;
/// Fresh numbers are not waited for longer: the event thread is busy, and
/// those on the board are about a second old.
const FRESH: Duration = Duration::from_millis(500);

/// Repairs that wait for the audit trail; more are only counted.
const UNRECORDED: usize = 1024;

/// Shared by all threads.
#[derive(Debug)]
pub struct Board {
    pub started: Instant,
    /// Every name that an event can refer to; published before the kernel can
    /// use it.
    pub names: watch::Sender<Arc<Names>>,
    /// Decisions as they are made, for live observers.
    pub records: broadcast::Sender<Arc<Record>>,
    /// Those that denied something, or would have, as far as anybody keeps up.
    pub denials: broadcast::Sender<Arc<Record>>,
    /// `CLOCK_REALTIME` − `CLOCK_BOOTTIME` in nanoseconds.
    pub boot_offset: AtomicU64,
    /// When the loops were last seen.
    pub events: Pulse,
    pub driver: Pulse,
    /// How often somebody asked for fresh numbers of the audit trail, and how
    /// many of those the event thread has answered.
    pub asked: watch::Sender<u64>,
    pub answered: watch::Sender<u64>,
    /// What this node makes of the cluster's policies.
    pub verdicts: watch::Sender<Arc<[Verdict]>>,
    facts: Mutex<Facts>,
    counting: Mutex<()>,
}

/// What is known of the agent's work.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// In force; 0: none.
    pub generation: Generation,
    /// Why the last change is not in force.
    pub policy_error: Option<String>,
    /// Times that a change was refused.
    pub policy_errors: u64,
    /// RFC 3339 time of the last change that was put in force.
    pub last_applied: Option<String>,
    /// Rows of the maps that somebody altered and the agent restored.
    pub restored: u64,
    /// Connections that were ended, by the reason of the denial.
    pub cut: BTreeMap<&'static str, u64>,
    /// Why none can be.
    pub cannot_cut: Option<String>,
    /// Why the quarantine file is not followed.
    pub quarantine_error: Option<String>,
    pub workloads: usize,
    /// Somebody here is in audit mode, enrolled or not. `None`: nothing is known
    /// yet.
    pub audits: Option<bool>,
    pub quarantined: usize,
    pub waiting: Vec<Waiting>,
    /// Interfaces at which frames are decided, or should be.
    pub interfaces: Vec<InterfaceFact>,
    /// Workloads whose frames pass no interface that can be governed.
    pub uncovered: Vec<Uncovered>,
    /// Interfaces whose other end has changed its MAC address, and is denied.
    pub changed_macs: Vec<String>,
    /// What the default drop dropped: nftables family, packets.
    pub dropped: Vec<(&'static str, u64)>,
    /// Why the default drop is not in place.
    pub default_drop_error: Option<String>,
    /// Attach points without a program of ours.
    pub missing_links: Vec<&'static str>,
    /// Attach points with programs of somebody else, and how many.
    pub strangers: Vec<(&'static str, usize)>,
    /// Why the attach points cannot be looked at, or would not stay.
    pub links_error: Option<String>,
    /// What somebody altered and the agent put right, since it started.
    pub repairs: BTreeMap<&'static str, u64>,
    /// Those that the audit trail does not have yet.
    pub unrecorded: Vec<Repair>,
    /// The last of them, and when (RFC 3339).
    pub last_repair: Option<String>,
    /// Why the maps cannot be read back.
    pub maps_error: Option<String>,
    /// What is wrong with pins and links and cannot be put right.
    pub damage: Vec<String>,
    /// What stays wrong until somebody starts from nothing.
    pub taint: Option<String>,
    /// Why the file system with the pins is away.
    pub unpinned: Option<String>,
    /// The time (RFC 3339) from which the wall clock was set back, until it
    /// shows that again.
    pub clock_set_back_from: Option<String>,
    /// How the cluster is followed; `None`: identities come from a file.
    pub cluster: Option<ClusterFact>,
    /// Claims that are not believed.
    pub complaints: Vec<String>,
    /// Why workloads that run are not below the managed root.
    pub outside: Option<String>,
    pub trail: Option<TrailStatus>,
    /// Events in the ring that nobody has consumed.
    pub in_ring: u64,
    pub latency: Latency,
}

/// How the cluster's API server is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFact {
    /// Everything was listed once, and what is in force follows it.
    pub complete: bool,
    /// Pods that are known.
    pub pods: usize,
    /// RFC 3339 time since when nothing is heard; `None`: it is followed.
    pub stale_since: Option<String>,
    /// The same, in seconds.
    pub stale_seconds: u64,
    /// Why.
    pub error: Option<String>,
    /// Pods whose interfaces were covered before their first process, because the
    /// CNI plugin showed them.
    #[serde(default)]
    pub attached: usize,
    /// Pods that are enforced on a node that is not, and were not shown by it.
    #[serde(default)]
    pub exposed: Vec<String>,
    /// Policies of the cluster that are in force.
    #[serde(default)]
    pub policies: usize,
    /// Why those are not what the cluster says now.
    #[serde(default)]
    pub policies_unknown: Option<String>,
    /// Policies and groups whose latest version is not accepted. What was
    /// accepted of them before stays in force.
    #[serde(default)]
    pub refused: Vec<Refused>,
}

impl ClusterFact {
    fn not_ready(&self) -> Option<String> {
        let error = self.error.as_deref().unwrap_or("no answer yet");
        match &self.stale_since {
            Some(since) if self.complete => Some(format!(
                "stale: the cluster's API server is not followed since {since}, and what was known then stays in force: {error}"
            )),
            _ if !self.complete => Some(format!(
                "the cluster's API server has not listed pods, nodes and namespaces yet: nobody new is enrolled: {error}"
            )),
            _ => None,
        }
    }
}

/// An interface at which frames are decided, or should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceFact {
    pub index: u32,
    pub name: String,
    /// The SPIFFE ID of the workload behind it; none: it is nobody's, and
    /// nothing passes.
    pub workload: Option<String>,
    /// Why our programs are not there.
    pub error: Option<String>,
    /// What decides before our programs.
    pub before: Vec<String>,
}

impl Facts {
    /// Something was put right.
    pub fn repaired(&mut self, repair: &Repair) {
        let what = repair.what.name();
        tracing::error!(
            what,
            "somebody altered what we wrote, it was put right: {}",
            repair.found
        );
        *self.repairs.entry(what).or_default() += 1;
        if self.unrecorded.len() < UNRECORDED {
            self.unrecorded.push(repair.clone());
        }
        self.last_repair = Some(format!("{} {what}: {}", Time::now(), repair.found));
    }

    /// Something cannot be put right.
    pub fn taint(&mut self, text: String) {
        if self.taint.as_ref() != Some(&text) {
            tracing::error!("{text}");
        }
        self.taint = Some(text);
    }

    /// Everything that keeps the agent from being ready; empty: it is.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.generation == 0 {
            reasons.push("no policy generation is in force".to_owned());
        }
        if let Some(error) = &self.policy_error {
            reasons.push(format!("the last change is not in force: {error}"));
        }
        if let Some(error) = &self.quarantine_error {
            reasons.push(format!("the quarantine is not followed: {error}"));
        }
        reasons.extend(
            self.waiting.iter().filter(|w| w.refused).map(|waiting| {
                format!("{} is not enrolled: {}", waiting.spiffe_id, waiting.reason)
            }),
        );
        reasons.extend(self.cluster.as_ref().and_then(ClusterFact::not_ready));
        match &self.trail {
            None => reasons.push("the audit trail is not open yet".to_owned()),
            Some(trail) if !trail.healthy => reasons.push(format!(
                "the audit trail cannot be written: {}",
                trail.last_error.as_deref().unwrap_or("see the log")
            )),
            Some(_) => {}
        }
        reasons.extend(
            self.missing_links
                .iter()
                .map(|hook| format!("nothing is attached to {hook}")),
        );
        reasons.extend(self.strangers.iter().map(|(hook, count)| {
            format!("{count} programs that are not ours run at {hook} and may undo a denial; see zt-agent status")
        }));
        let broken = [
            &self.outside,
            &self.links_error,
            &self.unpinned,
            &self.maps_error,
            &self.taint,
        ];
        reasons.extend(broken.into_iter().flatten().cloned());
        reasons.extend(self.damage.iter().cloned());
        if let Some(error) = &self.default_drop_error {
            reasons.push(format!("the default drop is not in place: {error}"));
        }
        reasons.extend(self.changed_macs.iter().map(|name| {
            format!("the other end of {name} has changed its MAC address: what it sends is denied; make the interface anew if that is meant")
        }));
        for interface in &self.interfaces {
            if let Some(error) = &interface.error {
                reasons.push(format!("{} is not covered: {error}", interface.name));
            }
            for what in &interface.before {
                reasons.push(format!(
                    "{}: {what} is not ours, comes before our program and may pass what it never sees",
                    interface.name
                ));
            }
        }
        reasons
    }
}

impl Board {
    #[must_use]
    pub fn new(boot_offset: u64) -> Self {
        Self {
            started: Instant::now(),
            names: watch::Sender::default(),
            records: broadcast::Sender::new(OBSERVER_LAG),
            denials: broadcast::Sender::new(DENIALS),
            boot_offset: AtomicU64::new(boot_offset),
            events: Pulse::default(),
            driver: Pulse::default(),
            asked: watch::Sender::default(),
            answered: watch::Sender::default(),
            verdicts: watch::Sender::new(Arc::from([])),
            facts: Mutex::default(),
            counting: Mutex::default(),
        }
    }

    /// Looks at the facts, or changes them. Hold it for moments only.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        // Nobody leaves them half changed.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While it is held no count goes from one name to another.
    pub fn counting(&self) -> MutexGuard<'_, ()> {
        self.counting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the event thread put the trail's numbers of this moment on the
    /// board, so that they fit those that the kernel gives next.
    pub async fn refresh(&self) {
        let mut ticket = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            ticket = *asked;
        });
        let mut answered = self.answered.subscribe();
        let fresh = answered.wait_for(|answered| *answered >= ticket);
        if timeout(FRESH, fresh).await.is_err() {
            tracing::warn!("the event loop is busy; the audit numbers are of a moment ago");
        }
    }

    /// The loop that hangs, if one does. `now` is `CLOCK_BOOTTIME` in ns.
    #[must_use]
    pub fn stuck(&self, now: u64) -> Option<&'static str> {
        let loops = [("event", &self.events), ("reconcile", &self.driver)];
        let stuck = loops.into_iter().find(|(_, pulse)| pulse.is_late(now));
        stuck.map(|(name, _)| name)
    }
}

/// When a loop was last seen.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// The loop is here. `now` is `CLOCK_BOOTTIME` in ns.
    pub fn beat(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    fn is_late(&self, now: u64) -> bool {
        now.saturating_sub(self.0.load(Ordering::Relaxed)) > STUCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Facts {
        let trail = TrailStatus {
            healthy: true,
            ..TrailStatus::default()
        };
        Facts {
            generation: 1,
            trail: Some(trail),
            ..Facts::default()
        }
    }

    #[test]
    fn each_thing_that_is_wrong_makes_it_unready_and_is_named() {
        assert_eq!(ready().not_ready(), Vec::<String>::new());
        type Break = (&'static str, fn(&mut Facts));
        let breaks: [Break; 14] = [
            ("generation", |f| f.generation = 0),
            ("a.yaml:1", |f| f.policy_error = Some("a.yaml:1".into())),
            ("damaged", |f| f.quarantine_error = Some("damaged".into())),
            ("not listed", |f| f.cluster = Some(ClusterFact::default())),
            ("not followed since yesterday", |f| {
                f.cluster = Some(ClusterFact {
                    complete: true,
                    stale_since: Some("yesterday".into()),
                    ..ClusterFact::default()
                });
            }),
            ("cgroupRoot", |f| f.outside = Some("cgroupRoot".into())),
            ("not open", |f| f.trail = None),
            ("cannot be written", |f| {
                f.trail = Some(TrailStatus::default());
            }),
            ("connect4", |f| f.missing_links = vec!["cgroup/connect4"]),
            ("not ours", |f| f.strangers = vec![("cgroup/connect4", 1)]),
            ("read back", |f| f.maps_error = Some("read back".into())),
            ("froze", |f| f.damage = vec!["froze".into()]),
            ("no generation is left", |f| {
                f.taint("no generation is left".into())
            }),
            ("outside", |f| {
                f.waiting = vec![Waiting {
                    spiffe_id: "spiffe://td/a".into(),
                    refused: true,
                    reason: "outside".into(),
                }];
            }),
        ];
        for (word, spoil) in breaks {
            let mut facts = ready();
            spoil(&mut facts);
            let reasons = facts.not_ready();
            assert!(
                matches!(&reasons[..], [reason] if reason.contains(word)),
                "{word}: {reasons:?}"
            );
        }
    }

    #[tokio::test]
    async fn fresh_numbers_are_waited_for_and_not_for_ever() {
        let board = Arc::new(Board::new(0));
        let events = board.clone();
        let mut asked = board.asked.subscribe();
        let thread = tokio::spawn(async move {
            asked.changed().await.unwrap();
            events.facts().in_ring = 7;
            events.answered.send_replace(*asked.borrow());
        });
        board.refresh().await;
        assert_eq!(board.facts().in_ring, 7);
        thread.await.unwrap();
        // Nobody answers this time.
        board.refresh().await;
    }

    #[test]
    fn a_loop_that_was_not_seen_for_long_hangs() {
        let board = Board::new(0);
        board.events.beat(100);
        board.driver.beat(100 + STUCK);
        assert_eq!(board.stuck(100 + STUCK), None);
        assert_eq!(board.stuck(101 + STUCK), Some("event"));
    }
}
