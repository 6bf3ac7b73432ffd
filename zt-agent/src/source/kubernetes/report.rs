//! Writes into each policy's status what this node makes of it.
//!
//! Every agent applies its own element of `status.nodes`, and nobody else's,
//! by server-side apply under a field manager of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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

use super::{objects::Uid, wire::PolicyObject};
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

/// What is known of this node in the policies' statuses.
pub struct Reporter {
    api: Api<DynamicObject>,
    node: String,
    manager: String,
    /// What was written, or found written.
    written: BTreeMap<Uid, Verdict>,
}

impl Reporter {
    pub fn new(client: Client, node: &str) -> Self {
        let resource = ApiResource::erase::<PolicyObject>(&());
        Self {
            api: Api::all_with(client, &resource),
            node: node.to_owned(),
            manager: manager(node),
            written: BTreeMap::new(),
        }
    }

    /// Writes what changes, until nothing can change any more.
    pub async fn run(mut self, mut verdicts: Receiver<Arc<[Verdict]>>) {
        loop {
            let now = verdicts.borrow_and_update().clone();
            let all_written = self.write(&now).await;
            sleep(ROUND).await;
            let changed = verdicts.changed();
            let changed = if all_written {
                changed.await
            } else {
                timeout(RETRY, changed).await.unwrap_or(Ok(()))
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Whether all of it is written.
    async fn write(&mut self, now: &[Verdict]) -> bool {
        self.written
            .retain(|uid, _| now.iter().any(|verdict| verdict.uid == *uid));
        let mut failed = None;
        for verdict in now {
            if self.written.get(&verdict.uid) == Some(verdict) {
                continue;
            }
            match timeout(PATIENCE, self.write_one(verdict)).await {
                Ok(Ok(())) => _ = self.written.insert(verdict.uid, verdict.clone()),
                Ok(Err(error)) => failed = Some(error.to_string()),
                Err(_) => failed = Some("the API server does not answer".to_owned()),
            }
            sleep(GAP).await;
        }
        if let Some(error) = &failed {
            tracing::warn!(%error, "the policies' status does not say yet what this node makes of them");
        }
        failed.is_none()
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
    use super::{super::stub, *};

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
        let mut reporter = Reporter::new(client.await, "n");
        assert!(!reporter.write(&[verdict()]).await);
        assert!(reporter.write(&[verdict()]).await);
        assert!(reporter.write(&[verdict()]).await, "and not again");
    }

    #[test]
    fn every_node_has_a_field_manager_of_its_own() {
        assert_eq!(manager("n"), "zt-agent-n");
        let long = "n".repeat(250);
        assert!(manager(&long).len() <= MANAGER_LEN);
        assert_ne!(manager(&long), manager(&format!("{long}m")));
    }
}
