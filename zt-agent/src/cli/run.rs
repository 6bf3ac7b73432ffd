//! `zt-agent run`

use std::process::ExitCode;

use aya_log::Level;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::{Global, config};
use crate::{agent, kernel::load::LOG_OFF};

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// What the kernel programs log about each decision; slow
    #[arg(long, value_enum, default_value_t)]
    bpf_log: BpfLog,
    /// How the agent logs, to standard error; ZT_LOG filters (for example
    /// ZT_LOG=debug)
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum BpfLog {
    #[default]
    Off,
    Info,
    Debug,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

/// # Errors
/// When the agent cannot start, or a part of it ended by itself.
pub fn run(global: &Global, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let config = config::read(&global.config)?;
    log_to_stderr(args.log_format);
    agent::run(config, level(args.bpf_log))?;
    Ok(ExitCode::SUCCESS)
}

fn level(log: BpfLog) -> u8 {
    match log {
        BpfLog::Off => LOG_OFF,
        BpfLog::Info => Level::Info as u8,
        BpfLog::Debug => Level::Debug as u8,
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("ZT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}
