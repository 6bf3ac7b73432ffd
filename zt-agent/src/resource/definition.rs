//! The `CustomResourceDefinition`s.

use serde_json::{Value, json};

use super::{GROUP, Kind, VERSION, policy_schema, yaml};
use crate::document::words;

/// A label of a host name (RFC 1123): Kubernetes lets the parts of a resource's
/// name be longer.
const NAME: &str = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$";

/// The definitions of all our resources, for `kubectl apply`.
#[must_use]
pub fn definitions() -> Vec<Value> {
    Kind::ALL.into_iter().map(definition).collect()
}

/// The same as a manifest, as it lies in `deploy/`.
#[must_use]
pub fn manifest() -> String {
    const HEAD: &str = "# The resources of zt-agent. Made from its source by `cargo xtask dist`.\n";
    let documents = definitions();
    let documents = documents
        .iter()
        .map(|definition| format!("---\n{}", yaml::document(definition)));
    HEAD.to_owned() + &documents.collect::<String>()
}

fn definition(kind: Kind) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{GROUP}", kind.plural())},
        "spec": {
            "group": GROUP,
            // A tenant's namespace has no say in who may talk to whom.
            "scope": "Cluster",
            "names": {
                "kind": kind.name(),
                "listKind": format!("{}List", kind.name()),
                "singular": kind.singular(),
                "plural": kind.plural(),
                "shortNames": [short_name(kind)],
                "categories": ["zero-trust"],
            },
            "versions": [version(kind)],
        },
    })
}

const fn short_name(kind: Kind) -> &'static str {
    match kind {
        Kind::ServiceAccessPolicy => "sap",
        Kind::IdentityGroup => "idg",
    }
}

fn version(kind: Kind) -> Value {
    let mut version = json!({
        "name": VERSION,
        "served": true,
        "storage": true,
        "schema": {"openAPIV3Schema": root(kind)},
        "additionalPrinterColumns": columns(kind),
    });
    if kind == Kind::ServiceAccessPolicy {
        version["subresources"] = json!({"status": {}});
    }
    version
}

fn root(kind: Kind) -> Value {
    let mut properties = json!({
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": words::NAME_LEN, "pattern": NAME}},
        },
    });
    let description = match kind {
        Kind::ServiceAccessPolicy => {
            properties["spec"] = policy_schema::policy();
            properties["status"] = status();
            "Who may talk to whom, by SPIFFE identity, enforced in the kernel of every node."
        }
        Kind::IdentityGroup => {
            properties["spec"] = policy_schema::group();
            "A name for several identities, to be used in policies."
        }
    };
    json!({
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": properties,
    })
}

fn columns(kind: Kind) -> Value {
    let column = |name: &str, kind: &str, path: &str, description: &str| json!({"name": name, "type": kind, "jsonPath": path, "description": description});
    let age = column("Age", "date", ".metadata.creationTimestamp", "");
    match kind {
        Kind::ServiceAccessPolicy => json!([
            column(
                "Mode",
                "string",
                ".spec.mode",
                "Whether its rules decide, or only say what they would"
            ),
            column("Rules", "integer", ".status.rules", "How many rules it has"),
            column(
                "Enforced",
                "string",
                ".status.enforced",
                "On how many nodes the latest generation decides"
            ),
            age,
            column("Why", "string", ".status.reason", "Why not on all of them"),
        ]),
        Kind::IdentityGroup => json!([
            column("Members", "string", ".spec.members", "Whom it stands for"),
            age,
        ]),
    }
}

/// The schema of [`PolicyStatus`](super::PolicyStatus).
fn status() -> Value {
    json!({
        "type": "object",
        "description": "What the agents say about it.",
        "properties": {
            "enforced": {
                "type": "string",
                "description": "On how many of the nodes that have an agent the latest generation decides.",
            },
            "reason": {"type": "string", "description": "Why not on all of them: what the first of the others says."},
            "rules": {"type": "integer", "format": "int64", "description": "How many rules it has."},
            "nodes": {
                "type": "array",
                "description": "What each node makes of it.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["node"],
                "items": node_status(),
            },
        },
    })
}

fn node_status() -> Value {
    json!({
        "type": "object",
        "required": ["node", "generation", "enforced", "since"],
        "properties": {
            "node": {"type": "string", "description": "The name of the Node."},
            "generation": {
                "type": "integer", "format": "int64",
                "description": "The generation that is in force there: an older one while the latest is refused; 0 if none ever was.",
            },
            "enforced": {"type": "boolean", "description": "Whether its rules decide there."},
            "reason": {"type": "string", "description": "Why not, or why not the latest generation."},
            "since": {"type": "string", "format": "date-time", "description": "Since when that is so."},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{NodeStatus, PolicyStatus};

    #[test]
    fn the_manifest_that_is_deployed_is_the_one_that_the_source_makes() {
        let deployed = include_str!("../../../deploy/base/crd.yaml");
        assert!(
            deployed == manifest(),
            "deploy/base/crd.yaml is old: run `cargo xtask dist`"
        );
    }

    #[test]
    fn a_status_has_only_fields_that_the_definition_knows() {
        let told = PolicyStatus {
            enforced: Some("1/1".to_owned()),
            reason: Some("why".to_owned()),
            rules: Some(1),
            nodes: vec![NodeStatus {
                node: "a".to_owned(),
                generation: 1,
                enforced: false,
                reason: "why".to_owned(),
                since: jiff::Timestamp::UNIX_EPOCH,
            }],
        };
        let told = serde_json::to_value(told).unwrap();
        let known = |schema: &Value, told: &Value| {
            let fields = told.as_object().unwrap().keys();
            fields.for_each(|name| assert!(schema["properties"].get(name).is_some(), "{name}"));
        };
        known(&status(), &told);
        known(&node_status(), &told["nodes"][0]);
    }
}
