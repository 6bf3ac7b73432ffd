//! The one binary: see [`zt_agent::cli`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Runtimes start a plugin by its name alone.
    if zt_agent::cni::is_called(std::env::args_os().next()) {
        return zt_agent::cni::run();
    }
    zt_agent::cli::dispatch(zt_agent::cli::Cli::parse())
}
