//! The Helm chart, installed by Helm. A cluster of its own: what kubectl applied
//! Helm does not take over.

use std::path::{Path, PathBuf};

use zt_tests::cluster::{self, Answer, Cluster, Programs};

fn deploy(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("the clone has a root")
        .join("deploy")
        .join(name)
}

/// Runs Helm in our namespace; `None`: skipped.
#[track_caller]
fn helm(cluster: &Cluster, arguments: &[&str]) -> Option<String> {
    let mut helm = cluster.helm_command()?;
    let output = helm.args(arguments).arg("--namespace=zt-system").output();
    let output = output.expect("helm runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    // Warnings are the API server's advice about fields.
    assert!(!errors.to_lowercase().contains("warning"), "{errors}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn get(cluster: &Cluster, what: &str, path: &str) -> String {
    let path = format!("-o=jsonpath={path}");
    let get = ["get", what, "zt-agent", "--namespace=zt-system", &path];
    cluster.kubectl(&get).and_then(Answer::ok).unwrap()
}

#[test]
fn helm_installs_observing_upgrades_to_enforcing_and_keeps_definitions_when_it_removes() {
    // As the others, where Kubernetes was not built.
    if cluster::shared().is_none() {
        return;
    }
    let programs = Programs::from_environment().unwrap().unwrap();
    let cluster = Cluster::start(&programs).unwrap();
    let namespace = deploy("base/namespace.yaml").display().to_string();
    let apply = ["apply", "-f", &namespace];
    cluster.kubectl(&apply).and_then(Answer::ok).unwrap();
    let chart = deploy("chart").display().to_string();
    // As one that did not know these values yet: the upgrade reuses what it had.
    let older = "--set=monitoring=null,boot=null,cni=null,canary=null";
    if helm(&cluster, &["install", "zt-agent", &chart, older]).is_none() {
        return;
    }
    let config = "{.data.config\\.yaml}";
    let checksum = "{.spec.template.metadata.annotations.checksum/config}";
    assert!(get(&cluster, "configmap", config).contains("mode: audit"));
    let observing = get(&cluster, "daemonset", checksum);

    let enforce = [
        "upgrade",
        "zt-agent",
        &chart,
        "--reuse-values",
        "--set=config.mode=enforce",
    ];
    helm(&cluster, &enforce);
    assert!(get(&cluster, "configmap", config).contains("mode: enforce"));
    // The agents start anew.
    assert_ne!(get(&cluster, "daemonset", checksum), observing);

    let policy = "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {name: stays}\nspec: {rules: []}\n";
    cluster.apply(policy).and_then(Answer::ok).unwrap();
    helm(&cluster, &["uninstall", "zt-agent"]);
    let sets = ["get", "daemonsets", "--all-namespaces", "-o=name"];
    assert_eq!(cluster.kubectl(&sets).and_then(Answer::ok).unwrap(), "");
    let policies = cluster.kubectl(&["get", "sap", "stays"]).unwrap();
    assert!(policies.succeeded, "{policies:?}");
}
