//! `zt-agent audit`

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    Global,
    output::{self, Output, Paint},
    settings,
};
use crate::audit::{self, Report, key};

#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Check the chain, the totals and the signatures
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The trail's current file; the rotated ones beside it are checked, too
    /// [default: the configured one]
    pub file: Option<PathBuf>,
    /// Public key of the node that wrote it, PEM
    /// [default: the one in the state directory]
    #[arg(long, value_name = "PEM")]
    pub key: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

pub fn run(global: &Global, command: &AuditCommand) -> anyhow::Result<ExitCode> {
    match command {
        AuditCommand::Verify(args) => verify(global, args),
    }
}

fn verify(global: &Global, args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let (file, key) = match (&args.file, &args.key) {
        // A trail can be checked on another machine, without a configuration.
        (Some(file), Some(key)) => (file.clone(), key.clone()),
        (file, key) => {
            let config = settings::load(global)?;
            let state = key::public_path(&config.state_directory);
            (
                file.clone().unwrap_or(config.audit.file),
                key.clone().unwrap_or(state),
            )
        }
    };
    let verifying = key::read_public(&key)
        .context("no key to check with; name the node's public key with --key")?;
    let report = audit::verify_path(&file, &verifying)?;
    if args.output.is_json() {
        output::json(&as_json(&file, &report))?;
    } else {
        output::text(&render(&file, &report, Paint::of_stdout()))?;
    }
    Ok(ExitCode::from(u8::from(!report.is_sound())))
}

fn render(file: &Path, report: &Report, paint: Paint) -> String {
    let word = if report.is_sound() {
        paint.good("sound")
    } else {
        paint.bad("NOT SOUND")
    };
    format!("{}: {word}\n{report}\n", file.display())
}

fn as_json(file: &Path, report: &Report) -> Value {
    let lost: serde_json::Map<String, Value> = (report.lost.iter())
        .map(|(cause, count)| (cause.name().to_owned(), count.into()))
        .collect();
    let texts = |faults: &[audit::verify::Fault]| -> Vec<String> {
        faults.iter().map(ToString::to_string).collect()
    };
    json!({
        "file": file,
        "sound": report.is_sound(),
        "lines": report.lines,
        "starts_at": report.starts_at,
        "epochs": report.epochs,
        "recorded": report.recorded,
        "lost": lost,
        "checkpoints": report.checkpoints,
        "unsigned": report.unsigned,
        "torn_bytes": report.torn,
        "anomalies": texts(&report.anomalies),
        "repairs": report.repairs,
        "fault": report.fault.as_ref().map(ToString::to_string),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::verify::Fault;

    #[test]
    fn the_first_word_says_whether_it_is_sound() {
        let file = Path::new("/a.jsonl");
        let mut report = Report {
            lines: 3,
            recorded: 2,
            checkpoints: 1,
            ..Report::default()
        };
        assert_eq!(
            render(file, &report, Paint(false)),
            "/a.jsonl: sound\n3 lines, 2 decisions recorded\n\
             1 signed checkpoints; 0 records after the last signed checkpoint\nevery line fits\n"
        );
        report.fault = Some(Fault {
            file: file.into(),
            line: 2,
            what: "its hash is another".into(),
        });
        let text = render(file, &report, Paint(false));
        assert!(text.starts_with("/a.jsonl: NOT SOUND\n"), "{text}");
        assert!(text.ends_with("does not fit: /a.jsonl:2: its hash is another\n"));
        assert_eq!(as_json(file, &report)["sound"], false);
    }
}
