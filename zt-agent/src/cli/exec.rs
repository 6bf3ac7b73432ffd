//! `zt-agent exec`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Args)]
pub struct ExecArgs {}

pub fn run(_global: &Global, _args: &ExecArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
