//! Identities from a real API server: who a pod is, who is at an address, and
//! what stays when the API server goes.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::json;
use zt_common::identity::CONFLICT;
use zt_tests::{
    Workload,
    actor::Actor,
    cluster::{self, Cluster, Programs},
    patience,
};

use crate::stage::{Driver, PATIENT, SLOW, Stage, wait};

#[test]
fn a_pod_is_who_its_service_account_says_with_both_cgroup_drivers() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 21);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let other = stage.pod("other", "other", Driver::Systemd, 12);
    let mut serving = stage.serve(&server);
    for pod in [&client, &other] {
        stage.passes(&pod.workload, &server);
    }
    stage.agent.start().unwrap();
    let before = serving.received().unwrap().len();
    stage.passes(&client.workload, &server);
    stage.is_denied(&other.workload, &server);
    let heard = serving.received().unwrap().split_off(before);
    let from = |address: std::net::Ipv4Addr| {
        heard
            .iter()
            .any(|line| line.contains(&format!("{address}:")))
    };
    assert!(from(client.address) && !from(other.address), "{heard:?}");

    let status = stage.agent.ask(&["status", "-o", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status.output).unwrap();
    assert_eq!(status["coverage"], "complete", "{status:#}");
    wait(SLOW, || stage.metric("zt_workloads") == 3.0);

    // Known to nobody: not enrolled, and so refused.
    let stranger_uid = "00000000-1111-4222-8333-444455556666";
    let cgroup = stage.cgroup(stranger_uid, Driver::Cgroupfs);
    let stranger = Workload::new(
        "stranger",
        stage.container(&cgroup, Driver::Cgroupfs),
        Some(stage.network.join("stranger", 19).unwrap()),
    );
    stage.is_denied(&stranger, &server);
    wait(SLOW, || {
        let status = stage.agent.ask(&["status", "-o", "json"]).unwrap();
        status.output.contains(stranger_uid)
    });
}

#[test]
fn a_young_pod_has_the_address_it_was_given_and_nobody_elses() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 36);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    let client = stage.young("client", "client", Driver::Systemd, 11);
    stage.until(&client.workload, &server, true);
    let number = stage.number("client");
    assert!(number.is_some() && stage.who_is_at(client.address) == number);

    // Whoever gives himself what another one has.
    let thief = stage.young("thief", "client", Driver::Cgroupfs, 12);
    stage.until(&thief.workload, &server, true);
    let inside = thief.workload.netns().unwrap();
    let taken = format!("{}/24", client.address);
    for command in [
        &["address", "flush", "dev", "eth0", "scope", "global"][..],
        &["address", "add", &taken, "dev", "eth0"],
    ] {
        inside.ip(command).unwrap();
    }
    stage.report("client", "Running", client.address);
    stage.until(&thief.workload, &server, false);
    wait(SLOW, || stage.who_is_at(client.address) == number);
    stage.until(&client.workload, &server, true);
}

#[test]
fn a_remote_address_is_its_pods_alone_and_the_next_pod_inherits_nothing() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 22);
    let server = stage.pod("server", "server", Driver::Cgroupfs, 10);
    let _serving = stage.serve(&server);
    let far = stage.far("far", 200);
    let (address, there) = (stage.network.ipv4(200), stage.other_node());
    stage.passes(&far, &server);
    stage.agent.start().unwrap();
    // In the other node's range, and nobody's.
    stage.is_denied(&far, &server);
    let be = |name: &str, account: &str| {
        stage.object(name, account, &there);
        stage.report(name, "Running", address);
    };
    be("first", "client");
    stage.until(&far, &server, true);

    stage.delete("first");
    stage.until(&far, &server, false);
    be("second", "other");
    wait(SLOW, || {
        let found = stage.who_is_at(address);
        found.is_some() && found == stage.number("other")
    });
    stage.is_denied(&far, &server);

    // The next is there before the last has gone: whose it is nobody knows.
    be("third", "client");
    wait(SLOW, || stage.who_is_at(address) == Some(CONFLICT));
    stage.is_denied(&far, &server);
    stage.delete("second");
    stage.until(&far, &server, true);

    // Its end is told before its object goes.
    stage.report("third", "Succeeded", address);
    stage.until(&far, &server, false);
    be("fourth", "client");
    stage.until(&far, &server, true);

    // A claim of this node's range by a pod of the other.
    let thief = stage.far("thief", 201);
    stage.object("thief", "client", &there);
    stage.report("thief", "Running", stage.network.ipv4(77));
    wait(SLOW, || stage.metric("zt_claims_refused") > 0.0);
    stage.is_denied(&thief, &server);
}

#[test]
fn a_pod_is_not_the_worlds_when_its_node_is_deleted() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 71);
    stage.write_policy("world", "{reserved: world}");
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let _serving = stage.serve(&server);
    let (far, outside) = (stage.far("far", 200), stage.far("outside", 201));
    stage.object("far", "other", &stage.other_node());
    stage.report("far", "Running", stage.network.ipv4(200));
    stage.agent.start().unwrap();
    stage.is_denied(&far, &server);
    stage.is_denied(&outside, &server);
    // Its range goes with it.
    stage.kubectl(&["delete", "node", &stage.other_node()]);
    stage.until(&outside, &server, true);
    stage.is_denied(&far, &server);
    let [complaint] = &stage.complaints()[..] else {
        panic!("{:?}", stage.complaints())
    };
    assert!(complaint.contains("its node is not known"), "{complaint}");
}

#[test]
fn an_interface_is_its_pods_wherever_the_pods_processes_are() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 72);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let mut client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    let is_known = |stage: &Stage<'_>| stage.view().tables.interface.len() == 2;
    wait(SLOW, || is_known(&stage));

    // Nobody else's namespaces push the pod's own out of sight.
    let many = "for i in $(seq 40); do unshare --net sleep 600 & done; echo done; wait";
    let others = client.workload.start(Command::new("sh").args(["-c", many]));
    let others = others.unwrap();
    others.wait_for(PATIENT, |line| line == "done").unwrap();
    stays(&stage, is_known);
    stage.agent.kill().unwrap();
    stage.agent.start().unwrap();
    wait(SLOW, || is_known(&stage));
    stays(&stage, is_known);

    // The one that started them is in the pod's own, too.
    drop(others);
    client.hide(stage.sandbox.netns("elsewhere").unwrap());
    stays(&stage, is_known);
    stage
        .network
        .bridge()
        .ip(&["link", "delete", "p11"])
        .unwrap();
    wait(SLOW, || stage.view().tables.interface.len() == 1);
}

/// For some looks of the agent.
fn stays(stage: &Stage<'_>, what: impl Fn(&Stage<'_>) -> bool) {
    for _ in 0..30 {
        assert!(what(stage));
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_pod_that_runs_outside_the_root_is_said_to_be_ungoverned() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 73);
    stage.object("lost", "client", &stage.node);
    stage.report("lost", "Running", stage.network.ipv4(11));
    stage.agent.start().unwrap();
    let is_said = |stage: &Stage<'_>| {
        let (code, text) = stage.readiness();
        code == 503 && text.contains("cgroupRoot")
    };
    assert!(!is_said(&stage), "it may be about to get one");
    wait(SLOW * 3, || is_said(&stage));
    stage.delete("lost");
    wait(SLOW, || stage.readiness().0 == 200);
}

#[test]
fn a_local_address_goes_with_its_pod() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 23);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    let client = stage.pod("client", "client", Driver::Systemd, 11);
    stage.until(&client.workload, &server, true);

    // Torn down, and its object is still there.
    stage.tear_down(client);
    let heir = stage.pod("heir", "other", Driver::Cgroupfs, 11);
    let id = heir.cgroup.id().unwrap();
    wait(SLOW, || {
        let view = stage.view();
        view.tables.interface.values().any(|row| row.cgroup == id)
    });
    stage.is_denied(&heir.workload, &server);
    let waits = || {
        let status = stage.agent.ask(&["status", "-o", "json"]).unwrap();
        status
            .output
            .contains(&format!("{}/client:", stage.namespace))
    };
    wait(SLOW, waits);
    stage.delete("client");
    wait(SLOW, || !waits());
    stage.is_denied(&heir.workload, &server);
    stage.tear_down(heir);
    stage.delete("heir");

    let again = stage.pod("again", "client", Driver::Cgroupfs, 11);
    stage.until(&again.workload, &server, true);
    // A deleted pod leaves no entry.
    wait(SLOW, || stage.metric("zt_workloads") == 2.0);
    // Row 0 is for those whom nobody enrolled.
    assert_eq!(stage.view().tables.workload.len(), 3);
}

#[test]
fn a_pod_on_the_hosts_network_is_told_apart_by_its_cgroup_and_owns_no_address() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 24);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let _serving = stage.serve(&server);
    stage
        .network
        .bridge()
        .ip(&["address", "add", "10.89.24.1/24", "dev", "br0"])
        .unwrap();
    stage.create(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "host", "namespace": stage.namespace},
        "spec": {
            "serviceAccountName": "client", "nodeName": stage.node, "hostNetwork": true,
            "containers": [{"name": "main", "image": "none"}],
        },
    }));
    let uid = stage.kubectl(&["get", "pod", "host", "-o=jsonpath={.metadata.uid}"]);
    let cgroup = stage.cgroup(&uid, Driver::Cgroupfs);
    let container = stage.container(&cgroup, Driver::Cgroupfs);
    let host = Workload::sharing("host", container, Some(stage.network.bridge().clone()));
    let _pause = Actor::member(&host);
    stage.report("host", "Running", stage.network.ipv4(1));
    stage.agent.start().unwrap();
    wait(SLOW, || stage.metric("zt_workloads") == 2.0);
    let status = stage.agent.ask(&["status", "-o", "json"]).unwrap();
    assert!(
        status.output.contains("is on the host's network"),
        "{}",
        status.output
    );
    let view = stage.view();
    let claimed = view
        .tables
        .address
        .values()
        .filter(|peer| peer.cgroup == cgroup.id().unwrap());
    assert_eq!(claimed.count(), 0);
    assert_eq!(stage.complaints(), [""; 0]);
}

#[test]
fn a_namespace_says_the_mode_of_its_pods() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 25);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let other = stage.pod("other", "other", Driver::Systemd, 12);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    stage.is_denied(&other.workload, &server);
    let annotate = |text: &str| {
        let namespace = stage.namespace.clone();
        stage.kubectl(&["annotate", "--overwrite", "namespace", &namespace, text]);
    };
    annotate("zt.hanzo.ai/mode=audit");
    stage.until(&other.workload, &server, true);
    // Its owner may say what he likes.
    stage.kubectl(&["annotate", "pod", "other", "zt.hanzo.ai/mode=audit"]);
    annotate("zt.hanzo.ai/mode=enforce");
    stage.until(&other.workload, &server, false);
}

#[test]
fn the_api_server_may_go_and_come_back_and_nothing_is_flushed() {
    // The shared one must not go away under the others.
    if cluster::shared().is_none() {
        return;
    }
    let programs = Programs::from_environment().unwrap().unwrap();
    let cluster = Cluster::start(&programs).unwrap();
    let mut stage = Stage::new(&cluster, 26);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let other = stage.pod("other", "other", Driver::Systemd, 12);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    stage.until(&client.workload, &server, true);
    let generation = stage.metric("zt_generation");

    cluster.kill_api_server().unwrap();
    let started = Instant::now();
    wait(SLOW * 2, || {
        stage.passes(&client.workload, &server);
        stage.is_denied(&other.workload, &server);
        let (code, text) = stage.readiness();
        code == 503 && text.contains("stale")
    });
    eprintln!("stale is said after {:?}", started.elapsed());
    assert_eq!(stage.metric("zt_generation"), generation, "nothing changed");

    // A new agent knows nobody, and keeps what the last one knew.
    stage.agent.kill().unwrap();
    stage.agent.launch().unwrap();
    wait(SLOW, || {
        let answer = stage.agent.readiness();
        answer.is_ok_and(|(code, text)| code == 503 && text.contains("has not said yet"))
    });
    stage.passes(&client.workload, &server);
    stage.is_denied(&other.workload, &server);
    assert_eq!(stage.view().tables.workload.len(), 4);

    cluster.start_api_server().unwrap();
    wait(SLOW * 2, || stage.readiness().0 == 200);
    stage.passes(&client.workload, &server);
    let late = stage.pod("late", "client", Driver::Cgroupfs, 13);
    stage.until(&late.workload, &server, true);

    // Stopped in good order while the watches stand, and back: they go on.
    cluster.stop_api_server().unwrap();
    stage.passes(&client.workload, &server);
    cluster.start_api_server().unwrap();
    let later = stage.pod("later", "client", Driver::Systemd, 14);
    stage.until(&later.workload, &server, true);
    stage.is_denied(&other.workload, &server);
    // What is in force may pass before the metric says so.
    wait(SLOW, || stage.metric("zt_workloads") == 5.0);
}

#[test]
fn a_first_start_without_an_api_server_enrols_nobody_and_enforces() {
    if cluster::shared().is_none() {
        return;
    }
    let programs = Programs::from_environment().unwrap().unwrap();
    let cluster = Cluster::start(&programs).unwrap();
    let mut stage = Stage::new(&cluster, 27);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let _serving = stage.serve(&server);
    stage.passes(&client.workload, &server);
    cluster.stop_api_server().unwrap();
    stage.agent.launch().unwrap();
    stage.until(&client.workload, &server, false);
    let (code, text) = stage.readiness();
    assert!(code == 503 && text.contains("not listed"), "{text}");
    cluster.start_api_server().unwrap();
    stage.until(&client.workload, &server, true);
    wait(SLOW * 2, || stage.readiness().0 == 200);
}

/// What the files said last goes on to count, and the cluster is followed.
#[test]
fn a_start_with_a_policy_file_that_has_errors_follows_the_cluster() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 29);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    stage.until(&client.workload, &server, true);
    stage.agent.kill().unwrap();
    let policy = stage.sandbox.directory().join("policies/core.yaml");
    std::fs::write(&policy, "nonsense\n").unwrap();
    stage.agent.launch().unwrap();
    wait(SLOW, || {
        let answer = stage.agent.readiness();
        answer.is_ok_and(|(code, text)| code == 503 && text.contains("core.yaml"))
    });
    stage.passes(&client.workload, &server);
    let late = stage.pod("late", "client", Driver::Cgroupfs, 12);
    stage.until(&late.workload, &server, true);
    stage.tear_down(client);
    stage.delete("client");
    wait(SLOW, || stage.metric("zt_workloads") == 2.0);
}

#[test]
fn a_pod_is_enrolled_soon_after_its_cgroup_is_made() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    const PODS: u8 = 10;
    let mut stage = Stage::new(cluster, 28);
    let uids: Vec<String> = (0..PODS)
        .map(|number| {
            let name = format!("pod{number}");
            let uid = stage.object(&name, "client", &stage.node);
            stage.report(&name, "Pending", stage.network.ipv4(100 + number));
            uid
        })
        .collect();
    stage.agent.start().unwrap();
    let (mut enrolled, mut covered) = (Vec::new(), Vec::new());
    for (number, uid) in (0u8..).zip(&uids) {
        let driver = if number % 2 == 0 {
            Driver::Systemd
        } else {
            Driver::Cgroupfs
        };
        let netns = stage
            .network
            .join(&format!("n{number}"), 100 + number)
            .unwrap();
        let start = Instant::now();
        let cgroup = stage.cgroup(uid, driver);
        let id = cgroup.id().unwrap();
        wait(PATIENT, || stage.view().tables.workload.contains_key(&id));
        enrolled.push(start.elapsed());

        let workload = Workload::new("c", stage.container(&cgroup, driver), Some(netns));
        let before = Instant::now();
        let _pause = Actor::member(&workload);
        let is_there = || {
            let view = stage.view();
            view.tables.interface.values().any(|row| row.cgroup == id)
        };
        wait(PATIENT, is_there);
        covered.push(before.elapsed());
    }
    for (what, mut delays) in [
        ("cgroup made → enrolled", enrolled),
        ("process started → interface known", covered),
    ] {
        delays.sort_unstable();
        let (median, worst) = (delays[delays.len() / 2], delays[delays.len() - 1]);
        eprintln!(
            "{what}: median {median:?}, worst {worst:?} of {}",
            delays.len()
        );
        assert!(
            median < patience::scaled(Duration::from_millis(900)),
            "only the poll saw it"
        );
    }
}
