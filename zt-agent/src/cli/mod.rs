//! The commands, one file each. A command parses its arguments, calls the
//! library, and prints; it decides nothing.

pub mod agent;
pub mod audit;
pub mod boot;
pub mod cleanup;
pub mod cni;
pub mod config;
pub mod exec;
pub mod identities;
pub mod observe;
pub mod output;
pub mod policy;
pub mod quarantine;
pub mod run;
pub mod settings;
pub mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the answer is no (a policy with errors, a denied flow, \
an unsound trail, something wrong in `status`); 2 bad usage; 3 the command failed. `exec` exits as its command does.";

/// Zero-trust enforcement agent: who may talk to whom, by SPIFFE identity, in
/// the Linux kernel.
#[derive(Debug, Parser)]
#[command(name = "zt-agent", version, propagate_version = true)]
#[command(after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Where the agent's things are.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Configuration file of the agent; without the default one every field
    /// has its default
    #[arg(
        long,
        global = true,
        env = "ZT_CONFIG",
        default_value = "/etc/zt-agent/config.yaml",
        value_name = "FILE"
    )]
    pub config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce: load the programs, apply the policies, record the decisions
    Run(run::RunArgs),
    /// Check, compare and explain policies
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Show decisions as they are made
    Observe(observe::ObserveArgs),
    /// Show what is enforced and what is wrong: programs, maps, decisions
    Status(status::StatusArgs),
    /// Show who is enrolled on this node and who is declared elsewhere
    Identities(identities::IdentitiesArgs),
    /// On a node whose agent is a pod: enforce from the boot on
    #[command(subcommand)]
    Boot(boot::BootCommand),
    /// Cut an identity off, at once and in every mode
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineCommand),
    /// Run a command as a workload that is enrolled while it runs
    Exec(exec::ExecArgs),
    /// Check the audit trail
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Be a CNI plugin: have pods start when their interfaces are covered
    Cni(cni::CniArgs),
    /// End enforcement: remove links and maps; state and audit trail stay
    Cleanup(cleanup::CleanupArgs),
}

/// Runs a command. It exits as [`EXIT_CODES`] says; 2 is clap's.
#[must_use]
pub fn dispatch(cli: Cli) -> ExitCode {
    let global = &cli.global;
    let result = match cli.command {
        Command::Run(args) => run::run(global, &args),
        Command::Policy(command) => policy::run(global, &command),
        Command::Observe(args) => observe::run(global, &args),
        Command::Status(args) => status::run(global, &args),
        Command::Identities(args) => identities::run(global, &args),
        Command::Boot(command) => boot::run(global, &command),
        Command::Quarantine(command) => quarantine::run(global, &command),
        Command::Exec(args) => exec::run(global, &args),
        Command::Audit(command) => audit::run(global, &command),
        Command::Cni(args) => cni::run(&args),
        Command::Cleanup(args) => cleanup::run(global, &args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("zt-agent: {}", told(&error));
        ExitCode::from(3)
    })
}

/// An error and what caused it. Some say their cause themselves.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::kernel::KernelError;

    #[test]
    fn a_cause_is_told_once() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let says_it = KernelError::Io {
            path: "/a".into(),
            source: denied(),
        };
        assert_eq!(told(&says_it.into()), "/a: permission denied");
        let silent = anyhow::Error::from(denied()).context("no");
        assert_eq!(told(&silent), "no: permission denied");
    }
}
