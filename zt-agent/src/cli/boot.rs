//! `zt-agent boot`

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use super::{Global, output, settings};
use crate::{agent, boot::Machine};

#[derive(Debug, clap::Subcommand)]
pub enum BootCommand {
    /// Enforce what was accepted last, and exit; what runs later takes over
    Restore,
    /// Have the next boot run `restore` before the kubelet starts: writes a
    /// systemd unit, this binary and the configuration
    Install(MachineArgs),
    /// Take away what `install` wrote
    Remove(MachineArgs),
}

#[derive(Debug, clap::Args)]
pub struct MachineArgs {
    /// Where the machine's root directory is
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
}

/// # Errors
/// When it cannot be done.
pub fn run(global: &Global, command: &BootCommand) -> anyhow::Result<ExitCode> {
    match command {
        BootCommand::Restore => {
            let config = settings::load(global)?;
            settings::require_root()?;
            super::run::log();
            let root = config.cgroup_root.clone();
            let generation = agent::restore(config)?;
            output::text(&format!(
                "generation {generation} is in force below {}: nobody is enrolled until an agent runs\n",
                root.display(),
            ))?;
        }
        BootCommand::Install(args) => {
            // It shall not be wrong at the next boot.
            settings::load(global)?;
            let binary = std::env::current_exe().context("where this binary is")?;
            let machine = Machine::at(&args.root);
            let installed = machine.install(&binary, &global.config);
            installed.context("not installed; is --root the machine's root directory?")?;
            output::text(&format!(
                "at the next boot {} is enforced before the kubelet starts\n",
                global.config.display()
            ))?;
        }
        BootCommand::Remove(args) => {
            Machine::at(&args.root).remove()?;
            output::text("from the next boot on nothing is enforced before the agent runs\n")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
