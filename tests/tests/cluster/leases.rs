//! The Leases by which nodes say that they enforce everything: whom the manifests
//! let write which.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use zt_tests::cluster::{Answer, Cluster};
use zt_tests::patience;

use crate::definitions::with_definitions;
use crate::deploy::{ACCOUNT, apply, in_turn};

const HOME: &str = "zt-system";
/// How long a policy may take until it counts: the API server watches them.
const ACTIVE: Duration = Duration::from_secs(30);

/// The cluster with what an overlay deploys, of which the policy counts.
#[track_caller]
fn deployed() -> Option<(&'static Cluster, MutexGuard<'static, ()>)> {
    let cluster = with_definitions()?;
    let turn = in_turn();
    apply(cluster, "enforce");
    wait_until_active(cluster);
    Some((cluster, turn))
}

fn wait_until_active(cluster: &Cluster) {
    let deadline = Instant::now() + patience::scaled(ACTIVE);
    let try_only = [ACCOUNT, "--dry-run=server"];
    loop {
        let answer = write(cluster, HOME, "nobodys", &try_only);
        if answer.errors.contains("ValidatingAdmissionPolicy") {
            return;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// An agent on that node, by what its token says.
fn on(node: &str) -> String {
    format!("--as-user-extra=authentication.kubernetes.io/node-name={node}")
}

/// Writes a node's Lease as agents do.
fn write(cluster: &Cluster, namespace: &str, node: &str, who: &[&str]) -> Answer {
    let lease = serde_json::json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": node,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "zt-agent"},
        },
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": 40,
            // Six digits, as the API server wants them.
            "renewTime": format!("{:.6}", jiff::Timestamp::now()),
        },
    });
    let apply = [
        "apply",
        "--server-side",
        "--field-manager=zt-agent",
        "--force-conflicts",
        "-f",
        "-",
    ];
    cluster
        .kubectl_with(&[&apply, who].concat(), &lease.to_string())
        .expect("kubectl runs")
}

#[track_caller]
fn written(answer: &Answer) {
    assert!(answer.succeeded, "{answer:?}");
}

#[track_caller]
fn refused(answer: &Answer, why: &str) {
    assert!(
        !answer.succeeded && answer.errors.contains(why),
        "{answer:?}"
    );
}

fn renewed(cluster: &Cluster, node: &str) -> String {
    let namespace = format!("--namespace={HOME}");
    let time = "-o=jsonpath={.spec.renewTime}";
    let get = ["get", "lease", node, &namespace, time];
    cluster.kubectl(&get).and_then(Answer::ok).unwrap()
}

#[test]
fn an_agent_makes_and_renews_the_lease_of_its_node_and_lists_all_of_them() {
    let Some((cluster, _turn)) = deployed() else {
        return;
    };
    let (on_a, on_b) = (on("renews-a"), on("renews-b"));
    written(&write(cluster, HOME, "renews-a", &[ACCOUNT, &on_a]));
    let before = renewed(cluster, "renews-a");
    written(&write(cluster, HOME, "renews-a", &[ACCOUNT, &on_a]));
    assert_ne!(renewed(cluster, "renews-a"), before);
    written(&write(cluster, HOME, "renews-b", &[ACCOUNT, &on_b]));

    let list = [
        "get",
        "leases",
        "--selector=app.kubernetes.io/managed-by=zt-agent",
        "--namespace=zt-system",
        "-o=name",
    ];
    let list = [&list[..], &[ACCOUNT, &on_a]].concat();
    let listed = cluster.kubectl(&list).and_then(Answer::ok).unwrap();
    for node in ["renews-a", "renews-b"] {
        let name = format!("lease.coordination.k8s.io/{node}");
        assert!(listed.lines().any(|line| line == name), "{listed}");
    }
}

#[test]
fn an_agent_neither_removes_leases_nor_writes_them_in_other_namespaces() {
    let Some((cluster, _turn)) = deployed() else {
        return;
    };
    let here = on("stays");
    written(&write(cluster, HOME, "stays", &[ACCOUNT, &here]));
    let delete = ["delete", "lease", "stays", "--namespace=zt-system"];
    let delete = [&delete[..], &[ACCOUNT, &here]].concat();
    refused(&cluster.kubectl(&delete).unwrap(), "cannot delete resource");
    for namespace in ["default", "kube-node-lease"] {
        let elsewhere = write(cluster, namespace, "stays", &[ACCOUNT, &here]);
        refused(&elsewhere, "cannot patch resource");
    }
}

#[test]
fn an_agent_writes_no_other_nodes_lease_and_is_told_why() {
    let Some((cluster, _turn)) = deployed() else {
        return;
    };
    let (on_a, on_b) = (on("victim-a"), on("victim-b"));
    let why = "only the agent on node victim-b writes its Lease, and this token";
    let of_a = format!("{why} is of node victim-a");
    // Neither one that is not there nor one that is.
    refused(&write(cluster, HOME, "victim-b", &[ACCOUNT, &on_a]), &of_a);
    written(&write(cluster, HOME, "victim-b", &[ACCOUNT, &on_b]));
    let before = renewed(cluster, "victim-b");
    refused(&write(cluster, HOME, "victim-b", &[ACCOUNT, &on_a]), &of_a);
    let nowhere = format!("{why} names no node");
    refused(&write(cluster, HOME, "victim-b", &[ACCOUNT]), &nowhere);
    assert_eq!(renewed(cluster, "victim-b"), before);
}

#[test]
fn nobody_else_is_hindered() {
    let Some((cluster, _turn)) = deployed() else {
        return;
    };
    // A person, another account there, and one of the same name elsewhere: all of
    // them may write what they like.
    written(&write(cluster, HOME, "anybodys", &[]));
    for account in [
        "--as=system:serviceaccount:zt-system:other",
        "--as=system:serviceaccount:default:zt-agent",
        "--as=zt-agent",
    ] {
        let who = [account, "--as-group=system:masters"];
        written(&write(cluster, HOME, "anybodys", &who));
    }
}

/// What the kubelet asks for, for the pod of an agent.
#[test]
fn the_token_of_a_pod_is_good_for_the_lease_of_the_pods_node() {
    let Some((cluster, _turn)) = deployed() else {
        return;
    };
    let pod = "\
apiVersion: v1
kind: Pod
metadata: {name: agent-token, namespace: zt-system}
spec:
  nodeName: token-a
  serviceAccountName: zt-agent
  containers: [{name: agent, image: agent}]
";
    cluster.apply(pod).and_then(Answer::ok).unwrap();
    let create = ["create", "token", "zt-agent", "--namespace=zt-system"];
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=agent-token"];
    let token = |bound: &[&str]| {
        let answer = cluster.kubectl(&[&create[..], bound].concat());
        format!("--token={}", answer.and_then(Answer::ok).unwrap().trim())
    };
    let (of_pod, of_account) = (token(&bound), token(&[]));
    written(&write(cluster, HOME, "token-a", &[&of_pod]));
    let other = write(cluster, HOME, "token-b", &[&of_pod]);
    refused(&other, "this token is of node token-a");
    let unbound = write(cluster, HOME, "token-a", &[&of_account]);
    refused(&unbound, "this token names no node");
    let force = [
        "delete",
        "pod",
        "agent-token",
        "--namespace=zt-system",
        "--force",
    ];
    cluster.kubectl(&force).and_then(Answer::ok).unwrap();
}
