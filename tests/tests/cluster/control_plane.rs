//! The control plane of the tests itself.

use std::path::Path;

use zt_tests::cluster::{self, Cluster, Programs};

#[test]
fn the_api_server_answers_and_keeps_what_it_is_given() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let version = cluster.kubectl(&["version"]).unwrap().ok().unwrap();
    assert!(version.contains("Server Version: v1.35"), "{version}");
    cluster.create_namespace("answers").unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: answers}\n\
               spec: {containers: [{name: c, image: none}]}\n";
    cluster.apply(pod).unwrap().ok().unwrap();
    let path = "-o=jsonpath={.spec.serviceAccountName}";
    let account = cluster.kubectl(&["get", "pod", "p", "--namespace=answers", path]);
    assert_eq!(account.unwrap().ok().unwrap(), "default");
}

#[test]
fn what_a_role_does_not_allow_is_refused() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let somebody = "--as=system:serviceaccount:default:somebody";
    let answer = cluster.kubectl(&["get", "nodes", somebody]).unwrap();
    assert!(
        !answer.succeeded && answer.errors.contains("forbidden"),
        "{answer:?}"
    );
}

#[test]
fn the_api_server_comes_back_with_its_data_and_the_end_leaves_nothing() {
    // The shared one must not go away under the others.
    if cluster::shared().is_none() {
        return;
    }
    let programs = Programs::from_environment().unwrap().unwrap();
    let cluster = Cluster::start(&programs).unwrap();
    cluster.create_namespace("stays").unwrap();
    let first = cluster.api_server_pid().unwrap();

    cluster.stop_api_server().unwrap();
    assert!(!Path::new("/proc").join(first.to_string()).exists());
    assert!(!cluster.kubectl(&["get", "namespaces"]).unwrap().succeeded);
    cluster.start_api_server().unwrap();
    cluster
        .kubectl(&["get", "namespace", "stays"])
        .unwrap()
        .ok()
        .unwrap();

    cluster.kill_api_server().unwrap();
    cluster.start_api_server().unwrap();
    cluster
        .kubectl(&["get", "namespace", "stays"])
        .unwrap()
        .ok()
        .unwrap();

    let second = cluster.api_server_pid().unwrap();
    let directory = cluster.kubeconfig().parent().unwrap().to_owned();
    drop(cluster);
    assert!(!directory.exists());
    assert!(!Path::new("/proc").join(second.to_string()).exists());
}
