//! Tells denials as Events on the pods that met them, for `kubectl describe`.
//!
//! They are samples: how often the same was denied is told now and then, and
//! where many different things are, some are not told at all. The audit trail
//! has every one.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::timeout,
};

use super::{Shared, cgroup, objects::Uid};
use crate::audit::record::{End, Record};

/// Different denials that are remembered.
const KINDS: usize = 512;
/// For so long an Event is continued; the API server keeps it for an hour.
const SERIES: Duration = Duration::from_mins(30);
/// Between two tellings of the same.
const QUIET: Duration = Duration::from_mins(1);
/// Tellings that may follow one another at once, and how soon there is one more.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(3);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who tells it.
const CONTROLLER: &str = "zt.hanzo.ai/agent";
/// The longest name of an object.
const NAME_LEN: usize = 253;

/// What was denied, and to whom: what else differs is told as the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Denial {
    pod: Uid,
    /// `Denied` or `WouldDeny`.
    reason: &'static str,
    action: &'static str,
    note: String,
}

impl Denial {
    /// `None`: it is no denial, or no pod's.
    fn of(record: &Record) -> Option<Self> {
        let reason = match &*record.decision {
            "DENY" => "Denied",
            "WOULD_DENY" => "WouldDeny",
            _ => return None,
        };
        let (action, local, other, to) = match &*record.direction {
            "egress" => ("Send", &record.source, &record.destination, "to"),
            _ => ("Receive", &record.destination, &record.source, "from"),
        };
        if is_chatter(&record.protocol, other.address) {
            return None;
        }
        let pod = cgroup::pod_on(Path::new(&**local.pod.as_ref()?))?;
        // The other end of what comes in has a port that differs each time.
        let port = record.destination.port;
        let port = port.map_or_else(String::new, |port| format!(" port {port}"));
        let rule = record.policy_matched.as_ref();
        let rule = rule.map_or_else(String::new, |rule| format!(" by {rule}"));
        Some(Self {
            pod,
            reason,
            action,
            note: format!(
                "{} {to} {}{port}: {}{rule}",
                record.protocol,
                who(other),
                record.reason
            ),
        })
    }
}

/// Neighbours that look for one another, and a pod's own voice that a bridge with
/// hairpin mode returns to it: every pod has it, and nobody did anything.
fn is_chatter(protocol: &str, other: Option<IpAddr>) -> bool {
    let is_link_local = |address: IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    };
    protocol.starts_with("ICMP") && other.is_some_and(is_link_local)
}

fn who(end: &End) -> String {
    let name = end.spiffe_id.as_ref().or(end.identity.as_ref());
    match (name, end.address) {
        (Some(name), Some(address)) => format!("{name} ({address})"),
        (Some(name), None) => name.to_string(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "nobody".to_owned(),
    }
}

/// An Event, or its continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Telling {
    denial: Denial,
    /// Distinguishes it from the others of the pod.
    number: u64,
    count: u32,
}

/// Says what to tell, and when to be quiet. Pure.
#[derive(Debug)]
struct Quota {
    known: BTreeMap<Denial, Known>,
    numbers: u64,
    left: u32,
    refilled: Instant,
}

#[derive(Debug)]
struct Known {
    number: u64,
    begun: Instant,
    told: Instant,
    count: u32,
}

impl Quota {
    /// `first` is the number of the first Event.
    const fn new(first: u64, now: Instant) -> Self {
        Self {
            known: BTreeMap::new(),
            numbers: first,
            left: BURST,
            refilled: now,
        }
    }

    fn take(&mut self, denial: Denial, count: u32, now: Instant) -> Option<Telling> {
        let known = self.known.get_mut(&denial);
        let mut known = known.filter(|known| now.duration_since(known.begun) < SERIES);
        if let Some(known) = &mut known {
            known.count = known.count.saturating_add(count);
            if now.duration_since(known.told) < QUIET {
                return None;
            }
        }
        let told = known.map(|known| (known.number, known.begun, known.count));
        self.refill(now);
        self.left = self.left.checked_sub(1)?;
        self.make_room(now);
        let (number, begun, count) = told.unwrap_or_else(|| {
            self.numbers += 1;
            (self.numbers, now, count)
        });
        let known = Known {
            number,
            begun,
            told: now,
            count,
        };
        self.known.insert(denial.clone(), known);
        Some(Telling {
            denial,
            number,
            count,
        })
    }

    fn refill(&mut self, now: Instant) {
        while self.left < BURST && now.duration_since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.known.len() < KINDS {
            return;
        }
        self.known
            .retain(|_, known| now.duration_since(known.told) < QUIET);
    }
}

/// Tells until nothing more is decided.
pub async fn tell(client: Client, shared: &Shared, mut records: Receiver<Arc<Record>>) {
    // An agent before this one told some, too.
    let first = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
    let mut quota = Quota::new(first, Instant::now());
    loop {
        let record = match records.recv().await {
            Ok(record) => record,
            // They are samples.
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let count = u32::try_from(record.count).unwrap_or(u32::MAX);
        let telling = Denial::of(&record)
            .and_then(|denial| quota.take(denial, count, Instant::now()))
            .and_then(|telling| Some((regarding(shared, telling.denial.pod)?, telling)));
        let Some((pod, telling)) = telling else {
            continue;
        };
        match timeout(PATIENCE, write(&client, shared.node(), &pod, &telling)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a denial is not told as an Event"),
            Err(_) => tracing::debug!("a denial is not told as an Event: no answer"),
        }
    }
}

/// `None`: no pod of this node, or not known any more.
fn regarding(shared: &Shared, uid: Uid) -> Option<ObjectReference> {
    let view = shared.view()?;
    let pod = view.local.iter().find(|pod| pod.uid == uid)?;
    let (namespace, name) = pod.name.split_once('/')?;
    Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_string()),
        ..ObjectReference::default()
    })
}

async fn write(
    client: &Client,
    node: &str,
    pod: &ObjectReference,
    telling: &Telling,
) -> Result<(), kube::Error> {
    let event = event(node, pod, telling);
    let events =
        Api::<Event>::namespaced(client.clone(), pod.namespace.as_deref().unwrap_or_default());
    let name = event.metadata.name.clone().unwrap_or_default();
    if event.series.is_some() {
        let series = serde_json::json!({"series": event.series, "note": event.note});
        let patched = events
            .patch(&name, &PatchParams::default(), &Patch::Merge(&series))
            .await;
        match patched {
            // The API server keeps Events for a while only.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => return result.map(drop),
        }
    }
    events
        .create(&PostParams::default(), &event)
        .await
        .map(drop)
}

fn event(node: &str, pod: &ObjectReference, telling: &Telling) -> Event {
    let now = MicroTime(Timestamp::now());
    let suffix = format!(".{:x}", telling.number);
    let mut name = pod.name.clone().unwrap_or_default();
    // Names of pods are of ASCII.
    name.truncate(NAME_LEN - suffix.len());
    let denial = &telling.denial;
    Event {
        metadata: ObjectMeta {
            namespace: pod.namespace.clone(),
            name: Some(name + &suffix),
            ..ObjectMeta::default()
        },
        event_time: Some(now.clone()),
        regarding: Some(pod.clone()),
        type_: Some(match denial.reason {
            "Denied" => "Warning".to_owned(),
            _ => "Normal".to_owned(),
        }),
        reason: Some(denial.reason.to_owned()),
        action: Some(denial.action.to_owned()),
        note: Some(denial.note.clone()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node.chars().take(128).collect()),
        series: (telling.count > 1).then(|| EventSeries {
            count: i32::try_from(telling.count).unwrap_or(i32::MAX),
            last_observed_time: now,
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(number: usize) -> Denial {
        Denial {
            pod: Uid::new(7),
            reason: "Denied",
            action: "Send",
            note: format!("TCP to {number}"),
        }
    }

    #[test]
    fn what_neighbours_say_to_one_another_is_not_told() {
        let is_told = |protocol, from: &str| !is_chatter(protocol, from.parse().ok());
        assert!(!is_told("ICMP", "fe80::1"));
        assert!(!is_told("ICMP", "ff02::2"));
        assert!(is_told("ICMP", "10.1.0.5"));
        assert!(is_told("TCP", "fe80::1"));
    }

    #[test]
    fn the_same_is_told_at_once_and_then_now_and_then_with_its_count() {
        let start = Instant::now();
        let mut quota = Quota::new(0, start);
        let mut at = |seconds, count| {
            let now = start + Duration::from_secs(seconds);
            let told = quota.take(denial(1), count, now);
            told.map(|telling| (telling.number, telling.count))
        };
        assert_eq!(at(0, 1), Some((1, 1)));
        assert_eq!(at(1, 5), None);
        assert_eq!(at(59, 1), None);
        assert_eq!(at(60, 1), Some((1, 8)));
        assert_eq!(at(61, 1), None);
        // Much later it is another Event.
        assert_eq!(at(SERIES.as_secs(), 1), Some((2, 1)));
    }

    #[test]
    fn many_different_ones_are_not_all_told() {
        let start = Instant::now();
        let mut quota = Quota::new(0, start);
        let told = |quota: &mut Quota, now| {
            let all = (0..1000).filter(|at| quota.take(denial(*at), 1, now).is_some());
            all.count()
        };
        assert_eq!(told(&mut quota, start), BURST as usize);
        assert_eq!(told(&mut quota, start + REFILL * 2), 2);
        assert!(quota.known.len() <= KINDS);
        let hour = Duration::from_hours(1);
        for round in 1..100 {
            told(&mut quota, start + hour * round);
            assert!(quota.known.len() <= KINDS);
        }
    }

    #[test]
    fn an_events_name_is_never_too_long() {
        let pod = ObjectReference {
            name: Some("a".repeat(NAME_LEN)),
            ..ObjectReference::default()
        };
        let telling = Telling {
            denial: denial(1),
            number: u64::MAX,
            count: 1,
        };
        let event = event("n", &pod, &telling);
        assert_eq!(event.metadata.name.unwrap().len(), NAME_LEN);
        assert_eq!(event.series, None);
    }
}
