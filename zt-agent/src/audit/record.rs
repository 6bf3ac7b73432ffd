//! The lines of the audit trail.
//!
//! Every line is one JSON object with `kind` first. A `decision` has the
//! fields of the audit schema and ours; `start`, `loss`, `checkpoint` and
//! `anomaly` make the trail provable; `repair` tells of tampering. How lines are chained, hashed and signed
//! is in [`super::chain`].

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    ops::Deref,
    sync::Arc,
};

use serde::{Deserialize, Serialize, Serializer};
use zt_common::{
    codes::{Direction, Hook, Protocol, Reason, Verdict},
    event::Event,
};

use super::{
    account::{Cause, Effect, Rebase},
    names::{Identity, Names},
};
use crate::kernel::repair::Repair;

/// A text that many records share.
#[derive(Clone, Debug)]
pub enum Text {
    Fixed(&'static str),
    Shared(Arc<str>),
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Shared(text.into())
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

/// Wall-clock time, nanoseconds since the Unix epoch. Written as RFC 3339 in
/// UTC with nine digits: `2026-11-21T14:30:00.000000042Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    #[must_use]
    pub fn now() -> Self {
        // Only a clock before 1970 does not fit.
        Self(u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or_default();
        write!(f, "{time:.9}")
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One end of a flow.
///
/// `spiffe_id` and `identity` are always there, and at most one is not null:
/// a workload has a SPIFFE ID; anything else is named by `identity` (`world`,
/// `host`, `unenrolled`, `cidr:203.0.113.0/24`, …). Both are null where a hook
/// has no other end (a raw socket, a bind).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct End {
    pub spiffe_id: Option<Text>,
    pub identity: Option<Text>,
    /// Workload path; null if this node does not know it.
    pub pod: Option<Text>,
    /// Node name; null if it is not this node.
    pub node: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Null if there is none, or if several were folded into one record.
    pub port: Option<u16>,
}

/// What a decision would be with the policies in audit mode in force.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Would {
    pub decision: Text,
    pub policy_matched: Option<Text>,
}

/// A decision, or `count` identical ones.
///
/// With `count` above 1, `first` and `last` are the times of the first and the
/// last of them; `timestamp`, `cpu` and `sequence` are those of the last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    pub kind: &'static str,
    pub timestamp: Time,
    /// `ALLOW`, `DENY` or `WOULD_DENY`.
    pub decision: Text,
    pub source: End,
    pub destination: End,
    /// `policy/rule-N`; null if no rule decided.
    pub policy_matched: Option<Text>,
    /// Microseconds, to the nanosecond; null on repeats.
    pub latency_us: Option<f64>,
    pub direction: Text,
    pub protocol: Text,
    pub reason: Text,
    pub hook: Text,
    pub generation: u32,
    pub cpu: u16,
    pub sequence: u64,
    pub count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Time>,
    /// Only where it differs from `decision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would: Option<Would>,
}

impl Record {
    /// Puts an event into words. `boot_offset` is `CLOCK_REALTIME` −
    /// `CLOCK_BOOTTIME` in nanoseconds.
    #[must_use]
    pub fn of(event: &Event, names: &Names, node: &Arc<str>, boot_offset: u64) -> Self {
        let (source, destination) = ends(event, names, node);
        Self {
            kind: "decision",
            timestamp: Time(event.time.saturating_add(boot_offset)),
            decision: verdict(event.verdict),
            source,
            destination,
            policy_matched: names.rule(event.rule),
            latency_us: Some(f64::from(event.latency_ns) / 1000.0),
            direction: word(
                Direction::from_code(event.direction).map(Direction::name),
                event.direction,
            ),
            protocol: protocol(event.protocol),
            reason: word(
                Reason::from_code(event.reason).map(Reason::name),
                event.reason,
            ),
            hook: word(Hook::from_code(event.hook).map(Hook::name), event.hook),
            generation: event.generation,
            cpu: event.cpu,
            sequence: event.sequence,
            count: 1,
            first: None,
            last: None,
            would: would(event, names),
        }
    }
}

fn ends(event: &Event, names: &Names, node: &Arc<str>) -> (End, End) {
    let opens = event.direction != Direction::Ingress as u8;
    let (local, remote) = if opens {
        (event.source, event.destination)
    } else {
        (event.destination, event.source)
    };
    let local = End {
        pod: names.workload(event.cgroup),
        node: Some(Text::Shared(node.clone())),
        cgroup: Some(event.cgroup),
        ..end(
            Some(names.identity(local)),
            None,
            port(event, event.local_port),
        )
    };
    let alone = has_no_other_end(event.hook) && remote == zt_common::identity::UNENROLLED;
    let who = (!alone).then(|| names.identity(remote));
    let remote = end(who, address(event), port(event, event.remote_port));
    if opens {
        (local, remote)
    } else {
        (remote, local)
    }
}

fn end(who: Option<Identity>, address: Option<IpAddr>, port: Option<u16>) -> End {
    let (spiffe_id, identity) = match who {
        Some(Identity::Spiffe(id)) => (Some(id), None),
        Some(Identity::Other(name)) => (None, Some(name)),
        None => (None, None),
    };
    End {
        spiffe_id,
        identity,
        pod: None,
        node: None,
        cgroup: None,
        address,
        port,
    }
}

/// An ICMP event holds the echo identifier instead: no port.
fn port(event: &Event, port: u16) -> Option<u16> {
    (port != 0 && event.protocol != Protocol::Icmp as u8).then_some(port)
}

fn has_no_other_end(hook: u8) -> bool {
    matches!(
        Hook::from_code(hook),
        Some(Hook::SockCreate | Hook::Bind4 | Hook::Bind6)
    )
}

fn address(event: &Event) -> Option<IpAddr> {
    let ip = Ipv6Addr::from(event.remote);
    (!ip.is_unspecified()).then(|| ip.to_canonical())
}

fn would(event: &Event, names: &Names) -> Option<Would> {
    (event.would_verdict != 0).then(|| Would {
        decision: verdict(event.would_verdict),
        policy_matched: names.rule(event.would_rule),
    })
}

fn verdict(code: u8) -> Text {
    word(Verdict::from_code(code).map(Verdict::name), code)
}

/// A code that this release does not know is shown, not hidden.
fn word(name: Option<&'static str>, code: u8) -> Text {
    name.map_or_else(|| format!("unknown-{code}").into(), Text::Fixed)
}

fn protocol(number: u8) -> Text {
    Protocol::from_code(number).map_or_else(
        || format!("ip-{number}").into(),
        |protocol| Text::Fixed(protocol.name()),
    )
}

/// An agent started.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Start {
    pub kind: &'static str,
    pub timestamp: Time,
    pub version: &'static str,
    pub node: Text,
    pub pid: u32,
    /// `adopted`: maps and programs were there already; `fresh`: new ones.
    pub kernel: &'static str,
}

/// `count` decisions have no record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    pub kind: &'static str,
    pub timestamp: Time,
    pub cause: Cause,
    pub count: u64,
}

impl Loss {
    #[must_use]
    pub fn new(timestamp: Time, cause: Cause, count: u64) -> Self {
        Self {
            kind: "loss",
            timestamp,
            cause,
            count,
        }
    }
}

/// The kernel's own counts, since the epoch began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelTotals {
    /// Sum of `Totals::decisions` over the CPUs.
    pub decisions: u64,
    /// Records ever put into the ring: its producer position divided by
    /// [`zt_common::event::RING_RECORD`].
    pub emitted: u64,
    /// Sum of `Totals::lost_ring` over the CPUs.
    pub lost_ring: u64,
    /// Sum of `Totals::uncounted` over the CPUs.
    pub uncounted: u64,
}

/// Decisions that a checkpoint's `total` does not hold yet, by where they are.
/// The kernel counts on while it is read, so the differences between two of
/// its counts can be a few too many or too few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// `decisions` − `emitted` − `lost_ring`: being decided while the counts
    /// were read.
    pub unsettled: i64,
    /// `emitted` − consumed: in the ring.
    pub ring: i64,
    /// Held by folding.
    pub folding: u64,
    /// Shed, without a loss record yet.
    pub shed: u64,
}

/// The kernel's totals beside the trail's, signed. The trail's losses by cause
/// are on the line, as on every line.
///
/// `decisions` = `emitted` + `lost_ring` + `in_flight.unsettled`, and
/// `emitted` = `total` + `in_flight.ring` + `.folding` + `.shed`, and
/// `lost_ring` = the losses with cause `ring-full`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checkpoint {
    pub kind: &'static str,
    pub timestamp: Time,
    pub generation: u32,
    pub kernel: KernelTotals,
    /// Sum of the counts of all decision records of this epoch.
    pub recorded: u64,
    pub in_flight: InFlight,
}

/// Something that must not happen did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Anomaly {
    pub kind: &'static str,
    pub timestamp: Time,
    pub detail: Text,
    /// The sums that the trail goes on with, if those in the file cannot be
    /// true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebase: Option<Rebase>,
}

impl Anomaly {
    #[must_use]
    pub fn new(timestamp: Time, detail: String, rebase: Option<Rebase>) -> Self {
        Self {
            kind: "anomaly",
            timestamp,
            detail: detail.into(),
            rebase,
        }
    }
}

/// Somebody altered what enforces, and the agent put it right.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Repaired {
    pub kind: &'static str,
    pub timestamp: Time,
    pub what: &'static str,
    /// For a person: what was found.
    pub found: Text,
}

impl Repaired {
    #[must_use]
    pub fn new(timestamp: Time, repair: &Repair) -> Self {
        Self {
            kind: "repair",
            timestamp,
            what: repair.what.name(),
            found: repair.found.clone().into(),
        }
    }
}

/// What a line says, before it is chained.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Start(Start),
    Decision(Arc<Record>),
    Loss(Loss),
    Checkpoint(Checkpoint),
    Anomaly(Anomaly),
    Repaired(Repaired),
}

impl Content {
    /// What it does to the sums.
    #[must_use]
    pub fn effect(&self) -> Effect {
        match self {
            Self::Decision(record) => Effect::Recorded(record.count),
            Self::Loss(loss) => Effect::Lost(loss.cause, loss.count),
            Self::Anomaly(anomaly) => anomaly.rebase.map_or(Effect::None, Effect::Rebased),
            Self::Start(_) | Self::Checkpoint(_) | Self::Repaired(_) => Effect::None,
        }
    }

    /// Adds the JSON object, without a line end.
    ///
    /// # Errors
    /// None in practice: every field is plain data.
    pub fn write_json(&self, to: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Self::Start(start) => serde_json::to_writer(to, start),
            Self::Decision(record) => serde_json::to_writer(to, &**record),
            Self::Loss(loss) => serde_json::to_writer(to, loss),
            Self::Checkpoint(checkpoint) => serde_json::to_writer(to, checkpoint),
            Self::Anomaly(anomaly) => serde_json::to_writer(to, anomaly),
            Self::Repaired(repaired) => serde_json::to_writer(to, repaired),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use zt_common::identity;

    use super::super::testing::{GATEWAY, POSTGRES, event, record};
    use super::*;

    fn json(content: &Content) -> String {
        let mut text = Vec::new();
        content.write_json(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn an_allowed_connection_has_the_schema_of_the_audit_trail() {
        let mut event = event();
        event.time = 1_771_857_000_000_000_042;
        let text = json(&Content::Decision(record(&event)));
        assert!(text.starts_with(
            r#"{"kind":"decision","timestamp":"2026-02-23T14:30:00.000000042Z","decision":"ALLOW","source":{"spiffe_id":"#
        ));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({
                "kind": "decision",
                "timestamp": "2026-02-23T14:30:00.000000042Z",
                "decision": "ALLOW",
                "source": {
                    "spiffe_id": GATEWAY, "identity": null, "pod": "demo.slice/gateway",
                    "node": "worker-3", "cgroup": 4711, "port": 40000
                },
                "destination": {
                    "spiffe_id": POSTGRES, "identity": null, "pod": null,
                    "node": null, "address": "10.0.0.9", "port": 5432
                },
                "policy_matched": "hanzo-core-policy/rule-2",
                "latency_us": 42.125,
                "direction": "egress", "protocol": "TCP", "reason": "allowed-by-rule",
                "hook": "connect4", "generation": 3, "cpu": 1, "sequence": 7, "count": 1
            })
        );
    }

    #[test]
    fn at_the_destination_the_governed_end_is_the_destination() {
        let record = record(&Event {
            direction: Direction::Ingress as u8,
            source: identity::WORLD,
            destination: 256,
            ..event()
        });
        assert_eq!(record.source.identity.as_deref(), Some("world"));
        assert_eq!(record.source.spiffe_id, None);
        assert_eq!(record.source.port, Some(5432));
        assert!(record.source.address.is_some());
        assert_eq!(record.destination.cgroup, Some(4711));
        assert_eq!(record.destination.port, Some(40_000));
    }

    #[test]
    fn a_raw_socket_has_no_other_end() {
        let record = record(&Event {
            hook: Hook::SockCreate as u8,
            destination: identity::UNENROLLED,
            remote: [0; 16],
            remote_port: 0,
            ..event()
        });
        let other = &record.destination;
        assert_eq!((&other.identity, &other.spiffe_id), (&None, &None));
        assert_eq!((other.address, other.port), (None, None));
    }

    #[test]
    fn unknown_codes_and_numbers_are_shown() {
        let record = record(&Event {
            verdict: 9,
            reason: 200,
            protocol: 132,
            destination: 999,
            rule: 77,
            ..event()
        });
        assert_eq!(&*record.decision, "unknown-9");
        assert_eq!(&*record.reason, "unknown-200");
        assert_eq!(&*record.protocol, "ip-132");
        assert_eq!(record.destination.identity.as_deref(), Some("number-999"));
        assert_eq!(record.policy_matched.as_deref(), Some("number-77"));
    }

    #[test]
    fn a_policy_in_audit_mode_shows_as_would() {
        let event = Event {
            would_verdict: Verdict::Deny as u8,
            would_rule: 0,
            ..event()
        };
        let text = json(&Content::Decision(record(&event)));
        assert!(text.ends_with(r#""would":{"decision":"DENY","policy_matched":null}}"#));
    }

    #[test]
    fn an_echo_identifier_is_no_port() {
        let record = record(&Event {
            protocol: Protocol::Icmp as u8,
            ..event()
        });
        assert_eq!((record.source.port, record.destination.port), (None, None));
    }
}
