//! What of a node is under the managed root and yet nobody's workload: static
//! pods and the agent's own. On the node's own network they count as the node.

use std::net::SocketAddr;

use zt_tests::{Workload, actor::Actor, cluster};

use crate::stage::{Driver, PATIENT, PORT, SLOW, Stage, wait};

/// The kubelet names it by a hash of its file.
const STATIC: &str = "0f0e0d0c1111422283330000000000aa";

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
    // A kubelet starts it from a file; the API server does not know its UID.
    let of_static = stage.cgroup(STATIC, Driver::Systemd);
    let container = stage.container(&of_static, Driver::Systemd);
    let control_plane = Workload::sharing("static", container, Some(node.clone()));
    let (to_itself, later) = (
        SocketAddr::from((gateway, 2379)),
        SocketAddr::from((gateway, 2380)),
    );
    // It listens before there is an agent.
    let _listening = control_plane.serve(&[to_itself], &[]).unwrap();
    stage.agent.start().unwrap();

    assert!(control_plane.tcp(to_itself, PATIENT).unwrap().replied());
    let _listening_later = control_plane.serve(&[later], &[]).unwrap();
    assert!(control_plane.tcp(later, PATIENT).unwrap().replied());
    let on_host = |cgroup: &zt_tests::cgroup::Cgroup, name: &str| {
        let container = stage.container(cgroup, Driver::Systemd);
        Workload::sharing(name, container, Some(node.clone()))
    };
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
    // Nor does an agent that never knew it.
    stage.agent.stop().unwrap();
    stage.agent.start().unwrap();
    wait(SLOW, || stage.metric("zt_workloads") == 1.0);
    assert!(denied());
}

/// A hostNetwork pod is part of the node until the agent hears of it: what it
/// opened meanwhile is decided again by who it is.
#[test]
fn what_a_pod_opened_as_the_node_does_not_outlive_its_birth() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 38);
    let node = stage.network.bridge().clone();
    let address = format!("{}/24", stage.network.ipv4(1));
    node.ip(&["address", "add", &address, "dev", "br0"])
        .unwrap();
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    let born = |name, account| {
        let uid = stage.unbound_host_object(name, account);
        let pod = stage.cgroup(&uid, Driver::Systemd);
        let container = stage.container(&pod, Driver::Systemd);
        Workload::sharing(name, container, Some(node.clone()))
    };
    let (client, other) = (born("early", "client"), born("earlier", "other"));
    let hold = |workload: &Workload| {
        let held = workload.tcp_held(SocketAddr::from((server.address, PORT)), PATIENT);
        let held = held.unwrap();
        assert!(held.first.replied(), "{:?}", held.first);
        held
    };
    let (mut of_client, mut of_other) = (hold(&client), hold(&other));
    assert!(of_client.again().unwrap().replied());
    assert!(of_other.again().unwrap().replied());

    stage.bind("early");
    stage.bind("earlier");
    wait(SLOW, || stage.metric("zt_workloads") == 3.0);
    stage.is_denied(&other, &server);
    assert!(!of_other.again().unwrap().replied());
    // Who may reach it by its own name keeps what it has.
    assert!(of_client.again().unwrap().replied());
}

#[test]
fn an_agent_below_the_root_asks_the_api_server_on_an_enforcing_node() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 35);
    let uid = stage.host_object("zt-agent", "other");
    let pod = stage.cgroup(&uid, Driver::Systemd);
    stage
        .agent
        .set_cgroup(stage.container(&pod, Driver::Systemd));
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let other = stage.pod("other", "other", Driver::Systemd, 12);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    stage.is_denied(&other.workload, &server);
    // The two pods, and not the agent.
    assert_eq!(stage.metric("zt_workloads"), 2.0);
}
