//! `zt-agent run`

use std::{net::SocketAddr, process::ExitCode};

use aya_log::Level;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::{Global, settings};
use crate::{agent, document::Config, kernel::load::LOG_OFF};

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// What the kernel programs log about each decision; slow
    #[arg(long, value_enum, default_value_t)]
    bpf_log: BpfLog,
    /// How the agent logs, to standard error; ZT_LOG filters (for example
    /// ZT_LOG=debug)
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Where metrics and health are, instead of the configuration's `listen`
    #[arg(long, value_name = "ADDRESS", env = "ZT_LISTEN")]
    listen: Option<SocketAddr>,
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
    let config = args.applied_to(settings::load(global)?);
    log_to_stderr(args.bpf_log, args.log_format);
    agent::run(config, level(args.bpf_log))?;
    Ok(ExitCode::SUCCESS)
}

impl RunArgs {
    fn applied_to(&self, config: Config) -> Config {
        Config {
            listen: self.listen.unwrap_or(config.listen),
            ..config
        }
    }
}

fn level(log: BpfLog) -> u8 {
    match log {
        BpfLog::Off => LOG_OFF,
        BpfLog::Info => Level::Info as u8,
        BpfLog::Debug => Level::Debug as u8,
    }
}

/// `ZT_LOG` filters, `info` by default. The loader's own log is left out of
/// `debug` (write `aya_obj=debug` to see it), and what the kernel programs log
/// is not filtered again.
fn filter(bpf_log: BpfLog, wanted: Option<&str>) -> EnvFilter {
    let programs = match bpf_log {
        BpfLog::Off => "off",
        BpfLog::Info => "info",
        BpfLog::Debug => "debug",
    };
    let wanted = wanted.filter(|text| !text.is_empty()).unwrap_or("info");
    EnvFilter::new(format!("aya=info,aya_obj=info,zt_ebpf={programs},{wanted}"))
}

/// As `run` does by default.
pub(super) fn log() {
    log_to_stderr(BpfLog::default(), LogFormat::default());
}

fn log_to_stderr(bpf_log: BpfLog, format: LogFormat) {
    let wanted = std::env::var("ZT_LOG").ok();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(bpf_log, wanted.as_deref()))
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn listen(arguments: &[&str]) -> Option<SocketAddr> {
        let line = ["run"].iter().chain(arguments);
        let line = Line::try_parse_from(line).ok()?;
        Some(line.run.applied_to(Config::default()).listen)
    }

    #[test]
    fn an_address_on_the_command_line_is_listened_on() {
        assert_eq!(listen(&[]), Some(Config::default().listen));
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 8055));
        assert_eq!(listen(&["--listen", "0.0.0.0:8055"]), Some(everywhere));
        assert_eq!(listen(&["--listen", "8055"]), None);
    }
}
