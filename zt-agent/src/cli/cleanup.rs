//! `zt-agent cleanup`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Args)]
pub struct CleanupArgs {}

pub fn run(_global: &Global, _args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
