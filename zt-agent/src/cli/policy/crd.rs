//! `zt-agent policy crd`

use std::io::{self, Write};
use std::process::ExitCode;

use crate::resource::{definitions, yaml};

pub fn run() -> anyhow::Result<ExitCode> {
    let documents = definitions()
        .iter()
        .map(|definition| format!("---\n{}", yaml::document(definition)))
        .collect::<String>();
    io::stdout().write_all(documents.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
