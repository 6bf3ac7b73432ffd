//! `zt-agent audit`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Check the chain, the totals and the signatures
    Verify,
}

pub fn run(_global: &Global, _args: &AuditCommand) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
