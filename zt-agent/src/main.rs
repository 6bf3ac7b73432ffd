//! The one binary: see [`zt_agent::cli`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    zt_agent::cli::dispatch(zt_agent::cli::Cli::parse())
}
