//! `zt-agent status`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Args)]
pub struct StatusArgs {}

pub fn run(_global: &Global, _args: &StatusArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
