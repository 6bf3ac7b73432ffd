//! `zt-agent run`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Args)]
pub struct RunArgs {}

pub fn run(_global: &Global, _args: &RunArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
