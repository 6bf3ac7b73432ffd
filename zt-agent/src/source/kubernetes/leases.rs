//! Renews this node's Lease for as long as all of the node is enforced, and reads
//! those of the others.
//!
//! They lie in the agents' own namespace, one for each node and with its name.
//! Read they are only where somebody needs to know: every node that does asks for
//! all of them.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use tokio::time::{sleep, timeout};

use super::{
    Shared,
    governing::{Governing, LASTS, Lease},
};

/// Between two renewals, and between two looks at the others.
const RENEWAL: Duration = Duration::from_secs(10);
/// Between two looks at what this node claims.
const LOOK: Duration = Duration::from_secs(1);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever writes it, and the label of all of them.
const MANAGER: &str = "zt-agent";
const LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "zt-agent");

/// What this node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Everybody here gets only what he may get.
    Governed,
    /// Nobody knows at the moment, or something is wrong: what was said last lapses.
    Unknown,
    /// Somebody here is in audit mode.
    Ungoverned,
}

/// Renews and reads, and never ends. `changed`: another view of the cluster.
pub async fn follow(
    client: Client,
    shared: &Shared,
    claim: impl Fn() -> Claim,
    changed: impl Fn(),
) {
    let api: Api<LeaseObject> = Api::default_namespaced(client);
    tokio::join!(
        renew(&api, shared.node(), claim),
        read(&api, shared, changed)
    );
}

async fn renew(api: &Api<LeaseObject>, node: &str, claim: impl Fn() -> Claim) {
    let mut said: Option<(Claim, Instant)> = None;
    loop {
        let claim = claim();
        if is_due(claim, said, Instant::now()) {
            match timeout(PATIENCE, write(api, node, claim == Claim::Governed)).await {
                Ok(Ok(())) => said = Some((claim, Instant::now())),
                failed => {
                    tracing::warn!(error = %why(failed), "this node's Lease cannot be written: who may reach only some of those behind a Service is denied on other nodes for those that are here");
                    sleep(RENEWAL).await;
                }
            }
        }
        sleep(LOOK).await;
    }
}

fn is_due(claim: Claim, said: Option<(Claim, Instant)>, now: Instant) -> bool {
    match (claim, said) {
        (Claim::Unknown, _) => false,
        (_, None) => true,
        (_, Some((before, _))) if before != claim => true,
        (Claim::Governed, Some((_, at))) => now.duration_since(at) >= RENEWAL,
        (Claim::Ungoverned, Some(_)) => false,
    }
}

async fn write(api: &Api<LeaseObject>, node: &str, is_held: bool) -> Result<(), kube::Error> {
    let apply = PatchParams::apply(MANAGER).force();
    let lease = Patch::Apply(object(node, is_held, Timestamp::now()));
    api.patch(node, &apply, &lease).await.map(drop)
}

/// Given up as whoever leads elections gives up theirs: nobody holds it.
fn object(node: &str, is_held: bool, now: Timestamp) -> LeaseObject {
    let holder = if is_held { node } else { "" };
    LeaseObject {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            labels: Some([(LABEL.0.to_owned(), LABEL.1.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

async fn read(api: &Api<LeaseObject>, shared: &Shared, changed: impl Fn()) {
    let mut reader = Reader::default();
    // At the start nobody knows yet whether it matters.
    let mut matters = true;
    loop {
        let nodes = if matters {
            let was_listed = shared.is_listed();
            let answer = Answer::from(timeout(PATIENCE, list(api)).await);
            reader.look(answer, was_listed, Instant::now(), Timestamp::now())
        } else {
            Some(reader.forget())
        };
        let Some(nodes) = nodes else {
            sleep(LOOK).await;
            continue;
        };
        if shared.tell(|cluster| cluster.govern(nodes)) {
            changed();
        }
        sleep(RENEWAL).await;
        let view = shared.view();
        matters = view.is_none_or(|view| view.services.iter().any(|port| port.has_several()));
    }
}

/// What came of a look at the leases.
enum Answer {
    Leases(Vec<Lease>),
    /// It answered, and not with leases: it will not soon.
    Refused(String),
    /// It did not answer.
    Silence(String),
}

type Listed = Result<Result<Vec<Lease>, kube::Error>, tokio::time::error::Elapsed>;

impl From<Listed> for Answer {
    fn from(listed: Listed) -> Self {
        match listed {
            Ok(Ok(leases)) => Self::Leases(leases),
            refused @ Ok(Err(kube::Error::Api(_))) => Self::Refused(why(refused)),
            failed => Self::Silence(why(failed)),
        }
    }
}

/// What is known of the leases, and how.
#[derive(Default)]
struct Reader {
    governing: Governing,
    is_failing: bool,
}

impl Reader {
    /// Those that are governed after that answer. `None`: nothing is known, and
    /// nobody needs it yet, as the rest of the cluster is not known either
    /// (`was_listed`, before the leases were asked for). Without that an agent that
    /// starts while the API server is away would begin stricter than it was.
    fn look(
        &mut self,
        answer: Answer,
        was_listed: bool,
        now: Instant,
        clock: Timestamp,
    ) -> Option<BTreeSet<Arc<str>>> {
        let (error, may_wait) = match answer {
            Answer::Leases(leases) => {
                self.is_failing = false;
                self.governing.heard(leases, now, clock);
                return Some(self.governing.nodes());
            }
            Answer::Refused(error) => (error, false),
            Answer::Silence(error) => (error, !self.governing.was_heard() && !was_listed),
        };
        if !self.is_failing {
            self.is_failing = true;
            tracing::warn!(
                error,
                "the nodes' Leases cannot be read, and what was known of them stays: of a Service with several identities behind it only who may reach all of them gets there, unless their nodes were known to enforce"
            );
        }
        (!may_wait).then(|| self.governing.nodes())
    }

    /// Nobody needs to know: what becomes of them meanwhile is not known later.
    fn forget(&mut self) -> BTreeSet<Arc<str>> {
        self.governing = Governing::default();
        BTreeSet::new()
    }
}

/// From the API server's memory: it is asked for all of them, and often.
async fn list(api: &Api<LeaseObject>) -> Result<Vec<Lease>, kube::Error> {
    let ours = format!("{}={}", LABEL.0, LABEL.1);
    let of_any_age = ListParams::default().labels(&ours).match_any();
    let leases = api.list(&of_any_age).await?;
    Ok(leases.items.iter().filter_map(lease).collect())
}

fn lease(object: &LeaseObject) -> Option<Lease> {
    let node = object.metadata.name.as_deref()?;
    let spec = object.spec.as_ref()?;
    Some(Lease {
        node: node.into(),
        is_held: spec.holder_identity.as_deref() == Some(node),
        renewed: spec.renew_time.as_ref()?.0,
    })
}

fn why<T>(failed: Result<Result<T, kube::Error>, tokio::time::error::Elapsed>) -> String {
    match failed {
        Ok(Err(error)) => error.to_string(),
        _ => "the API server does not answer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_renewed_while_it_holds_and_given_up_once() {
        let now = Instant::now();
        let soon = now + RENEWAL - LOOK;
        let later = now + RENEWAL;
        let said = |claim| Some((claim, now));
        use Claim::{Governed, Ungoverned, Unknown};
        assert!(is_due(Governed, None, now) && is_due(Ungoverned, None, now));
        assert!(!is_due(Governed, said(Governed), soon));
        assert!(is_due(Governed, said(Governed), later));
        assert!(is_due(Ungoverned, said(Governed), now));
        assert!(!is_due(Ungoverned, said(Ungoverned), later));
        assert!(is_due(Governed, said(Ungoverned), now));
        for said in [None, said(Governed), said(Ungoverned)] {
            assert!(!is_due(Unknown, said, later));
        }
        assert!(LASTS > 3 * RENEWAL, "some may fail");
    }

    #[test]
    fn what_is_written_is_read() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        for is_held in [true, false] {
            let read = lease(&object("n", is_held, now)).unwrap();
            let written = Lease {
                node: "n".into(),
                is_held,
                renewed: now,
            };
            assert_eq!(read, written);
        }
        // Somebody else's: a node speaks for itself alone.
        let mut other = object("n", true, now);
        other.spec.as_mut().unwrap().holder_identity = Some("m".to_owned());
        assert!(!lease(&other).unwrap().is_held);
    }

    fn leases(held: &[&str], renewed: Timestamp) -> Answer {
        let lease = |node: &&str| Lease {
            node: (*node).into(),
            is_held: true,
            renewed,
        };
        Answer::Leases(held.iter().map(lease).collect())
    }

    fn names(nodes: Option<BTreeSet<Arc<str>>>) -> Option<Vec<String>> {
        nodes.map(|nodes| nodes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn before_anything_was_heard_silence_is_waited_out_while_the_rest_is_missing_too() {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let silence = || Answer::Silence("away".to_owned());
        let mut reader = Reader::default();
        assert_eq!(reader.look(silence(), false, now, clock), None);
        assert_eq!(reader.look(silence(), false, now, clock), None);
        let heard = reader.look(leases(&["a"], clock), false, now, clock);
        assert_eq!(names(heard), Some(vec!["a".to_owned()]));

        // All else is there: it must not be waited for any longer.
        let mut reader = Reader::default();
        let known = reader.look(silence(), true, now, clock);
        assert_eq!(names(known), Some(vec![]));
        // A refusal does not go away by itself.
        let mut reader = Reader::default();
        let refused = Answer::Refused("forbidden".to_owned());
        let known = reader.look(refused, false, now, clock);
        assert_eq!(names(known), Some(vec![]));
    }

    #[test]
    fn what_was_heard_stays_when_nobody_answers_and_is_forgotten_when_nobody_asks() {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let mut reader = Reader::default();
        reader.look(leases(&["a"], clock), false, now, clock);
        for failed in [
            Answer::Silence("away".to_owned()),
            Answer::Refused("too many requests".to_owned()),
        ] {
            let later = now + Duration::from_secs(3600);
            let known = reader.look(failed, true, later, clock);
            assert_eq!(names(known), Some(vec!["a".to_owned()]));
        }
        assert!(reader.forget().is_empty());
        let silence = Answer::Silence("away".to_owned());
        let known = reader.look(silence, true, now, clock);
        assert_eq!(names(known), Some(vec![]));
    }
}
