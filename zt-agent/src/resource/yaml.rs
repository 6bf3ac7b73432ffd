//! Manifests as YAML that people can read.

use std::fmt::Write as _;

use serde_json::Value;

/// A document in block style, with its last line end. Fields come by name.
#[must_use]
pub fn document(value: &Value) -> String {
    let mut out = String::new();
    block(&mut out, value, 0);
    out
}

/// What stands on lines of its own, each behind `indent` spaces.
fn block(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let _ = write!(out, "{:indent$}{}:", "", text(name));
                // A list stands as far to the right as its field, as kubectl prints.
                let deeper = if value.is_array() { indent } else { indent + 2 };
                behind(out, value, deeper);
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            for element in elements {
                let mut lines = String::new();
                block(&mut lines, element, indent + 2);
                // The first line's indentation becomes the dash.
                let _ = write!(out, "{:indent$}- {}", "", &lines[indent + 2..]);
            }
        }
        scalar => {
            let _ = writeln!(out, "{:indent$}{}", "", inline(scalar));
        }
    }
}

/// What follows a field's name.
fn behind(out: &mut String, value: &Value, indent: usize) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        _ => false,
    };
    if is_block {
        out.push('\n');
        block(out, value, indent);
    } else {
        let _ = writeln!(out, " {}", inline(value));
    }
}

/// What has one line in every style. JSON's form of it is YAML's, too.
fn inline(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        other => other.to_string(),
    }
}

/// Without quotes only where no reader could take it for anything else.
fn text(string: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let first = string
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./ ,;'()".contains(&b);
    let last = !string.ends_with(' ');
    let word = WORDS.contains(&string.to_ascii_lowercase().as_str());
    if first && last && !word && string.bytes().all(plain) {
        return string.to_owned();
    }
    Value::from(string).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_as_it_was() {
        let value = json!({
            "a": [1, {"b": "x: y", "c": []}, [true, null, [2]], "- z"],
            "empty": {}, "n": "no", "number": "5", "t": "it's, (well) done ", "l": [{"x": {"y": 1}}],
            "p": "^[a-z]+$", "": "", "lines": "one\ntwo #three",
        });
        let text = document(&value);
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read, value, "{text}");
    }

    #[test]
    fn it_looks_as_a_person_would_write_it() {
        let value = json!({"spec": {"names": ["a", {"b": 1, "c": "two words"}]}});
        assert_eq!(
            document(&value),
            "spec:\n  names:\n  - a\n  - b: 1\n    c: two words\n"
        );
    }
}
