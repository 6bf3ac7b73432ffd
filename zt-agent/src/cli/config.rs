//! The configuration, as every command reads it.

use std::path::Path;

use anyhow::bail;

use super::output;
use crate::{
    document::{
        Config, SourceFile,
        render::{self, Style},
        text::printable,
    },
    source::file,
};

/// Reads the configuration file.
///
/// # Errors
/// Everything that is wrong with it, with excerpts.
pub fn read(path: &Path) -> anyhow::Result<Config> {
    let bytes = file::read(path)?;
    let name = printable(&path.display().to_string());
    let source = SourceFile::from_bytes(name, bytes).map_err(|p| anyhow::anyhow!("{p}"))?;
    // Relative paths in it are told to other threads and shown to people.
    let path = std::path::absolute(path)?;
    let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
    match Config::parse(&source, &directory, |name| std::env::var(name).ok()) {
        Ok(config) => Ok(config),
        Err(problems) => {
            let style = if output::coloured() {
                Style::Coloured
            } else {
                Style::Plain
            };
            let text = render::problems(&problems, std::slice::from_ref(&source), style);
            bail!("the configuration has errors\n{text}")
        }
    }
}
