//! An object of the API as the document that it stands for.

use serde_json::{Value, json};

use super::Kind;
use crate::document::{API_VERSION, SourceFile};

/// The document of an object, called `serviceaccesspolicy/NAME`, for
/// [`policy::parse`](crate::document::policy::parse): no second reader of policies
/// exists.
///
/// Only the object's name and `spec` are in it. Everything else that an object has
/// is the API server's own, or decides nothing. What is missing stays missing, for
/// the parser to complain about. Problems carry the paths of fields; their lines
/// are those of a text that nobody wrote.
#[must_use]
pub fn document(kind: Kind, object: &Value) -> SourceFile {
    let name = &object["metadata"]["name"];
    let mut document = json!({
        "apiVersion": API_VERSION,
        "kind": kind.name(),
        "metadata": {"name": name},
    });
    if let Some(spec) = object.get("spec") {
        document["spec"] = spec.clone();
    }
    let file = format!("{}/{}", kind.singular(), name.as_str().unwrap_or_default());
    // JSON is YAML.
    SourceFile::new(file, format!("{document:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::policy;

    fn object(spec: Value) -> Value {
        json!({
            "apiVersion": "zt.hanzo.ai/v1",
            "kind": "ServiceAccessPolicy",
            "metadata": {"name": "p", "uid": "u", "resourceVersion": "7", "managedFields": []},
            "spec": spec,
            "status": {"enforced": "1/1"},
        })
    }

    #[test]
    fn an_object_is_read_as_its_document_would_be() {
        let target = json!({"spiffe": "spiffe://td/b", "ports": [80, "443"]});
        let spec = json!({"rules": [{"from": {"spiffe": "spiffe://td/\u{61}"}, "to": [target]}]});
        let file = document(Kind::ServiceAccessPolicy, &object(spec));
        assert_eq!(&*file.name, "serviceaccesspolicy/p");
        let policies = policy::parse(&[file]).unwrap();
        assert_eq!(&*policies[0].name, "p");
        assert_eq!(policies[0].rules.len(), 1);
    }

    #[test]
    fn a_bad_object_is_refused_by_the_field() {
        let spec =
            json!({"rules": [{"from": [], "to": [{"spiffe": "spiffe://td/b", "ports": [0]}]}]});
        let problems =
            policy::parse(&[document(Kind::ServiceAccessPolicy, &object(spec))]).unwrap_err();
        assert_eq!(problems[0].field, "spec.rules[1].to[1].ports[1]");
        assert_eq!(&*problems[0].at.file, "serviceaccesspolicy/p");
    }

    #[test]
    fn an_object_of_nothing_is_refused_and_not_taken_for_an_empty_policy() {
        for object in [
            json!({}),
            json!(null),
            json!([]),
            json!({"metadata": {"name": "p"}}),
        ] {
            let file = document(Kind::ServiceAccessPolicy, &object);
            assert!(policy::parse(&[file]).is_err(), "{object}");
        }
    }

    #[test]
    fn text_that_yaml_would_read_differently_stays_text() {
        for text in [
            "no",
            "5",
            "a: b",
            "\u{85}\u{2028}\n",
            "*x",
            "\"",
            "\\",
            "\u{1f600}",
        ] {
            let file = document(Kind::ServiceAccessPolicy, &object(json!({"mode": text})));
            let problems = policy::parse(&[file]).unwrap_err();
            let about_mode = problems
                .iter()
                .find(|problem| problem.field == "spec.mode")
                .unwrap();
            assert!(
                about_mode.message.contains("is none of enforce, audit"),
                "{about_mode}"
            );
        }
    }
}
