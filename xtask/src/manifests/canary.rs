//! The overlay that enforces on some nodes has one agent on each node.

use serde_json::{Value, json};

use super::tools::here::{kubectl, output};
use super::yaml;
use crate::workspace;

const LABEL: &str = "zt.hanzo.ai/canary";

#[test]
fn a_labelled_node_has_the_agent_that_enforces_and_another_the_one_that_observes() {
    let Some(mut kubectl) = kubectl() else { return };
    let overlay = workspace::root().join("deploy/overlays/canary");
    let objects = yaml::documents(&output(kubectl.arg("kustomize").arg(overlay)));
    let (observes, enforces) = (set(&objects, "zt-agent"), set(&objects, "zt-agent-canary"));
    assert_eq!(mode(&objects, observes), "audit");
    assert_eq!(mode(&objects, enforces), "enforce");

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
