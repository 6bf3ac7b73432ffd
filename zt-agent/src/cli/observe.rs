//! `zt-agent observe`: decisions as they are made.

use std::{
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
};

use clap::ValueEnum;
use serde::Deserialize;

use super::{
    Global,
    output::{self, Output},
    settings,
};
use crate::{
    admin::{self, client::Connection, protocol::Request},
    document::text::printable,
};

#[derive(Debug, clap::Args)]
pub struct ObserveArgs {
    /// Only decisions with this verdict
    #[arg(long, value_enum)]
    verdict: Option<VerdictWord>,
    /// Only from this whole SPIFFE ID or reserved identity
    #[arg(long, value_name = "ID")]
    from: Option<String>,
    /// Only to this whole SPIFFE ID or reserved identity
    #[arg(long, value_name = "ID")]
    to: Option<String>,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VerdictWord {
    Allow,
    Deny,
    WouldDeny,
}

impl VerdictWord {
    const fn decision(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::WouldDeny => "WOULD_DENY",
        }
    }
}

/// The part of a record that a line shows.
#[derive(Clone, Debug, Deserialize)]
struct Shown {
    timestamp: String,
    decision: String,
    source: ShownEnd,
    destination: ShownEnd,
    policy_matched: Option<String>,
    direction: String,
    protocol: String,
    reason: String,
    hook: String,
    #[serde(default = "one")]
    count: u64,
    would: Option<ShownWould>,
}

const fn one() -> u64 {
    1
}

#[derive(Clone, Debug, Deserialize)]
struct ShownEnd {
    spiffe_id: Option<String>,
    identity: Option<String>,
    address: Option<IpAddr>,
    port: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
struct ShownWould {
    decision: String,
    policy_matched: Option<String>,
}

/// What a line of the stream is.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Lagged { lagged: u64 },
    Record(Box<Shown>),
}

/// # Errors
/// When the agent is not running, or hung up.
pub fn run(global: &Global, args: &ObserveArgs) -> anyhow::Result<ExitCode> {
    let config = settings::load(global)?;
    let socket = admin::socket(&config.runtime_directory);
    let mut connection = Connection::open(&socket, &Request::Observe {})?;
    match stream(&mut connection, args) {
        // `observe | head` ends when head has enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn stream(connection: &mut Connection, args: &ObserveArgs) -> anyhow::Result<()> {
    let style = Style(output::coloured());
    let mut out = io::stdout().lock();
    if !args.output.is_json() {
        writeln!(out, "{}", style.heading())?;
    }
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(line) = connection.line()? else {
            anyhow::bail!("the agent stopped; enforcement goes on without it");
        };
        match serde_json::from_str(&line)? {
            Line::Lagged { lagged } => missed(&mut out, &line, lagged, args.output)?,
            Line::Record(record) if args.wants(&record) => {
                if args.output.is_json() {
                    out.write_all(line.as_bytes())?;
                } else {
                    writeln!(out, "{}", style.line(&record))?;
                }
                left -= 1;
            }
            Line::Record(_) => continue,
        }
        out.flush()?;
    }
    Ok(())
}

fn missed(out: &mut impl Write, line: &str, count: u64, output: Output) -> io::Result<()> {
    if output.is_json() {
        return out.write_all(line.as_bytes());
    }
    writeln!(
        out,
        "… {count} decisions are not shown here: they came too fast (the audit trail has them)"
    )
}

impl ObserveArgs {
    fn wants(&self, record: &Shown) -> bool {
        let verdict = self.verdict.map(VerdictWord::decision);
        let name = |wanted: &Option<String>, end: &ShownEnd| {
            wanted.as_deref().is_none_or(|wanted| end.name() == wanted)
        };
        verdict.is_none_or(|verdict| verdict == record.decision)
            && name(&self.from, &record.source)
            && name(&self.to, &record.destination)
    }
}

impl ShownEnd {
    fn name(&self) -> &str {
        let name = self.spiffe_id.as_deref().or(self.identity.as_deref());
        name.unwrap_or("-")
    }

    /// The name, with the address where the name does not say enough.
    fn who(&self) -> String {
        let name = self.name();
        let short = name.strip_prefix("spiffe://").unwrap_or(name);
        match self.address {
            Some(ip) if self.spiffe_id.is_none() => format!("{} ({ip})", printable(short)),
            _ => printable(short),
        }
    }
}

/// Columns, coloured or not.
struct Style(bool);

impl Style {
    fn heading(&self) -> String {
        let text = format!(
            "{:<12} {:<10} {} → {}  {}",
            "TIME", "VERDICT", "SOURCE", "DESTINATION:PORT/PROTOCOL", "REASON, RULE"
        );
        self.paint("2", &text)
    }

    fn line(&self, record: &Shown) -> String {
        let (colour, word) = match record.decision.as_str() {
            "ALLOW" => ("32", "allow"),
            "DENY" => ("1;31", "DENY"),
            "WOULD_DENY" => ("33", "would deny"),
            other => ("35", other),
        };
        let verdict = self.paint(colour, &format!("{word:<10}"));
        let mut line = format!(
            "{} {verdict} {} → {}{}  {}",
            self.paint("2", &format!("{:<12}", clock(&record.timestamp))),
            record.source.who(),
            record.destination.who(),
            place(record),
            self.paint("36", &record.reason),
        );
        if let Some(rule) = &record.policy_matched {
            line += &format!("  {}", printable(rule));
        }
        line += &self.paint("2", &format!("  {} {}", record.direction, record.hook));
        if let Some(would) = &record.would {
            let rule = would.policy_matched.as_deref().unwrap_or("default deny");
            let text = format!("  in force: {} by {rule}", would.decision);
            line += &self.paint("33", &text);
        }
        if record.count > 1 {
            line += &format!("  ×{}", record.count);
        }
        line
    }

    fn paint(&self, code: &str, text: &str) -> String {
        let text = printable(text);
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text
        }
    }
}

/// `:443/TCP`
fn place(record: &Shown) -> String {
    match record.destination.port {
        Some(port) => format!(":{port}/{}", record.protocol),
        None => format!(" {}", record.protocol),
    }
}

/// The time of day, to the millisecond, in UTC.
fn clock(timestamp: &str) -> &str {
    timestamp
        .split_once('T')
        .and_then(|(_, time)| time.get(..12))
        .unwrap_or(timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"kind":"decision","timestamp":"2026-11-21T14:30:00.123456789Z",
        "decision":"DENY","source":{"spiffe_id":"spiffe://td/a","identity":null,"pod":null,"node":null,"port":4000},
        "destination":{"spiffe_id":null,"identity":"world","pod":null,"node":null,"address":"192.0.2.1","port":443},
        "policy_matched":null,"latency_us":1.0,"direction":"egress","protocol":"TCP","reason":"no-policy",
        "hook":"connect4","generation":1,"cpu":0,"sequence":1,"count":3}"#;

    fn record() -> Box<Shown> {
        match serde_json::from_str(RECORD).unwrap() {
            Line::Record(record) => record,
            Line::Lagged { .. } => panic!(),
        }
    }

    fn args() -> ObserveArgs {
        ObserveArgs {
            verdict: None,
            from: None,
            to: None,
            count: None,
            output: Output {
                output: output::Format::Text,
            },
        }
    }

    #[test]
    fn a_line_says_who_where_why_and_how_often() {
        assert_eq!(
            Style(false).line(&record()),
            "14:30:00.123 DENY       td/a → world (192.0.2.1):443/TCP  no-policy  egress connect4  ×3"
        );
        assert!(Style(true).line(&record()).contains("\x1b[1;31mDENY"));
    }

    #[test]
    fn filters_must_all_hold() {
        let record = record();
        let mut args = args();
        assert!(args.wants(&record));
        args.from = Some("spiffe://td/a".into());
        args.to = Some("world".into());
        args.verdict = Some(VerdictWord::Deny);
        assert!(args.wants(&record));
        args.verdict = Some(VerdictWord::Allow);
        assert!(!args.wants(&record));
        args.verdict = None;
        args.to = Some("host".into());
        assert!(!args.wants(&record));
    }

    #[test]
    fn a_lag_is_told() {
        let line: Line = serde_json::from_str(r#"{"lagged":5}"#).unwrap();
        assert!(matches!(line, Line::Lagged { lagged: 5 }));
    }
}
