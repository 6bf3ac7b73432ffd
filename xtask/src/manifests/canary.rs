//! The overlay that enforces on some nodes has one agent on each node.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::tools::here::{kubectl, output};
use super::yaml;
use crate::workspace;

const LABEL: &str = "zt.hanzo.ai/canary";

const CLUSTER_WIDE: [&str; 6] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

#[test]
fn a_labelled_node_has_the_agent_that_enforces_and_another_the_one_that_observes() {
    for components in [
        None,
        Some("components: [../../monitoring, ../../cni, ../../boot]"),
    ] {
        let Some(objects) = built(components) else {
            return;
        };
        one_agent_on_each_node(&objects);
    }
}

/// What kustomize makes of the overlay, with what its comment offers.
fn built(components: Option<&str>) -> Option<Vec<Value>> {
    let mut kubectl = kubectl()?;
    let directory = tempfile::tempdir().unwrap();
    let deploy = directory.path().join("deploy");
    let from = workspace::root().join("deploy");
    output(Command::new("cp").arg("-r").arg(from).arg(&deploy));
    let overlay = deploy.join("overlays/canary");
    if let Some(components) = components {
        let path = overlay.join("kustomization.yaml");
        let text = fs::read_to_string(&path).unwrap();
        let with = text.replace("# components: [../../monitoring]", components);
        assert_ne!(text, with);
        fs::write(&path, with).unwrap();
    }
    let built = output(kubectl.arg("kustomize").arg(overlay));
    Some(yaml::documents(&built))
}

fn one_agent_on_each_node(objects: &[Value]) {
    let (observes, enforces) = (set(objects, "zt-agent"), set(objects, "zt-agent-canary"));
    assert_eq!(mode(objects, observes), "audit");
    assert_eq!(mode(objects, enforces), "enforce");

    let selector = |set: &Value| pod(set)["nodeSelector"][LABEL].clone();
    assert_eq!(selector(enforces), "true");
    assert_eq!(selector(observes), Value::Null);
    let terms = |set: &Value| {
        let affinity = &pod(set)["affinity"]["nodeAffinity"];
        affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"].clone()
    };
    assert_eq!(terms(enforces), Value::Null);
    let others = json!([{"matchExpressions": [
        {"key": LABEL, "operator": "NotIn", "values": ["true"]},
    ]}]);
    assert_eq!(terms(observes), others);

    let name = "app.kubernetes.io/name";
    for set in [observes, enforces] {
        let matched = &set["spec"]["selector"]["matchLabels"][name];
        assert_eq!(*matched, set["metadata"]["name"]);
        assert_eq!(
            *matched,
            set["spec"]["template"]["metadata"]["labels"][name]
        );
        assert_eq!(pod(set)["serviceAccountName"], "zt-agent");
    }
    let elsewhere = objects.iter().filter(|object| {
        !CLUSTER_WIDE.contains(&object["kind"].as_str().unwrap())
            && object["metadata"]["namespace"] != "zt-system"
    });
    assert_eq!(elsewhere.collect::<Vec<_>>(), Vec::<&Value>::new());
    let kinds = |kind: &str| {
        objects
            .iter()
            .filter(|object| object["kind"] == kind)
            .count()
    };
    assert_eq!(
        (
            kinds("DaemonSet"),
            kinds("ServiceAccount"),
            kinds("Namespace")
        ),
        (2, 1, 1)
    );
}

fn pod(set: &Value) -> &Value {
    &set["spec"]["template"]["spec"]
}

fn set<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    find(objects, "DaemonSet", &json!(name))
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &Value) -> &'a Value {
    let mut objects = objects.iter();
    let found = objects.find(|one| one["kind"] == kind && one["metadata"]["name"] == *name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// What the configuration says that the set's pods have.
fn mode(objects: &[Value], set: &Value) -> String {
    let volumes = pod(set)["volumes"].as_array().expect("a list");
    let volume = volumes.iter().find(|volume| volume["name"] == "config");
    let name = &volume.expect("it has a configuration")["configMap"]["name"];
    let config = &find(objects, "ConfigMap", name)["data"]["config.yaml"];
    let config = &yaml::documents(config.as_str().expect("text"))[0];
    config["mode"].as_str().expect("it says a mode").to_owned()
}
