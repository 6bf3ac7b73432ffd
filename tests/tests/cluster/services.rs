//! Services: a real kube-proxy leads what is sent to them elsewhere, and who may
//! reach them depends on who is there.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use zt_tests::{Workload, cluster, report::Attempt};

use crate::{
    proxy::{self, Proxy},
    stage::{Driver, PATIENT, PORT, SLOW, Stage, wait},
};

/// Of the Services; their backends serve at [`PORT`].
const FRONT: u16 = 80;

impl Stage<'_> {
    /// Makes a Service; gives its address.
    fn service(&self, name: &str) -> IpAddr {
        self.create(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"ports": [{"name": "main", "port": FRONT, "targetPort": PORT}]},
        }));
        let address = self.kubectl(&["get", "service", name, "-o=jsonpath={.spec.clusterIP}"]);
        address.parse().unwrap()
    }

    /// Says who is behind a Service.
    fn slice(&self, service: &str, addresses: &[IpAddr]) {
        let backends: Vec<Value> = (addresses.iter())
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": service, "namespace": self.namespace,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "ports": [{"name": "main", "port": PORT, "protocol": "TCP"}],
            "endpoints": backends,
        });
        let applied = self
            .cluster
            .kubectl_with(&["apply", "-f", "-"], &slice.to_string());
        applied.unwrap().ok().unwrap();
    }
}

fn ask(from: &Workload, service: IpAddr) -> Attempt {
    from.tcp(SocketAddr::new(service, FRONT), PATIENT).unwrap()
}

#[track_caller]
fn until(from: &Workload, service: IpAddr, answered: bool) {
    wait(SLOW, || ask(from, service).replied() == answered);
}

#[test]
fn who_may_reach_a_service_depends_on_who_is_behind_it() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 31);
    let _proxy = Proxy::start(&stage);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let other = stage.pod("other", "other", Driver::Systemd, 12);
    for pod in [&server, &client, &other] {
        proxy::route(&stage, pod);
    }
    let mut serving = stage.serve(&server);
    let behind = IpAddr::from(server.address);
    let web = stage.service("web");
    stage.slice("web", &[behind]);
    // kube-proxy works, and hides nobody.
    for pod in [&client, &other] {
        until(&pod.workload, web, true);
    }
    let from_other = format!("{}:", other.address);
    let heard = serving.received().unwrap();
    assert!(
        heard.iter().any(|line| line.contains(&from_other)),
        "{heard:?}"
    );

    stage.agent.start().unwrap();
    until(&client.workload, web, true);
    let before = serving.received().unwrap().len();
    for _ in 0..3 {
        let denied = ask(&other.workload, web);
        assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{denied:?}");
        assert!(ask(&client.workload, web).replied());
    }
    let heard = serving.received().unwrap().split_off(before);
    let accepted = heard.iter().filter(|line| line.starts_with("accept"));
    assert_eq!(accepted.count(), 3, "{heard:?}");
    assert!(
        !heard.iter().any(|line| line.contains(&from_other)),
        "{heard:?}"
    );

    // Whoever may make a Service of their own gets nowhere by it.
    let mine = stage.service("mine");
    stage.slice("mine", &[behind]);
    until(&client.workload, mine, true);
    assert_eq!(ask(&other.workload, mine).errno.as_deref(), Some("EPERM"));

    // Nobody is there any more, and then somebody is again.
    stage.slice("web", &[]);
    until(&client.workload, web, false);
    assert_eq!(ask(&client.workload, web).errno.as_deref(), Some("EPERM"));
    stage.slice("web", &[behind]);
    until(&client.workload, web, true);

    // A Service that has gone is nobody, and not the world.
    stage.kubectl(&["delete", "service", "web"]);
    wait(SLOW, || {
        ask(&client.workload, web).errno.as_deref() == Some("EPERM")
    });
    wait(SLOW, || {
        let records = stage.records();
        let last = records.iter().rfind(|record| record["reason"].is_string());
        last.is_some_and(|record| record["reason"] == "unknown-peer")
    });
}
