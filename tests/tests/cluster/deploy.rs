//! The manifests of `deploy/`, as the API server takes them.

use std::path::Path;

use zt_tests::cluster::Cluster;

use crate::definitions::with_definitions;

const ACCOUNT: &str = "--as=system:serviceaccount:zt-system:zt-agent";

fn overlay(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the clone has a root");
    root.join("deploy/overlays")
        .join(name)
        .display()
        .to_string()
}

/// Applies one for good: the API server knows no nodes, so nothing starts.
fn apply(cluster: &Cluster, name: &str) {
    let answer = cluster.kubectl(&["apply", "-k", &overlay(name)]).unwrap();
    assert!(answer.succeeded, "{name}: {answer:?}");
    // Warnings are the API server's advice about fields.
    assert!(!answer.errors.contains("Warning"), "{name}: {answer:?}");
}

#[test]
fn every_overlay_is_taken_and_names_the_configuration_that_it_has() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    for (name, mode) in [("observe", "mode: audit"), ("enforce", "mode: enforce")] {
        // The namespace has to be there for a dry run of what is in it.
        apply(cluster, name);
        let dry = ["apply", "--dry-run=server", "-k", &overlay(name)];
        cluster.kubectl(&dry).unwrap().ok().unwrap();
        let volume =
            "-o=jsonpath={.spec.template.spec.volumes[?(@.name=='config')].configMap.name}";
        let get = [
            "get",
            "daemonset",
            "zt-agent",
            "--namespace=zt-system",
            volume,
        ];
        let named = cluster.kubectl(&get).unwrap().ok().unwrap();
        let get = [
            "get",
            "configmap",
            &named,
            "--namespace=zt-system",
            "-o=yaml",
        ];
        let config = cluster.kubectl(&get).unwrap().ok().unwrap();
        assert!(config.contains(mode), "{name}: {config}");
    }
}

#[test]
fn the_agent_may_do_what_it_does_and_nothing_else() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    apply(cluster, "observe");
    let mut wrong = Vec::new();
    let mut check = |verb: &str, what: &str, namespace: &str, wanted: bool| {
        let (what, part) = what.split_once('/').unwrap_or((what, ""));
        let part = format!("--subresource={part}");
        let can = [
            "auth",
            "can-i",
            verb,
            what,
            &part,
            "--namespace",
            namespace,
            ACCOUNT,
        ];
        if cluster.kubectl(&can).unwrap().succeeded != wanted {
            wrong.push(format!("{verb} {what} in {namespace}: wanted {wanted}"));
        }
    };
    for what in [
        "pods",
        "nodes",
        "namespaces",
        "services",
        "endpointslices.discovery.k8s.io",
        "sap",
        "idg",
    ] {
        for verb in ["get", "list", "watch"] {
            check(verb, what, "default", true);
        }
        for verb in ["create", "update", "patch", "delete"] {
            check(verb, what, "zt-system", false);
        }
    }
    check("patch", "sap/status", "default", true);
    check("update", "sap/status", "default", false);
    check("create", "events.events.k8s.io", "default", true);
    check("delete", "events.events.k8s.io", "default", false);
    check("patch", "leases", "zt-system", true);
    check("create", "leases", "zt-system", true);
    check("patch", "leases", "kube-node-lease", false);
    for what in ["secrets", "configmaps", "serviceaccounts", "daemonsets"] {
        check("get", what, "zt-system", false);
    }
    check("create", "pods/exec", "zt-system", false);
    check("impersonate", "users", "default", false);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
