//! What every benchmark does with what came of it.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

/// Says what went wrong.
#[must_use]
pub fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes a file, and the directory if need be.
///
/// # Errors
/// When it cannot be written.
pub fn put(directory: &Path, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())
}

/// As [`put`], for machines: what was measured, and where.
///
/// # Errors
/// When it cannot be written.
pub fn put_json(
    directory: &Path,
    name: &str,
    environment: &impl Serialize,
    measured: &impl Serialize,
) -> Result<()> {
    let written = Written {
        environment,
        measured,
    };
    let text = serde_json::to_string_pretty(&written)? + "\n";
    put(directory, name, &text)
}

#[derive(Serialize)]
struct Written<'a, E, M> {
    environment: &'a E,
    measured: &'a M,
}
