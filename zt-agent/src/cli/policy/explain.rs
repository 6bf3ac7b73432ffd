//! `zt-agent policy explain`

use std::process::ExitCode;

use crate::cli::Global;

#[derive(Debug, clap::Args)]
pub struct ExplainArgs {}

pub fn run(_global: &Global, _args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
