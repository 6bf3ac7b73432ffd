//! `zt-agent policy crd`

use std::io::{self, Write};
use std::process::ExitCode;

use crate::resource;

pub fn run() -> anyhow::Result<ExitCode> {
    io::stdout().write_all(resource::manifest().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
