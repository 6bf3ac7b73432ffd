//! `zt-agent quarantine`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Subcommand)]
pub enum QuarantineCommand {
    /// Who is quarantined
    List,
}

pub fn run(_global: &Global, _args: &QuarantineCommand) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
