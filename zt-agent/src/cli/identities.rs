//! `zt-agent identities`

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Args)]
pub struct IdentitiesArgs {}

pub fn run(_global: &Global, _args: &IdentitiesArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
