//! A Service behind which there are two identities on two nodes that enforce.

use anyhow::{Result, ensure};
use serde_json::json;
use zt_tests::report::Attempt;

use super::lives::pod_of;
use super::place::Place;
use super::services::{self, NAMESPACE, Pod};
use super::stage::Stage;
use super::tries;
use crate::demo::services::Service;

const NAME: &str = "mixed";
const PORT: u16 = 80;
const ASKED: usize = 16;

/// The gateway of one node and the Redis of the other are behind one Service. Chat may
/// reach the first, IAM the second: each gets to his own, and what is led to the other
/// one is refused where that one is.
pub fn several(stage: &mut Stage, pods: &[Pod]) -> Result<String> {
    let gateway = pod_of(pods, Service::Gateway, Place::A)?;
    let redis = pod_of(pods, Service::Redis, Place::B)?;
    stage.create(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"ports": [{"name": "main", "port": PORT}]},
    }))?;
    for pod in [gateway, redis] {
        stage.create(&slice(pod))?;
    }
    let field = "-o=jsonpath={.spec.clusterIP}";
    let address = stage.get(&["service", NAME, "-n", NAMESPACE, field])?;
    let target = format!("{NAME}={address}:{PORT}");
    let ask = |stage: &Stage, from: &Pod| -> Result<Attempt> {
        let probe = ["--", "/usr/bin/zt-probe", "reach"];
        let command = ["exec", "-n", NAMESPACE, &from.name];
        let said = stage.kubectl(&[&command[..], &probe, &[&target]].concat())?;
        tries::outcome(&said.ok()?, NAME)
    };
    let mut told = Vec::new();
    for (service, may, may_not) in [
        (Service::Chat, gateway, redis),
        (Service::Iam, redis, gateway),
    ] {
        let from = pod_of(pods, service, Place::A)?;
        let address = from.address.to_string();
        let took = |stage: &Stage, pod: &Pod| services::took(stage, pod, &address);
        let before = (took(stage, may)?, took(stage, may_not)?);
        // The agents hear of each other's Leases now and then.
        stage.until("somebody behind it answers", |stage| {
            Ok(ask(stage, from)?.replied())
        })?;
        let mut answered = 0;
        for _ in 0..ASKED {
            let asked = ask(stage, from)?;
            answered += usize::from(asked.replied());
            let errno = asked.errno.unwrap_or_default();
            ensure!(
                errno != "EPERM",
                "{service}: it is not left to who is there"
            );
        }
        let refused = ASKED - answered;
        ensure!(
            answered > 0 && refused > 0,
            "{service}: {answered} answered, {refused} refused"
        );
        let new = (
            took(stage, may)? - before.0,
            took(stage, may_not)? - before.1,
        );
        ensure!(new.0 >= answered, "{service}: somebody else answered");
        ensure!(
            new.1 == 0,
            "{} took {} from {service}",
            may_not.label(),
            new.1
        );
        told.push(format!(
            "{service}: {answered} answered by {}, {refused} refused at {}",
            may.label(),
            may_not.label()
        ));
    }
    Ok(told.join("; "))
}

fn slice(pod: &Pod) -> serde_json::Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{NAME}-{}", pod.service), "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME},
        },
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": pod.service.port()}],
        "endpoints": [{"addresses": [pod.address], "conditions": {"ready": true}}],
    })
}
