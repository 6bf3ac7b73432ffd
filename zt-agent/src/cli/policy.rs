//! `zt-agent policy`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Check policy files
    Check,
}

pub fn run(_global: &Global, _args: &PolicyCommand) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
