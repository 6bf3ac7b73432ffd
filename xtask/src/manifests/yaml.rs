//! Documents as data.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::workspace;

/// The documents of a text.
pub fn documents(text: &str) -> Vec<Value> {
    let read = serde_saphyr::from_multiple::<Value>(text);
    read.unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

/// The documents of a file below the root of the clone.
pub fn file(path: impl AsRef<Path>) -> Vec<Value> {
    let path = workspace::root().join(path);
    let text = fs::read_to_string(&path);
    documents(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}
