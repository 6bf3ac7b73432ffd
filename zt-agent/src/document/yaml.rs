//! YAML text into a tree that remembers where everything stood.
//!
//! A tree and not typed structures, so that one pass over a document can
//! report all that is wrong with it, unknown fields and wrong types included,
//! instead of stopping at the first.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Error, Location, MessageFormatter, Spanned, UserMessageFormatter};

use super::text::{SourceFile, printable};
use crate::model::{Problem, Severity};

/// A node and its place.
pub type Yaml = Spanned<Value>;

/// A YAML node.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Flag(bool),
    /// A whole number that is not negative.
    Whole(u64),
    /// Any other number, as text.
    OtherNumber(String),
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<(Yaml, Yaml)>),
}

impl Value {
    /// What it is, in the words of an error message.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Flag(_) => "true or false",
            Self::Whole(_) | Self::OtherNumber(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Flag(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value)
            .map_or_else(|_| Value::OtherNumber(value.to_string()), Value::Whole))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::OtherNumber(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::OtherNumber(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::OtherNumber(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = seq.next_element()? {
            list.push(element);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

/// All documents of a file that hold anything.
pub fn parse(file: &SourceFile) -> Result<Vec<Yaml>, Box<Problem>> {
    serde_saphyr::from_multiple_with_options(&file.text, options())
        .map_err(|error| Box::new(problem(file, error.without_snippet())))
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            // A policy of 64k targets has about half a million nodes.
            max_events: 4_000_000,
            max_nodes: 2_000_000,
            max_documents: 16_384,
            // Our schemas are seven deep. The tree is walked recursively.
            max_depth: 32,
            flow_nesting_limit: 32,
            max_anchors: 1_000,
            max_aliases: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 8,
        },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::Error,
        merge_keys: serde_saphyr::options::MergeKeyPolicy::Error,
        // YAML 1.1 would read `no` as false.
        strict_booleans: true,
        reject_unsupported_tags: true,
        // Nobody could review a policy in base64.
        ignore_binary_tag_for_string: true,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    }
}

fn problem(file: &SourceFile, error: &Error) -> Problem {
    // Without a place of its own the whole file is meant.
    let at = error.location().unwrap_or(Location::UNKNOWN);
    let (message, hint) = explain(error);
    Problem {
        severity: Severity::Error,
        at: file.position(at.line(), at.column()),
        field: String::new(),
        message,
        hint: hint.map(str::to_owned),
    }
}

fn explain(error: &Error) -> (String, Option<&'static str>) {
    match error {
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or_default();
            (
                format!("the field {key:?} is given twice"),
                Some("keep one of the two"),
            )
        }
        Error::MergeKeyNotAllowed { .. } => (
            "merge keys (`<<`) are not allowed here".to_owned(),
            Some("write the fields out"),
        ),
        Error::UnknownAnchor { .. } => (
            "this alias (`*`) has no anchor (`&`) before it".to_owned(),
            Some("put text that begins with `*` in double quotes"),
        ),
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            ("this alias contains itself".to_owned(), None)
        }
        Error::AliasError { error, .. } => explain(error),
        other => (
            printable(&UserMessageFormatter.format_message(other)),
            general_hint(other),
        ),
    }
}

const fn general_hint(error: &Error) -> Option<&'static str> {
    match error {
        // What the scanner says about text that is no YAML.
        Error::ExternalMessage { .. } | Error::Message { .. } | Error::Eof { .. } => {
            Some("look at the indentation, quotes and brackets here and on the lines above")
        }
        Error::Budget { .. } | Error::AliasReplayLimitExceeded { .. } => {
            Some("split the file, and write aliases out")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_parse(text: &str) -> Result<Vec<Yaml>, Box<Problem>> {
        parse(&SourceFile::new("f.yaml", text))
    }

    #[test]
    fn places_are_kept_for_keys_and_values() {
        let documents = try_parse("# c\na:\n  - 5\n  - x: no\n").unwrap();
        let Value::Map(entries) = &documents[0].value else {
            panic!("{documents:?}")
        };
        let (key, list) = &entries[0];
        assert_eq!(key.value, Value::Text("a".into()));
        assert_eq!((key.referenced.line(), key.referenced.column()), (2, 1));
        let Value::List(list) = &list.value else {
            panic!("{list:?}")
        };
        assert_eq!(list[0].value, Value::Whole(5));
        assert_eq!(
            (list[0].referenced.line(), list[0].referenced.column()),
            (3, 5)
        );
        let Value::Map(inner) = &list[1].value else {
            panic!("{list:?}")
        };
        assert_eq!(inner[0].1.value, Value::Text("no".into()));
        assert_eq!(inner[0].1.referenced.column(), 8);
    }

    #[test]
    fn a_file_of_nothing_has_no_documents() {
        for text in [
            "",
            "# only words\n",
            "---\n",
            "\n\n",
            "---\n# a\n---\n",
            "\u{feff}",
        ] {
            assert_eq!(try_parse(text).unwrap(), [], "{text:?}");
        }
    }

    #[test]
    fn a_field_given_twice_is_refused_where_it_comes_again() {
        let problem = try_parse("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(problem.at.to_string(), "f.yaml:3:1");
        assert_eq!(problem.message, "the field \"a\" is given twice");
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let below = level - 1;
            let list = vec![format!("*a{below}"); 10].join(", ");
            text += &format!("a{level}: &a{level} [{list}]\n");
        }
        assert!(try_parse(&text).is_err());
    }

    #[test]
    fn nesting_without_end_is_refused() {
        for text in [
            "[".repeat(100_000),
            "- ".repeat(100_000),
            "{a: ".repeat(10_000),
        ] {
            assert!(try_parse(&text).is_err());
        }
    }

    #[test]
    fn text_is_not_decoded() {
        let documents = try_parse("!!binary YQ==: !!binary Yg==\n").unwrap();
        let Value::Map(entries) = &documents[0].value else {
            panic!("{documents:?}")
        };
        assert_eq!(entries[0].0.value, Value::Text("YQ==".into()));
        assert_eq!(entries[0].1.value, Value::Text("Yg==".into()));
    }

    #[test]
    fn broken_yaml_is_told_where_and_what_to_look_at() {
        let problem = try_parse("a:\n  b: 1\n   c: 2\n").unwrap_err();
        assert_eq!(problem.at.line, 3);
        assert!(problem.hint.unwrap().contains("brackets"));
    }

    #[test]
    fn merge_keys_and_foreign_tags_are_refused() {
        assert!(try_parse("a: &a {x: 1}\nb: {<<: *a}\n").is_err());
        assert!(try_parse("a: !ruby/object x\n").is_err());
    }
}
