//! Writes into each policy's status what this node makes of it.
//!
//! Every agent applies its own element of `status.nodes`, and nobody else's,
//! by server-side apply under a field manager of its own.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::watch::Receiver,
    time::{sleep, timeout},
};

use super::{Shared, objects::Uid, wire::PolicyObject};
use crate::{
    document::API_VERSION,
    resource::{self, NodeStatus, PolicyStatus},
    source::resources::Verdict,
};

/// Between two rounds: what changes back meanwhile is never written.
const ROUND: Duration = Duration::from_secs(1);
/// Between two requests.
const GAP: Duration = Duration::from_millis(50);
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a round in which one failed.
const RETRY: Duration = Duration::from_secs(15);
/// The longest name of a field manager that the API server takes.
const MANAGER_LEN: usize = 128;

/// Until what was written and is not there counts as taken away.
const LOST: Duration = Duration::from_secs(30);
/// What changes on all nodes at once is written by so many nodes per second.
const NODES_PER_SECOND: u32 = 50;
/// However many nodes there are.
const LONGEST_SPREAD: Duration = Duration::from_secs(30);

/// What is known of this node in the policies' statuses.
pub struct Reporter<'a> {
    api: Api<DynamicObject>,
    shared: &'a Shared,
    node: String,
    manager: String,
    /// What was written, or found written, and when.
    written: BTreeMap<Uid, (Verdict, Instant)>,
}

impl<'a> Reporter<'a> {
    pub fn new(client: Client, shared: &'a Shared) -> Self {
        let resource = ApiResource::erase::<PolicyObject>(&());
        let node = shared.node();
        Self {
            api: Api::all_with(client, &resource),
            shared,
            node: node.to_owned(),
            manager: manager(node),
            written: BTreeMap::new(),
        }
    }

    /// Writes what changes, until nothing can change any more.
    pub async fn run(mut self, mut verdicts: Receiver<Arc<[Verdict]>>) {
        loop {
            let nodes = self.shared.tell(|cluster| cluster.nodes());
            sleep(spread(&self.node, nodes)).await;
            let now = verdicts.borrow_and_update().clone();
            self.write(&now).await;
            sleep(ROUND).await;
            // Also what failed, and what was taken away.
            let changed = timeout(RETRY, verdicts.changed()).await;
            if changed.unwrap_or(Ok(())).is_err() {
                return;
            }
            self.forget_lost(Instant::now());
        }
    }

    /// Another node's agent removed this one's entry while there was no Node
    /// of this name; now there is one.
    fn forget_lost(&mut self, now: Instant) {
        let (node, written) = (&*self.node, &mut self.written);
        self.shared.tell(|cluster| {
            let Some(tallies) = cluster.tallies() else {
                return;
            };
            if !tallies.nodes.contains(node) {
                return;
            }
            for policy in tallies.policies.values().filter(|one| !one.tally.has(node)) {
                let at = written.get(&policy.uid).map(|(_, at)| *at);
                if at.is_some_and(|at| now.duration_since(at) > LOST) {
                    written.remove(&policy.uid);
                }
            }
        });
    }

    async fn write(&mut self, now: &[Verdict]) {
        self.written
            .retain(|uid, _| now.iter().any(|verdict| verdict.uid == *uid));
        let mut failed = None;
        for verdict in now {
            let written = self.written.get(&verdict.uid);
            if written.is_some_and(|(written, _)| written == verdict) {
                continue;
            }
            match timeout(PATIENCE, self.write_one(verdict)).await {
                Ok(Ok(())) => {
                    let written = (verdict.clone(), Instant::now());
                    self.written.insert(verdict.uid, written);
                }
                Ok(Err(error)) => failed = Some(error.to_string()),
                Err(_) => failed = Some("the API server does not answer".to_owned()),
            }
            sleep(GAP).await;
        }
        if let Some(error) = &failed {
            tracing::warn!(%error, "the policies' status does not say yet what this node makes of them");
        }
    }

    async fn write_one(&self, verdict: &Verdict) -> Result<(), kube::Error> {
        // An agent before this one may have said the same.
        if !self.written.contains_key(&verdict.uid) && self.is_there(verdict).await? {
            return Ok(());
        }
        let apply = PatchParams::apply(&self.manager).force();
        let patch = Patch::Apply(body(&self.node, verdict));
        // Also where it went meanwhile, or another one has its name: until
        // that is told, it may be another conflict.
        let patched = self.api.patch_status(&verdict.name, &apply, &patch);
        patched.await.map(drop)
    }

    async fn is_there(&self, verdict: &Verdict) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(&verdict.name).await?;
        Ok(found.is_some_and(|object| says(&object.data, &self.node, verdict)))
    }
}

/// Whether a policy's status says this of a node already.
fn says(object: &Value, node: &str, verdict: &Verdict) -> bool {
    let status: PolicyStatus = serde_json::from_value(object["status"].clone()).unwrap_or_default();
    let entry = status.nodes.iter().find(|entry| entry.node == node);
    let rules = verdict.rules.is_none() || verdict.rules == status.rules;
    rules
        && entry.is_some_and(|entry| {
            (entry.generation, entry.enforced, &entry.reason)
                == (verdict.generation, verdict.enforced, &verdict.reason)
        })
}

/// What is applied. With the UID, so that it never comes to a policy of the
/// same name that is another one.
fn body(node: &str, verdict: &Verdict) -> Value {
    let now = Timestamp::now().as_second();
    let status = PolicyStatus {
        enforced: None,
        reason: None,
        // All nodes that have the latest generation in force say the same.
        rules: verdict.rules,
        nodes: vec![NodeStatus {
            node: node.to_owned(),
            generation: verdict.generation,
            enforced: verdict.enforced,
            reason: verdict.reason.clone(),
            since: Timestamp::from_second(now).unwrap_or_default(),
        }],
    };
    json!({
        "apiVersion": API_VERSION,
        "kind": resource::Kind::ServiceAccessPolicy.name(),
        "metadata": {"name": &*verdict.name, "uid": verdict.uid.to_string()},
        "status": status,
    })
}

/// How long a node waits so that all `nodes` do not speak at once: each has a
/// place of its own, by its name.
fn spread(node: &str, nodes: usize) -> Duration {
    let hash = Sha256::digest(node);
    let place = u32::from(u16::from_be_bytes([hash[0], hash[1]]));
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let all = (Duration::from_secs(1) / NODES_PER_SECOND).saturating_mul(nodes);
    all.min(LONGEST_SPREAD) * place / u32::from(u16::MAX)
}

/// Two nodes must never have the same one: the later would take the other's
/// element away.
fn manager(node: &str) -> String {
    let plain = format!("zt-agent-{node}");
    if plain.len() <= MANAGER_LEN {
        return plain;
    }
    let hash = Sha256::digest(node);
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("zt-agent-{digits}")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            stub,
            table::Change,
            wire::{Kind as _, NodeObject},
        },
        *,
    };
    use crate::model::{Template, template};

    fn verdict() -> Verdict {
        Verdict {
            name: "p".into(),
            uid: Uid::new(7),
            generation: 2,
            enforced: true,
            reason: "because".to_owned(),
            rules: None,
        }
    }

    fn shared() -> Shared {
        let template = Template::parse(template::DEFAULT, "td", "c").unwrap();
        Shared::new("n", template)
    }

    /// A Node, and a policy in which these nodes have entries.
    fn tell(shared: &Shared, node: &str, entries: &[&str]) {
        let listed = |node| {
            let uid = "0f0e0d0c-1111-4222-8333-444455556666";
            json!({"metadata": {"name": node, "uid": uid}})
        };
        let nodes: Vec<Value> = (entries.iter())
            .map(|node| json!({"node": node, "generation": 2, "enforced": true}))
            .collect();
        let mut policy = listed("p");
        policy["metadata"]["uid"] = json!(Uid::new(7).to_string());
        policy["status"] = json!({"nodes": nodes});
        let node: NodeObject = serde_json::from_value(listed(node)).unwrap();
        let policy: PolicyObject = serde_json::from_value(policy).unwrap();
        shared.tell(|cluster| {
            for change in [
                Change::Listing,
                Change::Listed(node.keep(cluster).unwrap()),
                Change::ListDone,
            ] {
                cluster.node(change);
            }
            for change in [
                Change::Listing,
                Change::Listed(policy.keep(cluster).unwrap()),
                Change::ListDone,
            ] {
                cluster.policy(change);
            }
        });
    }

    #[tokio::test]
    async fn an_entry_that_was_taken_away_is_written_again_once_there_is_such_a_node() {
        let client = stub::serve(|_| None).await;
        let shared = shared();
        let mut reporter = Reporter::new(client, &shared);
        let written = Instant::now();
        reporter.written.insert(Uid::new(7), (verdict(), written));
        let later = written + LOST * 2;
        let mut stays = |node, entries: &[&str], at| {
            tell(&shared, node, entries);
            reporter.forget_lost(at);
            reporter.written.contains_key(&Uid::new(7))
        };
        assert!(
            stays("other", &[], later),
            "or the two would go on for ever"
        );
        assert!(stays("n", &["n"], later));
        assert!(stays("n", &[], written + LOST / 2), "the watch may be late");
        assert!(!stays("n", &["m"], later));
    }

    #[test]
    fn nodes_speak_one_after_the_other() {
        let nodes: Vec<String> = (0..100).map(|node| format!("node-{node}")).collect();
        let mut waits: Vec<Duration> = nodes.iter().map(|node| spread(node, 100)).collect();
        waits.sort();
        assert!(waits[99] <= Duration::from_secs(2), "{waits:?}");
        let half = waits.iter().filter(|wait| **wait < Duration::from_secs(1));
        assert!((30..70).contains(&half.count()), "{waits:?}");
        assert!(spread("node-1", 1) <= Duration::from_millis(20));
        assert!(spread("node-1", usize::MAX) <= LONGEST_SPREAD);
    }

    #[test]
    fn what_is_written_is_what_says_so() {
        let written = body("n", &verdict());
        assert!(says(&written, "n", &verdict()));
        assert!(!says(&written, "m", &verdict()));
        assert!(!says(&json!({}), "n", &verdict()));
        for other in [
            Verdict {
                generation: 3,
                ..verdict()
            },
            Verdict {
                enforced: false,
                ..verdict()
            },
            Verdict {
                reason: String::new(),
                ..verdict()
            },
            Verdict {
                rules: Some(1),
                ..verdict()
            },
        ] {
            assert!(!says(&written, "n", &other), "{other:?}");
        }
        assert!(written["status"].get("rules").is_none());
        let uid = Uid::new(7).to_string();
        assert_eq!(written["metadata"]["uid"].as_str(), Some(&*uid));
    }

    #[tokio::test]
    async fn what_was_refused_is_not_taken_for_written() {
        let mut answers = vec![(200, json!({"metadata": {}})), (409, json!({"code": 409}))];
        let client = stub::serve(move |request| {
            if request.starts_with("GET") {
                let none = json!({"code": 404, "reason": "NotFound"});
                return Some((404, none.to_string()));
            }
            let (status, body) = answers.pop().expect("two are enough");
            Some((status, body.to_string()))
        });
        let shared = shared();
        let mut reporter = Reporter::new(client.await, &shared);
        reporter.write(&[verdict()]).await;
        assert!(reporter.written.is_empty());
        reporter.write(&[verdict()]).await;
        assert_eq!(reporter.written.len(), 1);
        // There is no third answer.
        reporter.write(&[verdict()]).await;
        assert_eq!(reporter.written.len(), 1);
    }

    #[test]
    fn every_node_has_a_field_manager_of_its_own() {
        assert_eq!(manager("n"), "zt-agent-n");
        let long = "n".repeat(250);
        assert!(manager(&long).len() <= MANAGER_LEN);
        assert_ne!(manager(&long), manager(&format!("{long}m")));
    }
}
