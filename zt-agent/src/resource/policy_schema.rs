//! The schema of a policy's `spec`, from the words that the parser knows.
//!
//! Kubernetes wants one type for every field, and three of ours have two: `from`
//! is an element or a list of them, `protocol` a word or a list, `ports` `any` or a
//! list. Such a field has no type here; what fits neither form is refused by bounds
//! that no value of a wrong type meets ([`no`]). CEL does not see into fields
//! without a type, so what is wrong with them is told by the plain schema.

use serde_json::{Map, Value, json};

use crate::document::words;

/// So many may a list have. The API server bounds by them what its checks can cost
/// at most, and refuses the definition if that is too much.
const RULES: u32 = 1000;
const SOURCES: u32 = 100;
const TARGETS: u32 = 100;
const PORTS: u32 = 100;
const MEMBERS: u32 = 5000;

/// Longest SPIFFE ID, in bytes; all that are allowed are characters of one byte.
const SPIFFE_LEN: usize = zt_common::identity::NAME_LEN;
/// The longest text of a network: IPv6 with the last 32 bits as in IPv4.
const NETWORK_LEN: u32 = 49;
/// More than the longest range of ports or time takes.
const SHORT_TEXT: u32 = 64;

/// A SPIFFE ID in which a segment may be `*`, and the last one `**`. A segment may
/// begin with dots, and not consist of one or two.
const SPIFFE: &str = r"^spiffe://[a-z0-9._-]+(/(\*|[A-Za-z0-9_-][A-Za-z0-9._-]*|\.[A-Za-z0-9_-][A-Za-z0-9._-]*|\.\.[A-Za-z0-9._-]+))*/(\*|\*\*|[A-Za-z0-9_-][A-Za-z0-9._-]*|\.[A-Za-z0-9_-][A-Za-z0-9._-]*|\.\.[A-Za-z0-9._-]+)$";
/// The form of a network, of either family.
const NETWORK: &str = r"^([0-9]{1,3}(\.[0-9]{1,3}){3}/([0-9]|[12][0-9]|3[0-2])|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))$";
/// The form of a time in RFC 3339.
const TIME: &str = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$";

/// The `spec` of a `ServiceAccessPolicy`.
pub fn policy() -> Value {
    object(
        "Who may talk to whom. What no rule of any policy allows is denied.",
        &["rules"],
        json!({
            "mode": {
                "type": "string",
                "description": "In `audit` the policy's rules decide nothing, and denials say what they would have changed.",
                "enum": words::modes(),
                "default": words::DEFAULT_MODE,
            },
            "defaultAction": {
                "type": "string",
                "description": "What no rule allows is always denied. May be left out.",
                "maxLength": SHORT_TEXT,
                "x-kubernetes-validations": [rule(
                    "self == 'DENY'",
                    "must be DENY: what no rule allows is always denied, or a forgotten rule would be an open door",
                )],
            },
            "rules": {
                "type": "array",
                "description": "Counted from 1 in records: `policy/rule-N`. No rules: nothing is allowed.",
                "maxItems": RULES,
                "items": policy_rule(),
            },
        }),
    )
}

/// The `spec` of an `IdentityGroup`.
pub fn group() -> Value {
    let members = json!({
        "type": "array",
        "description": "SPIFFE IDs; `*` is one segment of the path, `**` the rest of it.",
        "maxItems": MEMBERS,
        "items": spiffe(),
    });
    object(
        "Whom the group stands for.",
        &["members"],
        json!({"members": members}),
    )
}

/// A network that CEL can look at.
fn target_network() -> Value {
    let mut schema = network();
    schema["x-kubernetes-validations"] = json!([rule(
        "isCIDR(self) && cidr(self) == cidr(self).masked()",
        "must be a network without bits behind its prefix, like 203.0.113.0/24 or 2001:db8::/32 (IPv4-mapped ones count as IPv4: write them so)",
    )]);
    schema
}

fn policy_rule() -> Value {
    let mut schema = object(
        "From whom to whom, and where.",
        &["from", "to"],
        json!({
            "action": {
                "type": "string",
                "description": "A deny counts more than any allow. The default is `allow`.",
                "enum": words::actions(),
            },
            "expires": {
                "type": "string",
                "description": "After this time (RFC 3339) the rule allows nothing more, even if no agent runs.",
                "maxLength": SHORT_TEXT,
                "pattern": TIME,
                "x-kubernetes-validations": [rule(
                    // The kernel counts nanoseconds from 1970 in 64 bits.
                    "timestamp(self) >= timestamp('1970-01-01T00:00:00Z') && timestamp(self) < timestamp('2554-07-21T23:34:33Z')",
                    "must be a time between the years 1970 and 2554, like 2026-12-01T00:00:00Z",
                )],
            },
            "from": from(),
            "to": {
                "type": "array",
                "description": "To whom; an empty list is nobody.",
                "maxItems": TARGETS,
                "items": target(),
            },
        }),
    );
    schema["x-kubernetes-validations"] = json!([rule(
        "!(has(self.expires) && has(self.action) && self.action == 'deny')",
        "a deny that lapses would open by itself: remove `expires`, and the rule itself when it is no longer wanted",
    )]);
    schema["anyOf"] = not_addresses_at_both_ends();
    schema
}

/// A rule between two ranges of addresses names no workload that it could govern.
fn not_addresses_at_both_ends() -> Value {
    let has_none = json!({"not": {"required": ["cidr"]}});
    let from = json!({"anyOf": [no::object(), has_none], "items": has_none});
    json!([
        {"properties": {"from": from}},
        {"properties": {"to": {"items": has_none}}},
    ])
}

/// One element, or a list of them.
fn from() -> Value {
    let mut schema = no::scalar();
    merge(
        &mut schema,
        json!({
            "description": "Who opens the connection: one of spiffe, group, cidr and reserved, or a list of such. An empty list is nobody.",
            "x-kubernetes-preserve-unknown-fields": true,
            "properties": selectors(network()),
            "maxItems": SOURCES,
            "items": {
                "type": "object",
                "properties": selectors(network()),
                "maxProperties": 1,
                "oneOf": one_of_the_kinds(),
            },
            "anyOf": [no::object(), {"maxProperties": 1, "oneOf": one_of_the_kinds()}],
        }),
    );
    schema
}

fn one_of_the_kinds() -> Value {
    words::KINDS
        .iter()
        .map(|kind| json!({"required": [kind]}))
        .collect()
}

fn target() -> Value {
    let mut properties = selectors(target_network());
    merge(
        &mut properties,
        json!({"ports": ports(), "protocol": protocol()}),
    );
    let mut schema = object(
        "One of spiffe, group, cidr and reserved, and ports.",
        &[],
        properties,
    );
    let present: Vec<String> = words::KINDS
        .iter()
        .map(|kind| format!("has(self.{kind})"))
        .collect();
    schema["x-kubernetes-validations"] = json!([rule(
        &format!("[{}].exists_one(present, present)", present.join(", ")),
        &format!("needs one of {}, and not two", words::KINDS.join(", ")),
    )]);
    schema["anyOf"] = ports_fit_the_protocol();
    schema
}

/// ICMP has no ports; everything else must say which, or that it means all.
fn ports_fit_the_protocol() -> Value {
    let without = |wanted: bool| {
        let words = words::protocols();
        let words: Vec<_> = words
            .into_iter()
            .filter(|word| (*word == "ICMP") == wanted)
            .collect();
        // A word is an element of itself, as far as this schema goes.
        json!({"anyOf": [no::text(), {"enum": words}], "items": {"enum": words}})
    };
    json!([
        {"required": ["ports"], "properties": {"protocol": without(false)}},
        {"required": ["ports"], "properties": {"ports": {"enum": ["any"]}}},
        {"required": ["protocol"], "properties": {"protocol": without(true), "ports": {"enum": ["any"]}}},
    ])
}

/// A word, or a list of words.
fn protocol() -> Value {
    let mut schema = no::number_flag_or_object();
    merge(
        &mut schema,
        json!({
            "description": "TCP, UDP or ICMP, or a list of such. The default is TCP.",
            "x-kubernetes-preserve-unknown-fields": true,
            "pattern": format!("^({})$", words::protocols().join("|")),
            "minItems": 1,
            "maxItems": words::protocols().len(),
            "items": {"type": "string", "enum": words::protocols()},
        }),
    );
    schema
}

/// `any`, or a list of ports and ranges.
fn ports() -> Value {
    // 1 to 65535, with zeros before it.
    const PORT: &str =
        "0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
    let mut schema = no::number_flag_or_object();
    merge(
        &mut schema,
        json!({
            "description": "Destination ports: `any`, or a list of ports and of ranges like \"8000-8010\". ICMP has none.",
            "x-kubernetes-preserve-unknown-fields": true,
            "pattern": "^any$",
            "minItems": 1,
            "maxItems": PORTS,
            "items": {
                "x-kubernetes-int-or-string": true,
                "minimum": 1,
                "maximum": 65535,
                "maxLength": SHORT_TEXT,
                "pattern": format!(r"^\s*{PORT}\s*(-\s*{PORT}\s*)?$"),
            },
        }),
    );
    schema
}

/// The ways to say whom a rule means.
fn selectors(network: Value) -> Value {
    json!({
        "spiffe": spiffe(),
        "group": {
            "type": "string",
            "description": "The name of an IdentityGroup.",
            "maxLength": words::NAME_LEN,
        },
        "cidr": network,
        "reserved": {
            "type": "string",
            "description": "What is no workload.",
            "enum": words::reserved(),
        },
    })
}

fn spiffe() -> Value {
    json!({
        "type": "string",
        "description": "A SPIFFE ID; `*` is one segment of the path, `**` the rest of it.",
        "maxLength": SPIFFE_LEN,
        "pattern": SPIFFE,
    })
}

fn network() -> Value {
    json!({
        "type": "string",
        "description": "Addresses that are no workload's, like 203.0.113.0/24.",
        "maxLength": NETWORK_LEN,
        "pattern": NETWORK,
    })
}

fn object(description: &str, required: &[&str], properties: Value) -> Value {
    let mut schema = json!({
        "type": "object",
        "description": description,
        "properties": properties,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn rule(expression: &str, message: &str) -> Value {
    json!({"rule": expression, "message": message})
}

/// Adds fields to those of a schema, or into them.
fn merge(schema: &mut Value, more: Value) {
    match (schema, more) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, value) in more {
                merge(
                    fields.entry(name).or_insert(Value::Object(Map::new())),
                    value,
                );
            }
        }
        (schema, more) => *schema = more,
    }
}

/// Bounds that no value of one type meets, and that say nothing about the others:
/// a field without a type can have no other check of what it is.
mod no {
    use serde_json::{Value, json};

    pub fn object() -> Value {
        json!({"minProperties": 1, "maxProperties": 0})
    }

    pub fn text() -> Value {
        json!({"minLength": 1, "maxLength": 0})
    }

    /// Neither text nor number nor true or false.
    pub fn scalar() -> Value {
        json!({
            "minLength": 1, "maxLength": 0,
            "minimum": 1, "maximum": 0,
            "not": {"enum": [true, false]},
        })
    }

    /// Text or a list.
    pub fn number_flag_or_object() -> Value {
        json!({
            "minimum": 1, "maximum": 0,
            "minProperties": 1, "maxProperties": 0,
            "not": {"enum": [true, false]},
        })
    }
}
