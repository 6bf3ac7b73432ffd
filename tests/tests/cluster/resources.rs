//! Policies that are resources of a real API server, from `kubectl apply` to the
//! packet and back to the resource's status.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zt_agent::resource;
use zt_tests::{
    agent,
    cluster::{self, Cluster, Programs},
    patience,
};

use crate::stage::{Driver, PORT, SLOW, Stage, wait};

/// A cluster of one's own: policies are nobody's alone in it.
fn own_cluster() -> Option<Cluster> {
    let Some(programs) = Programs::from_environment().unwrap() else {
        // It says why the test is skipped.
        let none = cluster::shared();
        assert!(none.is_none(), "there are programs after all");
        return None;
    };
    Some(Cluster::start(&programs).unwrap())
}

fn define(cluster: &Cluster) {
    cluster.apply(&resource::manifest()).unwrap().ok().unwrap();
    let ready = || cluster.kubectl(&["get", "sap,idg"]).unwrap().succeeded;
    wait(SLOW, ready);
}

/// Lets a service account reach the server at these ports.
fn policy(stage: &Stage<'_>, name: &str, from: &str, ports: &Value) -> String {
    let id = |account| format!("spiffe://t/c/{}/{account}", stage.namespace);
    let target = json!({"spiffe": id("server"), "ports": ports});
    json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy",
        "metadata": {"name": name},
        "spec": {"rules": [{"from": {"spiffe": id(from)}, "to": [target]}]},
    })
    .to_string()
}

fn apply(stage: &Stage<'_>, text: &str) {
    stage.cluster.apply(text).unwrap().ok().unwrap();
}

/// What the stage's node says in a policy's status.
fn said(stage: &Stage<'_>, name: &str) -> Value {
    let object: Value =
        serde_json::from_str(&stage.kubectl(&["get", "sap", name, "-o=json"])).unwrap();
    let nodes = object["status"]["nodes"].as_array().cloned();
    let own = |entry: &Value| entry["node"] == stage.node.as_str();
    nodes.into_iter().flatten().find(own).unwrap_or_default()
}

/// What `kubectl get sap` shows of a policy in these columns.
fn shown<const N: usize>(stage: &Stage<'_>, name: &str, columns: [&str; N]) -> [String; N] {
    let all = stage.kubectl(&["get", "sap", name]);
    let (head, line) = all.split_once('\n').unwrap();
    columns.map(|column| {
        let start = head.find(column).unwrap();
        let rest = &head[start..];
        let end = rest.find("   ").map_or(rest.len(), |end| {
            end + rest[end..].bytes().take_while(|byte| *byte == b' ').count()
        });
        let end = if end == rest.len() {
            line.len()
        } else {
            start + end
        };
        line.get(start..end).unwrap_or_default().trim().to_owned()
    })
}

/// Says what another node's agent would, in its way.
fn say_as(stage: &Stage<'_>, node: &str, policy: &str, generation: i64) {
    let entry = json!({
        "node": node, "generation": generation, "enforced": true, "since": "2026-11-21T00:00:00Z",
    });
    let object = json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy",
        "metadata": {"name": policy}, "status": {"nodes": [entry]},
    });
    let manager = format!("zt-agent-{node}");
    let applied = stage.cluster.apply_status(&manager, &object.to_string());
    applied.unwrap();
}

#[test]
fn kubectl_tells_on_how_many_nodes_a_policy_is_enforced_and_why_not() {
    let Some(cluster) = own_cluster() else {
        return;
    };
    define(&cluster);
    let mut stage = Stage::new(&cluster, 44);
    stage.follow_policies();
    stage.without_files();
    // It needs no workloads.
    stage.agent.launch().unwrap();
    wait(SLOW, || {
        stage.agent.readiness().is_ok_and(|(code, _)| code == 200)
    });
    apply(&stage, &policy(&stage, "core", "client", &json!([PORT])));
    let is = |name: &str, enforced: &str, why: &str| {
        wait(SLOW * 2, || {
            let [is, reason] = shown(&stage, name, ["ENFORCED", "WHY"]);
            is == enforced && reason.starts_with(why) && reason.is_empty() == why.is_empty()
        });
        eprintln!("{}", stage.kubectl(&["get", "sap"]));
    };
    is("core", "1/1", "");
    assert_eq!(shown(&stage, "core", ["RULES"]), ["1"]);

    // A node whose agent is behind, and then is not.
    let there = stage.other_node();
    say_as(&stage, &there, "core", 0);
    is(
        "core",
        "1/2",
        &format!("{there}: generation 1 is not in force yet"),
    );
    say_as(&stage, &there, "core", 1);
    is("core", "2/2", "");

    // A node that never was, and one that goes.
    say_as(&stage, "nowhere", "core", 1);
    stage.kubectl(&["delete", "node", &there]);
    is("core", "1/1", "");
    let object: Value =
        serde_json::from_str(&stage.kubectl(&["get", "sap", "core", "-o=json"])).unwrap();
    assert_eq!(object["status"]["nodes"].as_array().unwrap().len(), 1);
    assert_eq!(said(&stage, "core")["enforced"], true);

    apply(
        &stage,
        &policy(&stage, "bad", "other", &json!(["8090-8080"])),
    );
    let field = "spec.rules[1].to[1].ports[1]";
    is("bad", "0/1", &format!("{}: {field}", stage.node));
    is("core", "1/1", "");

    // This node goes and comes back: another agent takes its entry away.
    let node = stage.kubectl(&["get", "node", &stage.node, "-o=json"]);
    stage.kubectl(&["delete", "node", &stage.node]);
    let none = json!({"status": {"nodes": [], "enforced": "0/0"}}).to_string();
    stage.kubectl(&[
        "patch",
        "sap",
        "core",
        "--subresource=status",
        "--type=merge",
        "-p",
        &none,
    ]);
    let mut node: Value = serde_json::from_str(&node).unwrap();
    let metadata = node["metadata"].as_object_mut().unwrap();
    metadata.retain(|field, _| field == "name");
    stage.create(&node);
    is("core", "1/1", "");
}

fn status(stage: &Stage<'_>) -> Value {
    let answer = stage.agent.ask(&["status", "-o", "json"]).unwrap();
    serde_json::from_str(&answer.output).unwrap()
}

fn is_refused(stage: &Stage<'_>, labels: &[&str]) -> bool {
    let metrics = stage.agent.metrics().unwrap();
    agent::sample(&metrics, "zt_policy_refused", labels) == Some(1.0)
}

#[test]
fn a_policy_decides_from_apply_to_delete_and_a_bad_edit_changes_nothing() {
    let Some(cluster) = own_cluster() else {
        return;
    };
    define(&cluster);
    let mut stage = Stage::new(&cluster, 41);
    stage.follow_policies();
    stage.without_files();
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let other = stage.pod("other", "other", Driver::Systemd, 12);
    let mut serving = stage.serve(&server);
    for pod in [&client, &other] {
        stage.passes(&pod.workload, &server);
    }
    stage.agent.start().unwrap();
    wait(SLOW, || stage.readiness().0 == 200);
    stage.is_denied(&client.workload, &server);
    stage.is_denied(&other.workload, &server);

    apply(&stage, &policy(&stage, "core", "client", &json!([PORT])));
    let applied = Instant::now();
    stage.until(&client.workload, &server, true);
    let delay = applied.elapsed();
    eprintln!("kubectl apply → first success: {delay:?}");
    assert!(
        delay < patience::scaled(Duration::from_secs(1)),
        "{delay:?}"
    );
    let before = serving.received().unwrap().len();
    stage.passes(&client.workload, &server);
    stage.is_denied(&other.workload, &server);
    let heard = serving.received().unwrap().split_off(before);
    let from = |address: std::net::Ipv4Addr| {
        let sender = format!("{address}:");
        heard.iter().any(|line| line.contains(&sender))
    };
    assert!(from(client.address) && !from(other.address), "{heard:?}");
    wait(SLOW, || said(&stage, "core")["enforced"] == true);
    assert_eq!(said(&stage, "core")["generation"], 1);

    // A mistake that no schema sees, and a neighbour that is new.
    apply(
        &stage,
        &policy(&stage, "core", "client", &json!(["8090-8080"])),
    );
    apply(&stage, &policy(&stage, "extra", "other", &json!([PORT])));
    stage.until(&other.workload, &server, true);
    stage.passes(&client.workload, &server);
    wait(SLOW, || said(&stage, "core")["reason"] != Value::Null);
    let entry = said(&stage, "core");
    eprintln!("{entry}");
    assert_eq!(
        (&entry["generation"], &entry["enforced"]),
        (&json!(1), &json!(true))
    );
    let field = "spec.rules[1].to[1].ports[1]";
    assert!(
        entry["reason"].as_str().unwrap().starts_with(field),
        "{entry}"
    );
    wait(SLOW, || said(&stage, "extra")["enforced"] == true);
    assert_eq!(said(&stage, "extra")["reason"], Value::Null);
    eprintln!("{}", stage.kubectl(&["get", "sap"]));
    let refusal = ["resource=\"serviceaccesspolicy/core\"", field];
    assert!(is_refused(&stage, &refusal));
    assert_eq!(stage.metric("zt_policy_failed"), 1.0);
    let told = stage.agent.ask(&["status"]).unwrap().output;
    let is_told =
        |line: &str| line.contains("serviceaccesspolicy/core is refused") && line.contains(field);
    assert!(told.lines().any(is_told), "{told}");

    // Only what is deleted goes.
    stage.kubectl(&["delete", "sap", "extra"]);
    stage.until(&other.workload, &server, false);
    stage.passes(&client.workload, &server);

    // The API server has only the bad version: the good one is on the disk.
    stage.agent.kill().unwrap();
    stage.agent.launch().unwrap();
    wait(SLOW, || {
        stage.agent.readiness().is_ok_and(|(code, _)| code == 200)
    });
    wait(SLOW, || is_refused(&stage, &refusal));
    stage.passes(&client.workload, &server);
    stage.is_denied(&other.workload, &server);
    assert_eq!(stage.metric("zt_cluster_policies"), 1.0);
    assert_eq!(
        said(&stage, "core")["since"],
        entry["since"],
        "nothing new was written"
    );

    without_the_api_server(&mut stage, &client.workload, &server);
    wait(SLOW * 2, || stage.readiness().0 == 200);
    stage.until(&client.workload, &server, true);
    stage.kubectl(&["delete", "sap", "core"]);
    stage.until(&client.workload, &server, false);
    wait(SLOW, || stage.metric("zt_policy_failed") == 0.0);
    assert_eq!(stage.metric("zt_cluster_policies"), 0.0);
}

/// What a watch from there on is answered.
fn watch(stage: &Stage<'_>, path: &str, version: &str) -> String {
    let watch = format!("--raw={path}?watch=1&timeoutSeconds=1&resourceVersion={version}");
    let answer = stage.cluster.kubectl(&["get", &watch]).unwrap();
    answer.output + &answer.errors
}

#[test]
fn changes_that_the_api_server_has_forgotten_are_listed_and_nothing_is_flushed() {
    let Some(cluster) = own_cluster() else {
        return;
    };
    define(&cluster);
    let mut stage = Stage::new(&cluster, 45);
    stage.follow_policies();
    stage.without_files();
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let other = stage.pod("other", "other", Driver::Systemd, 12);
    let far = stage.far("far", 200);
    let far_address = stage.network.ipv4(200);
    stage.object("far", "client", &stage.other_node());
    stage.report("far", "Running", far_address);
    let _serving = stage.serve(&server);
    apply(&stage, &policy(&stage, "core", "client", &json!([PORT])));
    apply(&stage, &policy(&stage, "extra", "other", &json!([PORT])));
    stage.agent.start().unwrap();
    for from in [&client.workload, &other.workload, &far] {
        stage.until(from, &server, true);
    }
    wait(SLOW, || stage.readiness().0 == 200);
    let paths = ["/api/v1/pods", "/apis/zt.hanzo.ai/v1/serviceaccesspolicies"];
    let version = |path: &str| {
        let list = stage
            .cluster
            .kubectl(&["get", &format!("--raw={path}")])
            .unwrap();
        let list: Value = serde_json::from_str(&list.ok().unwrap()).unwrap();
        list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let versions = paths.map(version);

    // While nobody tells the agent a policy goes, and a pod with its address.
    stage.cut_off();
    stage.kubectl(&["delete", "sap", "extra"]);
    stage.delete("far");
    stage.passes(&other.workload, &server);
    cluster.forget_the_past().unwrap();
    cluster.kill_api_server().unwrap();
    cluster.start_api_server().unwrap();
    for (path, version) in paths.iter().zip(&versions) {
        let answer = watch(&stage, path, version);
        assert!(
            answer.contains("too old resource version"),
            "{path}: {answer}"
        );
    }

    stage.reconnect();
    let is_whole = || {
        stage.passes(&client.workload, &server);
        assert_eq!(stage.metric("zt_workloads"), 3.0);
        assert!(stage.metric("zt_cluster_policies") >= 1.0);
    };
    for from in [&other.workload, &far] {
        wait(SLOW * 2, || {
            is_whole();
            !stage.connect(from, &server).connected
        });
    }
    wait(SLOW * 2, || {
        is_whole();
        stage.readiness().0 == 200
    });
    assert_eq!(stage.metric("zt_cluster_policies"), 1.0);
    let log = stage.agent.log();
    assert!(log.contains("too old resource version"), "{log}");
    // And it goes on from there.
    apply(&stage, &policy(&stage, "again", "other", &json!([PORT])));
    stage.until(&other.workload, &server, true);
}

/// An agent that starts while it is away keeps what is in force, and after a
/// reboot it has what was accepted last.
fn without_the_api_server(
    stage: &mut Stage<'_>,
    client: &zt_tests::Workload,
    server: &crate::stage::Pod,
) {
    stage.cluster.kill_api_server().unwrap();
    stage.agent.kill().unwrap();
    stage.agent.launch().unwrap();
    wait(SLOW, || {
        let answer = stage.agent.readiness();
        answer.is_ok_and(|(code, text)| code == 503 && text.contains("has not said yet"))
    });
    stage.passes(client, server);

    stage.agent.kill().unwrap();
    let removed = stage.agent.ask(&["cleanup"]).unwrap();
    assert!(!stage.pins().join("maps").exists(), "{removed:?}");
    stage.agent.launch().unwrap();
    wait(SLOW, || {
        stage.agent.readiness().is_ok_and(|(code, _)| code == 503)
    });
    wait(SLOW, || stage.metric("zt_cluster_policies") == 1.0);
    let why = status(stage)["agent"]["cluster"]["policies_unknown"].clone();
    assert!(
        why.as_str().is_some_and(|why| why.contains("not listed")),
        "{why}"
    );
    stage.cluster.start_api_server().unwrap();
}

/// A deny may be among what was not listed.
#[test]
fn at_a_first_start_nobody_is_enrolled_before_the_policies_are_listed() {
    let Some(cluster) = own_cluster() else {
        return;
    };
    define(&cluster);
    let mut stage = Stage::new(&cluster, 43);
    stage.follow_policies();
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let _serving = stage.serve(&server);
    let allows = policy(&stage, "no", "client", &json!([PORT]));
    apply(
        &stage,
        &allows.replace("\"from\"", "\"action\":\"deny\",\"from\""),
    );
    // Groups cannot be listed, and so nobody knows what the policies mean.
    stage.kubectl(&["delete", "crd", "identitygroups.zt.hanzo.ai"]);
    stage.agent.launch().unwrap();
    let unready = |word: &str| {
        let answer = stage.agent.readiness();
        answer.is_ok_and(|(code, text)| code == 503 && text.contains(word))
    };
    wait(SLOW, || {
        unready("which policies there are; until then nobody")
    });
    for _ in 0..5 {
        stage.is_denied(&client.workload, &server);
    }
    assert_eq!(stage.metric("zt_workloads"), 0.0);
    define(&cluster);
    wait(SLOW * 2, || stage.readiness().0 == 200);
    stage.is_denied(&client.workload, &server);
    assert_eq!(stage.metric("zt_workloads"), 2.0);
    stage.kubectl(&["delete", "sap", "no"]);
    stage.until(&client.workload, &server, true);
}

#[test]
fn without_definitions_files_count_and_policies_do_as_soon_as_they_are_defined() {
    let Some(cluster) = own_cluster() else {
        return;
    };
    let mut stage = Stage::new(&cluster, 42);
    stage.follow_policies();
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let other = stage.pod("other", "other", Driver::Systemd, 12);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    stage.until(&client.workload, &server, true);
    stage.is_denied(&other.workload, &server);
    wait(SLOW, || stage.readiness().0 == 200);
    let why = || status(&stage)["agent"]["cluster"]["policies_unknown"].to_string();
    wait(SLOW, || {
        why().contains("does not know ServiceAccessPolicy and IdentityGroup")
    });

    define(&cluster);
    apply(&stage, &policy(&stage, "more", "other", &json!([PORT])));
    stage.until(&other.workload, &server, true);
    wait(SLOW, || why() == "null");
    stage.passes(&client.workload, &server);

    // The file's name: one of the two cannot count.
    apply(&stage, &policy(&stage, "core", "other", &json!("any")));
    wait(SLOW, || {
        let reason = said(&stage, "core")["reason"].clone();
        reason
            .as_str()
            .is_some_and(|why| why.starts_with("metadata.name"))
    });
    stage.passes(&client.workload, &server);

    // The definitions go, and with them their objects.
    stage.kubectl(&["delete", "crd", "serviceaccesspolicies.zt.hanzo.ai"]);
    stage.until(&other.workload, &server, false);
    stage.passes(&client.workload, &server);
}
