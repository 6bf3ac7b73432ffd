//! `zt-agent cni`: the CNI plugin, and its place on a node.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Subcommand;

use super::output;
use crate::cni::{
    self,
    install::{Done, Options, Place},
};

const ABOUT: &str = "Without a command it is the plugin itself, as a container runtime executes it: \
the request is in the environment (CNI_COMMAND and others) and the network's configuration on \
standard input. A file that is called zt-agent-cni is the plugin, too.";

#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub struct CniArgs {
    #[command(subcommand)]
    command: Option<CniCommand>,
}

#[derive(Debug, Subcommand)]
enum CniCommand {
    /// Copy this program to where the runtime has its plugins, and name it in the
    /// network's list
    Install(InstallArgs),
    /// Take it out of the networks' lists, and away
    Remove(PlaceArgs),
}

#[derive(Debug, clap::Args)]
struct PlaceArgs {
    /// Where the runtime has its plugins
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    bin: PathBuf,
    /// Where it has its networks
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    networks: PathBuf,
}

#[derive(Debug, clap::Args)]
struct InstallArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The agent's socket, as a process of the node finds it
    #[arg(long, default_value = cni::SOCKET, value_name = "FILE")]
    socket: PathBuf,
    /// How long a pod waits until its interface is covered, seconds
    #[arg(long, default_value_t = cni::TIMEOUT, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=300))]
    timeout: u16,
}

/// # Errors
/// When a file cannot be written, or there is no list that it could be part of.
pub fn run(args: &CniArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        None => Ok(cni::run()),
        Some(CniCommand::Install(args)) => install(args),
        Some(CniCommand::Remove(args)) => remove(args),
    }
}

impl PlaceArgs {
    fn place(&self) -> Place {
        Place {
            programs: self.bin.clone(),
            networks: self.networks.clone(),
        }
    }
}

fn install(args: &InstallArgs) -> anyhow::Result<ExitCode> {
    // Also of a program that was replaced while it runs.
    let program = Path::new("/proc/self/exe");
    let options = Options {
        socket: args.socket.clone(),
        timeout: args.timeout,
    };
    let place = args.place.place();
    let Done { program, changed } = place
        .install(program, &options)
        .context("the CNI plugin is not installed")?;
    let mut text = format!("{} is this program\n", program.display());
    for list in &changed {
        text += &format!(
            "{} names it: pods that are made from now on wait until they are covered\n",
            list.display()
        );
    }
    if changed.is_empty() {
        text += "the network's list names it already\n";
    }
    output::text(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn remove(args: &PlaceArgs) -> anyhow::Result<ExitCode> {
    let Done { program, changed } = args
        .place()
        .remove()
        .context("the CNI plugin is not removed")?;
    let mut text = String::new();
    for list in &changed {
        text += &format!("{} names it no more\n", list.display());
    }
    text += &format!("{} is not there any more\n", program.display());
    output::text(&text)?;
    Ok(ExitCode::SUCCESS)
}
