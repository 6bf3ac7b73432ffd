//! `zt-agent policy`

mod check;
mod crd;
mod diff;
mod explain;
mod files;
mod render_networkpolicy;

use std::process::ExitCode;

use super::Global;

#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Check policy files; exit 1: they have errors
    Check(check::CheckArgs),
    /// Show what would change in the kernel if these files were applied
    Diff(diff::DiffArgs),
    /// Say what the kernel decides about a flow, and why; exit 1: denied
    Explain(explain::ExplainArgs),
    /// Print the definitions of the resources for `kubectl apply -f -`
    Crd,
    /// Print NetworkPolicy objects that mirror policies, as far as those can
    RenderNetworkpolicy(render_networkpolicy::RenderArgs),
}

pub fn run(global: &Global, command: &PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Check(args) => check::run(global, args),
        PolicyCommand::Diff(args) => diff::run(global, args),
        PolicyCommand::Explain(args) => explain::run(global, args),
        PolicyCommand::Crd => crd::run(),
        PolicyCommand::RenderNetworkpolicy(args) => render_networkpolicy::run(global, args),
    }
}
