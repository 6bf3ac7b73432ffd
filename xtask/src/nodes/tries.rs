//! Pods that exist for one question: they start, try, and end.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use zt_tests::report::{Attempt, Reached, Summary};

use super::parts::PROBE_IMAGE;
use super::place::Place;
use super::services::{NAMESPACE, Pod, Way};
use super::stage::Stage;
use crate::demo::services::Service;

/// Of one connection.
const LIMIT_MS: &str = "5000";

/// A pod that tries to reach others and ends.
pub struct Try<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// Whose service account it has.
    pub account: Service,
    pub place: Place,
    pub host_network: bool,
    /// What the probe is to do, in an init container or in the pod's own.
    pub arguments: Vec<String>,
    pub init: bool,
}

/// `reach` of the probe.
pub fn reach(targets: &[(&str, String)]) -> Vec<String> {
    let mut arguments = ["reach", "--timeout-ms", LIMIT_MS]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(targets.iter().map(|(name, at)| format!("{name}={at}")));
    arguments
}

/// Connects from the pod's first instruction on, so long, with pauses; milliseconds.
pub fn hammer(to: &str, limit: u32, pause: u32) -> Vec<String> {
    let (limit, pause) = (limit.to_string(), pause.to_string());
    [
        "tcp-loop",
        "--connect",
        to,
        "--for-ms",
        &limit,
        "--pause-ms",
        &pause,
        "--timeout-ms",
        "300",
    ]
    .map(str::to_owned)
    .to_vec()
}

impl<'a> Try<'a> {
    /// Chat, which tries to reach somebody by his address from its first instruction
    /// on.
    pub fn hasty(name: &'a str, place: Place, to: &Pod) -> Self {
        Self {
            namespace: NAMESPACE,
            name,
            account: Service::Chat,
            place,
            host_network: false,
            arguments: hammer(&to.at(Way::PodIp).to_string(), 5000, 5),
            init: false,
        }
    }

    /// Makes the pod, waits for its end, and gives what the one that tried said.
    pub fn run(&self, stage: &mut Stage) -> Result<String> {
        stage.create(&self.object())?;
        let log = self.wait(stage)?;
        let name = format!("pod/{}", self.name);
        stage
            .kubectl(&["delete", &name, "-n", self.namespace, "--wait=false"])?
            .ok()?;
        Ok(log)
    }

    /// Of a pod that was made, when it has ended.
    pub fn wait(&self, stage: &mut Stage) -> Result<String> {
        let (name, namespace) = (self.name.to_owned(), self.namespace.to_owned());
        stage.until(&format!("{name} has ended"), move |stage| {
            let phase = stage.get(&[
                "pod",
                &name,
                "-n",
                &namespace,
                "-o=jsonpath={.status.phase}",
            ])?;
            ensure!(phase != "Failed", "it failed");
            Ok(phase == "Succeeded")
        })?;
        stage
            .kubectl(&["logs", self.name, "-n", self.namespace, "-c", "try"])?
            .ok()
    }

    pub fn object(&self) -> Value {
        let container = |name: &str, arguments: &[String]| json!({"name": name, "image": PROBE_IMAGE, "imagePullPolicy": "Never", "args": arguments});
        let trying = container("try", &self.arguments);
        // Something that ends at once.
        let rest = container("rest", &["--help".to_owned()]);
        let (init, own) = if self.init {
            (vec![trying], vec![rest])
        } else {
            (Vec::new(), vec![trying])
        };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "serviceAccountName": self.account.name(),
                "automountServiceAccountToken": false,
                    "dnsPolicy": "Default",
                "hostNetwork": self.host_network,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "nodeSelector": {"kubernetes.io/hostname": self.place.name()},
                "initContainers": init,
                "containers": own,
            },
        })
    }
}

/// What `reach` said of one target.
pub fn outcome(said: &str, name: &str) -> Result<Attempt> {
    for line in said.lines() {
        let reached: Reached = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if reached.name == name {
            return Ok(reached.attempt);
        }
    }
    anyhow::bail!("nothing of {name} in {said}")
}

/// What a loop came to.
pub fn summary(said: &str) -> Result<Summary> {
    serde_json::from_str(said.trim()).with_context(|| said.to_owned())
}

/// How often a loop tried that may not have succeeded once.
pub fn refused(said: &str) -> Result<u64> {
    let summary = summary(said)?;
    let count = summary.failed.values().sum();
    ensure!(summary.ok == 0 && count > 0, "{summary:?}");
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_by_the_name_of_its_target() {
        let said = r#"{"name":"a","attempt":{"connected":true,"reply":"a:hello","errno":null,"elapsed_us":1}}
{"name":"b","attempt":{"connected":false,"reply":null,"errno":"EPERM","elapsed_us":1}}"#;
        assert!(outcome(said, "a").unwrap().replied());
        assert_eq!(outcome(said, "b").unwrap().errno.as_deref(), Some("EPERM"));
        assert!(outcome(said, "c").is_err());
    }

    #[test]
    fn a_loop_that_succeeded_once_or_never_tried_is_no_refusal() {
        assert_eq!(
            refused(r#"{"ok":0,"failed":{"EPERM":3,"TIMEOUT":1}}"#).unwrap(),
            4
        );
        assert!(refused(r#"{"ok":1,"failed":{"EPERM":3}}"#).is_err());
        assert!(refused(r#"{"ok":0,"failed":{}}"#).is_err());
    }
}
