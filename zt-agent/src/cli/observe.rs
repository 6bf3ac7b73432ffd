//! `zt-agent observe`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Args)]
pub struct ObserveArgs {}

pub fn run(_global: &Global, _args: &ObserveArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
