//! What of a node is under the managed root and yet nobody's workload: static
//! pods and the agent's own. On the node's own network they count as the node.

use std::net::SocketAddr;

use zt_tests::{Workload, actor::Actor, cluster};

use crate::stage::{Driver, PATIENT, PORT, SLOW, Stage, wait};

const STATIC: &str = "0f0e0d0c-1111-4222-8333-0000000000aa";

#[test]
fn a_static_pod_counts_as_its_node_and_nobody_else_does() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 32);
    let gateway = stage.network.ipv4(1);
    let node = stage.network.bridge().clone();
    let address = format!("{gateway}/24");
    node.ip(&["address", "add", &address, "dev", "br0"])
        .unwrap();
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let _serving = stage.serve(&server);
    let at_server = SocketAddr::from((server.address, PORT));
    stage.agent.start().unwrap();

    // A kubelet starts it from a file; the API server does not know its UID.
    let of_static = stage.cgroup(STATIC, Driver::Systemd);
    let on_host = |cgroup: &zt_tests::cgroup::Cgroup, name: &str| {
        let container = stage.container(cgroup, Driver::Systemd);
        Workload::sharing(name, container, Some(node.clone()))
    };
    let control_plane = on_host(&of_static, "static");
    let to_itself = SocketAddr::from((gateway, 2379));
    let _listening = control_plane.serve(&[to_itself], &[]).unwrap();
    assert!(control_plane.tcp(to_itself, PATIENT).unwrap().replied());
    // As a probe of the kubelet's would.
    assert!(control_plane.tcp(at_server, PATIENT).unwrap().replied());
    let records = || stage.records();
    wait(SLOW, || {
        records().iter().any(|record| {
            record["reason"] == "host-allowed" && record["source"]["identity"] == "host"
        })
    });

    // Its neighbour has a namespace of its own.
    let stranger = stage.cgroup("0f0e0d0c-1111-4222-8333-0000000000bb", Driver::Systemd);
    let stranger = Workload::new(
        "stranger",
        stage.container(&stranger, Driver::Systemd),
        Some(stage.network.join("stranger", 12).unwrap()),
    );
    let denied = stranger.tcp(to_itself, PATIENT).unwrap();
    assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{denied:?}");

    // A pod with an identity has that, also on the node's network; and whoever
    // deletes it while it runs does not make it a part of the node.
    let uid = stage.host_object("proxy", "other");
    let of_proxy = stage.cgroup(&uid, Driver::Systemd);
    let proxy = on_host(&of_proxy, "proxy");
    let _running = Actor::member(&proxy);
    let denied = || {
        let attempt = proxy.tcp(at_server, PATIENT).unwrap();
        attempt.errno.as_deref() == Some("EPERM")
    };
    wait(SLOW, denied);
    stage.delete("proxy");
    wait(SLOW, || {
        let status = stage.agent.ask(&["status", "-o", "json"]).unwrap();
        status.output.contains(&format!("pod {uid}"))
    });
    assert!(denied());
}
