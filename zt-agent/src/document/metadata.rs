//! What every document begins with: version, kind, name.

use std::sync::Arc;

use super::{
    API_VERSION,
    field::{Field, did_you_mean},
};

/// Longest name of a policy or a group, in bytes: with `/rule-N` behind it,
/// it must fit a row of the rule map.
pub const NAME_LEN: usize = 100;
const _: () = assert!(NAME_LEN + "/rule-4294967295".len() < zt_common::identity::RULE_NAME_LEN);

/// Longest label between two dots (RFC 1123, section 2.1).
const LABEL_LEN: usize = 63;

/// The kind of a document, if it is one of `kinds` in our version.
pub fn kind(document: &Field<'_>, kinds: &[&'static str]) -> Option<&'static str> {
    let fields = document.fields_any()?;
    let version = fields
        .required("apiVersion", &format!("write `apiVersion: {API_VERSION}`"))
        .and_then(|field| check_version(&field));
    let kind = fields.required("kind", &format!("one of {}", kinds.join(", ")));
    let kind = kind.and_then(|field| known_kind(&field, kinds));
    version.and(kind)
}

fn check_version(field: &Field<'_>) -> Option<()> {
    let text = field.text()?;
    if text == API_VERSION {
        return Some(());
    }
    field.refuse(
        format!("{text:?} is not a version that this agent reads"),
        format!("write `apiVersion: {API_VERSION}`"),
    )
}

fn known_kind(field: &Field<'_>, kinds: &[&'static str]) -> Option<&'static str> {
    let text = field.text()?;
    if let Some(kind) = kinds.iter().find(|kind| **kind == text) {
        return Some(kind);
    }
    let mut hint = did_you_mean(text, kinds.iter().copied());
    if hint.is_empty() {
        hint = format!("the kinds here are: {}", kinds.join(", "));
    }
    field.refuse(format!("unknown kind {text:?}"), hint)
}

/// A document's `metadata.name`.
pub struct Name<'a> {
    pub text: Arc<str>,
    pub field: Field<'a>,
}

/// Reads `metadata`.
pub fn name<'a>(metadata: &Field<'a>) -> Option<Name<'a>> {
    const KNOWN: &[&str] = &["name", "labels", "annotations", "namespace"];
    let fields = metadata.fields(KNOWN)?;
    if let Some(namespace) = fields.optional("namespace") {
        namespace.error(
            "the document holds for the whole node and lies in no namespace",
            "remove the field; name the workloads by their SPIFFE IDs",
        );
    }
    for ignored in ["labels", "annotations"] {
        // Tools put them there; they decide nothing.
        if let Some(field) = fields.optional(ignored) {
            field.fields_any();
        }
    }
    let field = fields.required("name", "give it a name: the audit trail names rules by it")?;
    let text = check_name(&field)?;
    Some(Name { text, field })
}

fn check_name(field: &Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    if text.len() > NAME_LEN {
        return field.refuse(format!("is longer than {NAME_LEN} bytes"), "");
    }
    if text.split('.').all(is_label) {
        return Some(text.into());
    }
    field.refuse(
        format!("{text:?} is no name"),
        "use a-z, 0-9, '-' and '.', beginning and ending each part with a letter or digit",
    )
}

fn is_label(label: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = label.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() <= LABEL_LEN
        && alphanumeric(*first)
        && alphanumeric(*last)
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_host_names() {
        for good in ["a", "0", "a-b", "my-policy1", &"x".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "ä", &"x".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}
