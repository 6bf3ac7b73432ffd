//! The five services of the policy as Deployments, each on every node, with a service
//! account and a ClusterIP of its own.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::parts::PROBE_IMAGE;
use super::place::Place;
use super::stage::Stage;
use crate::demo::services::Service;

pub const NAMESPACE: &str = "hanzo";

/// A pod of a service, and the ClusterIP behind which it is alone.
#[derive(Clone, Debug)]
pub struct Pod {
    pub service: Service,
    pub place: Place,
    pub name: String,
    pub address: Ipv4Addr,
    pub cluster: Ipv4Addr,
}

/// How somebody is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    PodIp,
    ClusterIp,
}

impl Way {
    pub const ALL: [Self; 2] = [Self::PodIp, Self::ClusterIp];

    pub fn name(self) -> &'static str {
        match self {
            Self::PodIp => "pod IP",
            Self::ClusterIp => "ClusterIP",
        }
    }
}

impl Pod {
    pub fn at(&self, way: Way) -> SocketAddr {
        let address = match way {
            Way::PodIp => self.address,
            Way::ClusterIp => self.cluster,
        };
        SocketAddr::from((address, self.service.port()))
    }

    /// `iam@node-a`
    pub fn label(&self) -> String {
        label(self.service, self.place)
    }
}

fn label(service: Service, place: Place) -> String {
    format!("{service}@{place}")
}

fn app(service: Service, place: Place) -> String {
    format!("{service}-{}", place.name().trim_start_matches("node-"))
}

/// Everything of the services, as `kubectl apply` takes it.
pub fn objects() -> Vec<Value> {
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
    })];
    for service in Service::ALL {
        objects.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": service.name(), "namespace": NAMESPACE},
        }));
        for place in Place::ALL {
            objects.push(deployment(service, place));
            objects.push(cluster_ip(service, place));
        }
    }
    objects
}

fn deployment(service: Service, place: Place) -> Value {
    let app = app(service, place);
    let listen = format!("0.0.0.0:{}", service.port());
    // Of probes before a container is started anew. One node is rebooted, and nobody
    // answers there until the agent runs: on an emulated node that takes minutes, and
    // more with every container that starts beside it.
    let failures = match place {
        Place::A => 3,
        Place::B => 60,
    };
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": app, "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {"app": app}},
            "template": {
                "metadata": {"labels": {"app": app}},
                "spec": {
                    "serviceAccountName": service.name(),
                    "automountServiceAccountToken": false,
                    "dnsPolicy": "Default",
                    "nodeSelector": {"kubernetes.io/hostname": place.name()},
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "serve",
                        "image": PROBE_IMAGE,
                        "imagePullPolicy": "Never",
                        "args": ["serve", "--name", service.name(), "--tcp", listen],
                        // It serves until its input ends.
                        "stdin": true,
                        "livenessProbe": {
                            "tcpSocket": {"port": service.port()},
                            "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": failures,
                        },
                    }],
                },
            },
        },
    })
}

fn cluster_ip(service: Service, place: Place) -> Value {
    let app = app(service, place);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": app, "namespace": NAMESPACE},
        "spec": {
            "selector": {"app": app},
            "ports": [{"name": "main", "port": service.port()}],
        },
    })
}

/// Deploys them, and waits until every pod runs and is behind its Service.
pub fn deploy(stage: &mut Stage) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects()});
    stage.create(&list)?;
    let count = Service::ALL.len() * Place::ALL.len();
    stage.until("all pods of the services run", |stage| {
        Ok(pods(stage).is_ok_and(|pods| pods.len() == count))
    })
}

/// The pods that run and are ready.
pub fn pods(stage: &Stage) -> Result<Vec<Pod>> {
    let ask = |kind: &str| -> Result<Vec<Value>> {
        let text = stage.get(&[kind, "--namespace", NAMESPACE, "-o=json"])?;
        let mut list: Value = serde_json::from_str(&text)?;
        let items = list["items"].take();
        Ok(serde_json::from_value(items)?)
    };
    let (pods, services) = (ask("pods")?, ask("services")?);
    let mut found = Vec::new();
    for service in Service::ALL {
        for place in Place::ALL {
            let app = app(service, place);
            let front = services
                .iter()
                .find(|one| one["metadata"]["name"] == app.as_str());
            let Some(pod) = pods
                .iter()
                .find(|pod| pod["metadata"]["labels"]["app"] == app.as_str() && is_ready(pod))
            else {
                continue;
            };
            found.push(Pod {
                service,
                place,
                name: text(&pod["metadata"]["name"])?.to_owned(),
                address: text(&pod["status"]["podIP"])?.parse()?,
                cluster: text(&front.context("no Service")?["spec"]["clusterIP"])?.parse()?,
            });
        }
    }
    Ok(found)
}

/// How many connections a pod took from an address since it was started.
pub fn took(stage: &Stage, pod: &Pod, address: &str) -> Result<usize> {
    let log = stage.kubectl(&["logs", "-n", NAMESPACE, &pod.name])?.ok()?;
    let line = format!("accept tcp {address}:");
    Ok(log.lines().filter(|one| one.starts_with(&line)).count())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.is_some_and(|all| {
            all.iter()
                .any(|one| one["type"] == "Ready" && one["status"] == "True")
        })
}

pub fn text(value: &Value) -> Result<&str> {
    value.as_str().context("not a text")
}
