//! A large cluster: what a node's agent keeps of it, and how soon it knows it.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use zt_tests::cluster::{self, Cluster, Programs};

use crate::stage::{Driver, SLOW, Stage, wait};

const NODES: usize = 99;
const PODS_PER_NODE: usize = 100;
const SERVICES: usize = 1000;
/// Resident, of a debug build.
const MEMORY_KIB: u64 = 96 * 1024;
/// For ten thousand pods, of which each watch tells all, on a machine that builds
/// at the same time.
const START: Duration = Duration::from_secs(60);

#[test]
fn ten_thousand_pods_and_a_thousand_services_take_little_and_are_soon_known() {
    let Some(programs) = Programs::from_environment().unwrap() else {
        // Says so, and fails where nothing may be skipped.
        assert!(cluster::shared().is_none());
        return;
    };
    let cluster = Cluster::start(&programs).unwrap();
    let mut stage = Stage::new(&cluster, 34);
    let text = fs::read_to_string(stage.agent.config()).unwrap();
    let text = text.replace("addresses: 1024, cidrs: 64", "addresses: 32768, cidrs: 256");
    fs::write(stage.agent.config(), text).unwrap();
    let objects = everything(&stage);
    cluster.store(&objects).unwrap();
    for number in 0..PODS_PER_NODE {
        stage.cgroup(&uid(b'a', number), Driver::Systemd);
    }

    let started = Instant::now();
    stage.agent.launch().unwrap();
    let rows = NODES * PODS_PER_NODE + PODS_PER_NODE + SERVICES;
    let limit = zt_tests::patience::scaled(START);
    while !stage.agent.readiness().is_ok_and(|(code, _)| code == 200) {
        assert!(started.elapsed() < limit, "{}", stage.agent.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let ready = started.elapsed();
    assert!(stage.view().tables.address.len() >= rows);
    assert_eq!(stage.metric("zt_workloads"), PODS_PER_NODE as f64);

    // One more, far away.
    let address = "10.100.7.250".parse().unwrap();
    stage.object("one-more", "client", "far-7");
    let told = Instant::now();
    stage.report("one-more", "Running", address);
    wait(SLOW, || {
        let view = stage.view();
        let key = zt_common::address::AddressKey {
            ip: zt_common::address::mapped([10, 100, 7, 250]),
            ..Default::default()
        };
        view.tables.address.contains_key(&key)
    });
    let pid = stage.agent.pid().unwrap();
    let (now, most) = (kib(pid, "VmRSS:"), kib(pid, "VmHWM:"));
    println!(
        "{} pods, {SERVICES} Services: ready after {} ms, one more pod in the maps after {} ms; {now} KiB resident, {most} KiB at most",
        (NODES + 1) * PODS_PER_NODE,
        ready.as_millis(),
        told.elapsed().as_millis(),
    );
    assert!(most < MEMORY_KIB, "{most} KiB");
}

fn kib(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    let number = line.split_ascii_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

fn uid(kind: u8, number: usize) -> String {
    format!("000000{kind:02x}-0000-4000-8000-{number:012x}")
}

/// As the API server stores them, with what a kubelet's pods really have beside
/// what the agent keeps.
fn everything(stage: &Stage<'_>) -> Vec<(String, Value)> {
    let namespace = &stage.namespace;
    let mut all = Vec::new();
    let subnet = stage.network.ipv4(0).octets()[2];
    for number in 0..PODS_PER_NODE {
        let address = format!("10.89.{subnet}.{}", number + 10);
        all.push(pod(
            namespace,
            &uid(b'a', number),
            number,
            &stage.node,
            &address,
        ));
    }
    for node in 0..NODES {
        let name = format!("far-{node}");
        let range = format!("10.100.{node}.0/24");
        all.push((
            format!("minions/{name}"),
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": meta(None, &name, &uid(b'n', node)),
                "spec": {"podCIDR": range, "podCIDRs": [range]},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": format!("192.0.2.{}", node + 10)}
                ]},
            }),
        ));
        for number in 0..PODS_PER_NODE {
            let at = node * PODS_PER_NODE + number;
            let address = format!("10.100.{node}.{}", number + 10);
            all.push(pod(namespace, &uid(b'p', at), at, &name, &address));
        }
    }
    for number in 0..SERVICES {
        all.extend(service(namespace, number));
    }
    all
}

fn meta(namespace: Option<&str>, name: &str, uid: &str) -> Value {
    let mut meta = json!({
        "name": name, "uid": uid, "creationTimestamp": "2026-11-21T00:00:00Z",
        "labels": {"app": name, "team": "of-many"},
        "annotations": {"what": "x".repeat(500)},
    });
    if let Some(namespace) = namespace {
        meta["namespace"] = namespace.into();
    }
    meta
}

fn pod(namespace: &str, uid: &str, number: usize, node: &str, address: &str) -> (String, Value) {
    let name = format!("pod-{node}-{number}");
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": meta(Some(namespace), &name, uid),
        "spec": {
            // Two hundred service accounts.
            "serviceAccountName": format!("account-{}", number % 200), "nodeName": node,
            "containers": [{
                "name": "main", "image": "none",
                "env": (0..20).map(|at| json!({"name": format!("V{at}"), "value": "x".repeat(40)})).collect::<Vec<_>>(),
            }],
        },
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    });
    (format!("pods/{namespace}/{name}"), object)
}

/// With ten backends, all of one service account.
fn service(namespace: &str, number: usize) -> [(String, Value); 2] {
    let name = format!("service-{number}");
    let address = format!("10.96.{}.{}", 100 + number / 250, 1 + number % 250);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": meta(Some(namespace), &name, &uid(b's', number)),
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "main", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
    });
    let backends: Vec<Value> = (0..10)
        .map(|at| {
            let at = number % 200 + at * 200;
            let (node, pod) = (at / PODS_PER_NODE, at % PODS_PER_NODE);
            json!({"addresses": [format!("10.100.{node}.{}", pod + 10)], "conditions": {"ready": true}})
        })
        .collect();
    let mut meta_of_slice = meta(Some(namespace), &name, &uid(b'e', number));
    meta_of_slice["labels"]["kubernetes.io/service-name"] = name.clone().into();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": meta_of_slice, "addressType": "IPv4",
        "ports": [{"name": "main", "port": 8080, "protocol": "TCP"}],
        "endpoints": backends,
    });
    [
        (format!("services/specs/{namespace}/{name}"), service),
        (format!("endpointslices/{namespace}/{name}"), slice),
    ]
}
