//! Reading a tree field by field, noting all that is wrong on the way.
//!
//! The reading functions return `None` only after they noted a problem, and
//! [`Sink::finish`] lets a value out only if none was noted. So a caller may
//! go on after a `None` to find the next problem, and cannot load half.

use std::{cell::RefCell, fmt::Display, str::FromStr};

use super::{
    text::{SourceFile, printable},
    yaml::{Value, Yaml},
};
use crate::model::{Position, Problem, Severity};

/// Where problems are noted.
#[derive(Debug, Default)]
pub struct Sink(RefCell<Vec<Problem>>);

impl Sink {
    pub fn note(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    /// Notes an error about a file as a whole and withholds the value.
    pub fn refuse<T>(&self, at: Position, message: impl Into<String>, hint: &str) -> Option<T> {
        self.note(Problem {
            severity: Severity::Error,
            at,
            field: String::new(),
            message: message.into(),
            hint: Some(hint.to_owned()),
        });
        None
    }

    fn has_errors(&self) -> bool {
        let problems = self.0.borrow();
        problems.iter().any(|p| p.severity == Severity::Error)
    }

    /// The value and the warnings, or all problems.
    pub fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<Problem>), Vec<Problem>> {
        let failed = self.has_errors();
        let problems = self.0.into_inner();
        match value {
            Some(value) if !failed => Ok((value, problems)),
            _ => {
                debug_assert!(failed, "a value was withheld without a reason");
                Err(problems)
            }
        }
    }
}

/// All values, if each is there. Unlike `collect` it looks at every one, so
/// that every one can note its problems.
pub fn all<T>(values: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let values: Vec<Option<T>> = values.collect();
    values.into_iter().collect()
}

/// A node, its path from the document's root, and where to complain.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    yaml: &'a Yaml,
    path: String,
    file: &'a SourceFile,
    sink: &'a Sink,
}

impl<'a> Field<'a> {
    pub const fn root(yaml: &'a Yaml, file: &'a SourceFile, sink: &'a Sink) -> Self {
        Self {
            yaml,
            path: String::new(),
            file,
            sink,
        }
    }

    pub fn at(&self) -> Position {
        position(self.file, self.yaml)
    }

    pub const fn value(&self) -> &'a Value {
        &self.yaml.value
    }

    pub fn is_text(&self, text: &str) -> bool {
        matches!(self.value(), Value::Text(found) if found == text)
    }

    /// Notes an error here. An empty hint is none.
    pub fn error(&self, message: impl Into<String>, hint: impl Into<String>) {
        self.complain(Severity::Error, self.at(), message.into(), hint.into());
    }

    /// Notes an error here and withholds the value.
    pub fn refuse<T>(&self, message: impl Into<String>, hint: impl Into<String>) -> Option<T> {
        self.error(message, hint);
        None
    }

    /// Notes a warning at another place of this node.
    pub fn warn_at(&self, at: Position, message: impl Into<String>, hint: impl Into<String>) {
        self.complain(Severity::Warning, at, message.into(), hint.into());
    }

    fn complain(&self, severity: Severity, at: Position, message: String, hint: String) {
        self.sink.note(Problem {
            severity,
            at,
            field: self.path.clone(),
            message,
            hint: (!hint.is_empty()).then_some(hint),
        });
    }

    fn wrong_kind<T>(&self, wanted: &str) -> Option<T> {
        match self.value() {
            Value::Null => self.refuse(
                format!("has no value; it must be {wanted}"),
                "give it a value or remove the field",
            ),
            Value::Whole(_) | Value::OtherNumber(_) | Value::Flag(_) if wanted == "text" => self
                .refuse(
                    format!(
                        "must be text, and YAML reads this as {}",
                        self.value().kind()
                    ),
                    "put it in double quotes",
                ),
            other => self.refuse(
                format!("must be {wanted}, and this is {}", other.kind()),
                "",
            ),
        }
    }

    pub fn text(&self) -> Option<&'a str> {
        match self.value() {
            Value::Text(text) => Some(text),
            _ => self.wrong_kind("text"),
        }
    }

    pub fn flag(&self) -> Option<bool> {
        match self.value() {
            Value::Flag(flag) => Some(*flag),
            _ => self.wrong_kind("true or false"),
        }
    }

    /// A whole number from `least` up that fits `N`.
    pub fn whole<N: TryFrom<u64>>(&self, least: u64) -> Option<N> {
        let Value::Whole(number) = *self.value() else {
            return self.wrong_kind("a whole number");
        };
        if number < least {
            return self.refuse(format!("{number} is too small; the least is {least}"), "");
        }
        match N::try_from(number) {
            Ok(number) => Some(number),
            Err(_) => self.refuse(format!("{number} is too large"), ""),
        }
    }

    /// The elements of a list.
    pub fn elements(&self) -> Option<Vec<Self>> {
        match self.value() {
            Value::List(list) => Some(self.children(list)),
            _ => self.wrong_kind("a list"),
        }
    }

    /// The elements of a list, or this one where a single one may stand for
    /// a list of one.
    pub fn one_or_more(&self) -> Vec<Self> {
        match self.value() {
            Value::List(list) => self.children(list),
            _ => vec![self.clone()],
        }
    }

    fn children(&self, list: &'a [Yaml]) -> Vec<Self> {
        let child = |(index, yaml)| self.child(yaml, format!("{}[{}]", self.path, index + 1));
        list.iter().enumerate().map(child).collect()
    }

    fn child(&self, yaml: &'a Yaml, path: String) -> Self {
        Self {
            yaml,
            path,
            ..self.clone()
        }
    }

    /// A text as a `T`.
    pub fn parse<T: FromStr<Err: Display>>(&self, hint: &str) -> Option<T> {
        let text = self.text()?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => self.refuse(format!("{text:?}: {error}"), hint),
        }
    }

    /// One of a few words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.refuse(
            format!("{text:?} is none of {}", known.join(", ")),
            did_you_mean(text, known.iter().copied()),
        )
    }

    /// The fields of a mapping. Notes those that are not `known`.
    pub fn fields(&self, known: &[&str]) -> Option<Fields<'a>> {
        let fields = self.fields_any()?;
        for (key, _) in fields.entries {
            self.check_key(key, known);
        }
        Some(fields)
    }

    /// The fields of a mapping whose other fields are checked elsewhere, or
    /// are nobody's business.
    pub fn fields_any(&self) -> Option<Fields<'a>> {
        match self.value() {
            Value::Map(entries) => Some(Fields {
                node: self.clone(),
                entries,
            }),
            _ => self.wrong_kind("a mapping"),
        }
    }

    /// A field of what may be a mapping, without a complaint if it is none.
    pub fn peek(&self, name: &str) -> Option<Self> {
        match self.value() {
            Value::Map(_) => self.fields_any()?.optional(name),
            _ => None,
        }
    }

    fn check_key(&self, key: &'a Yaml, known: &[&str]) {
        let (name, message) = match &key.value {
            Value::Text(name) if known.contains(&name.as_str()) => return,
            Value::Text(name) => (name.as_str(), "unknown field".to_owned()),
            other => (
                "",
                format!("a field's name must be text, and this is {}", other.kind()),
            ),
        };
        let mut hint = did_you_mean(name, known.iter().copied());
        if hint.is_empty() {
            hint = format!("the fields here are: {}", known.join(", "));
        }
        let path = join(&self.path, &printable(name));
        self.child(key, path).error(message, hint);
    }
}

/// The fields of a mapping.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    /// The mapping itself.
    pub node: Field<'a>,
    entries: &'a [(Yaml, Yaml)],
}

impl<'a> Fields<'a> {
    /// A field that may be left out.
    pub fn optional(&self, name: &str) -> Option<Field<'a>> {
        let is_it = |(key, _): &&(Yaml, Yaml)| matches!(&key.value, Value::Text(k) if k == name);
        let (_, value) = self.entries.iter().find(is_it)?;
        Some(self.node.child(value, join(&self.node.path, name)))
    }

    /// A field that must be there.
    pub fn required(&self, name: &str, hint: &str) -> Option<Field<'a>> {
        self.optional(name)
            .or_else(|| self.node.refuse(format!("has no field {name:?}"), hint))
    }

    /// An optional field: the default if it is not there, `None` if it is bad.
    pub fn or<T>(
        &self,
        name: &str,
        default: T,
        read: impl FnOnce(Field<'a>) -> Option<T>,
    ) -> Option<T> {
        self.optional(name).map_or(Some(default), read)
    }

    /// The one field of several that may not stand together.
    pub fn exactly_one(&self, names: &[&'static str]) -> Option<(&'static str, Field<'a>)> {
        let field = |name: &&'static str| Some((*name, self.optional(name)?));
        let mut found: Vec<_> = names.iter().filter_map(field).collect();
        match found.len() {
            0 => self
                .node
                .refuse(format!("needs one of {}", names.join(", ")), ""),
            1 => found.pop(),
            _ => {
                let (name, field) = &found[1];
                field.refuse(
                    format!("{name} cannot stand beside {}", found[0].0),
                    "keep one of the two",
                )
            }
        }
    }
}

fn position(file: &SourceFile, yaml: &Yaml) -> Position {
    file.position(yaml.referenced.line(), yaml.referenced.column())
}

fn join(path: &str, name: &str) -> String {
    match (path, name) {
        ("", name) => name.to_owned(),
        (path, "") => path.to_owned(),
        (path, name) => format!("{path}.{name}"),
    }
}

/// "did you mean …?" if a candidate is close, or nothing.
pub fn did_you_mean<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> String {
    // A third of the letters may differ: enough for typing errors, too little
    // to offer a different word.
    let distance = |candidate: &str| {
        strsim::damerau_levenshtein(&text.to_lowercase(), &candidate.to_lowercase())
    };
    // The measure is quadratic; a long text is no typing error.
    if text.len() > 256 {
        return String::new();
    }
    candidates
        .map(|candidate| (distance(candidate), candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.chars().count())
        .min()
        .map_or_else(String::new, |(_, best)| format!("did you mean {best:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_close_words_are_offered() {
        let words = || ["spiffe", "group", "cidr", "reserved"].into_iter();
        assert_eq!(did_you_mean("spife", words()), "did you mean \"spiffe\"?");
        assert_eq!(did_you_mean("Group", words()), "did you mean \"group\"?");
        assert_eq!(did_you_mean("namespace", words()), "");
    }

    #[test]
    fn all_looks_at_every_value() {
        let mut seen = 0;
        let values = [None, Some(1), None].into_iter().inspect(|_| seen += 1);
        assert_eq!(all(values), None);
        assert_eq!(seen, 3);
    }
}
