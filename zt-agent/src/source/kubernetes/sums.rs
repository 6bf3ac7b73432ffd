//! Writes into each policy's status what all nodes' entries come to, and
//! removes those of nodes that do not exist any more.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    Shared,
    objects::Uid,
    tally::{Sum, Tally},
    wire::PolicyObject,
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long a sum is wrong before the first node writes it: when a policy
/// changes many nodes speak up.
const DELAY: Duration = Duration::from_secs(2);
/// How much longer each other node waits.
const STEP: Duration = Duration::from_secs(20);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever writes it: one for all nodes.
const MANAGER: &str = "zt-agent";

/// The statuses whose sum is wrong.
pub struct Sums<'a> {
    api: Api<DynamicObject>,
    shared: &'a Shared,
    wrong: BTreeMap<Uid, Wrong>,
    /// What was looked at.
    revision: Option<u64>,
}

struct Wrong {
    policy: Arc<str>,
    /// What it says: whoever changes that is at work.
    said: Option<Box<str>>,
    since: Instant,
    wait: Duration,
}

impl<'a> Sums<'a> {
    pub fn new(client: Client, shared: &'a Shared) -> Self {
        let resource = ApiResource::erase::<PolicyObject>(&());
        Self {
            api: Api::all_with(client, &resource),
            shared,
            wrong: BTreeMap::new(),
            revision: None,
        }
    }

    /// Never ends.
    pub async fn run(mut self) {
        loop {
            self.look();
            self.write(Instant::now()).await;
            sleep(LOOK).await;
        }
    }

    fn look(&mut self) {
        let known = self.revision;
        let found = self.shared.tell(|cluster| {
            let revision = cluster.tally_revision();
            if known == Some(revision) {
                return None;
            }
            let tallies = cluster.tallies()?;
            let mut wrong = BTreeMap::new();
            for (name, policy) in &tallies.policies {
                let tally = &policy.tally;
                let is_wrong = tally.correction(policy.facts.generation, &tallies.nodes);
                let rank = tally.rank(self.shared.node(), &tallies.nodes);
                if let (Some(_), Some(rank)) = (is_wrong, rank) {
                    let said = tally.enforced().map(Into::into);
                    wrong.insert(policy.uid, (name.clone(), said, wait(rank)));
                }
            }
            Some((revision, wrong))
        });
        let Some((revision, wrong)) = found else {
            return;
        };
        self.revision = Some(revision);
        let now = Instant::now();
        let wrong = wrong.into_iter().map(|(uid, (policy, said, wait))| {
            let before = self.wrong.get(&uid).filter(|before| before.said == said);
            let since = before.map_or(now, |before| before.since);
            let wrong = Wrong {
                policy,
                said,
                since,
                wait,
            };
            (uid, wrong)
        });
        self.wrong = wrong.collect();
    }

    async fn write(&mut self, now: Instant) {
        for (uid, wrong) in &mut self.wrong {
            if now.duration_since(wrong.since) < wrong.wait {
                continue;
            }
            // The watch tells when it is right; until then it is tried again.
            wrong.since = now;
            let policy = &*wrong.policy;
            let error = match timeout(PATIENCE, correct(&self.api, self.shared, policy, *uid)).await
            {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            tracing::warn!(policy, %error, "the policy's status does not say yet on how many nodes it is enforced");
        }
    }
}

fn wait(rank: usize) -> Duration {
    let rank = u32::try_from(rank).unwrap_or(u32::MAX);
    DELAY.saturating_add(STEP.saturating_mul(rank))
}

/// From the object as it is now, and only if it still is that.
async fn correct(
    api: &Api<DynamicObject>,
    shared: &Shared,
    policy: &str,
    uid: Uid,
) -> Result<(), kube::Error> {
    let Some(object) = api.get_opt(policy).await? else {
        return Ok(());
    };
    let generation = object.metadata.generation.unwrap_or_default();
    let tally = Tally::read(&object.data["status"], |node| node.into());
    let sum = shared.tell(|cluster| {
        let tallies = cluster.tallies()?;
        tally.correction(generation, &tallies.nodes)
    });
    let is_it = object.metadata.uid.as_deref() == Some(&*uid.to_string());
    let Some(sum) = sum.filter(|_| is_it) else {
        return Ok(());
    };
    let merge = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(body(&object, &sum));
    match api.patch_status(policy, &merge, &patch).await {
        // Somebody else wrote: it comes by the watch.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

fn body(object: &DynamicObject, sum: &Sum) -> Value {
    let mut status = json!({"enforced": sum.enforced, "reason": sum.reason});
    if let Some(nodes) = object.data["status"]["nodes"].as_array()
        && !sum.gone.is_empty()
    {
        let stays = |entry: &&Value| entry["node"].as_str().is_none_or(|n| !sum.gone.contains(n));
        status["nodes"] = nodes.iter().filter(stays).cloned().collect();
    }
    json!({
        "metadata": {
            "uid": object.metadata.uid,
            "resourceVersion": object.metadata.resource_version,
        },
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_what_is_gone_is_removed_and_of_what_was_read() {
        let object: DynamicObject = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "resourceVersion": "7"},
            "status": {"nodes": [{"node": "a", "x": 1}, {"node": "b"}]},
        }))
        .unwrap();
        let sum = |gone: &[&str]| Sum {
            enforced: "1/1".to_owned(),
            reason: String::new(),
            gone: gone
                .iter()
                .map(|name| Arc::from(*name))
                .collect::<BTreeSet<_>>(),
        };
        let written = body(&object, &sum(&["b"]));
        assert_eq!(written["status"]["nodes"], json!([{"node": "a", "x": 1}]));
        assert_eq!(written["metadata"]["resourceVersion"], "7");
        assert!(body(&object, &sum(&[]))["status"].get("nodes").is_none());
    }

    #[test]
    fn each_node_waits_longer_than_the_one_before() {
        assert!(wait(0) < wait(1) && wait(1) < wait(100));
        assert!(
            wait(1) - wait(0) > PATIENCE,
            "the other one's write is seen"
        );
        assert!(wait(usize::MAX) > wait(100));
    }
}
