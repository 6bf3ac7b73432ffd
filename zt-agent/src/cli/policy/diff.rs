//! `zt-agent policy diff`

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::files;
use crate::{
    cli::{
        Global,
        output::{self, Output, Paint},
        settings,
    },
    diff::{self, TablesDiff},
    explain::{
        changes::{self, Kind, Line},
        names::Words,
        said, wanted,
    },
    kernel::view::View,
};

#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// Files, and directories of files [default: the configured ones]
    pub paths: Vec<PathBuf>,
    /// Whole SPIFFE IDs
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    pub output: Output,
}

pub fn run(global: &Global, args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let config = settings::load(global)?;
    settings::require_root()?;
    let set = files::load(&files::paths(&args.paths, &config))?;
    let view = View::read(&settings::pins(&config))?;
    let model = files::model(&view, &config, set.policies)?;
    let (compiled, numbers) =
        wanted::compile(&model, &view.numbers).context("these policies cannot be compiled")?;
    let rules = TablesDiff {
        policy: diff::Change::between(&view.tables.policy, &compiled.tables.policy),
        range: diff::Change::between(&view.tables.range, &compiled.tables.range),
        ..TablesDiff::default()
    };
    let report = Report {
        generation: view.generation,
        lines: changes::between(&view.tables, &compiled.tables),
        narrows: diff::narrows(&rules, false),
        words: Words::new(&numbers, args.full || args.output.is_json()),
    };
    if args.output.is_json() {
        output::json(&report.as_json())?;
    } else {
        output::text(&report.render(Paint::of_stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Report {
    generation: u32,
    lines: Vec<Line>,
    narrows: bool,
    words: Words,
}

impl Report {
    fn count(&self, kind: Kind) -> usize {
        self.lines.iter().filter(|line| line.kind() == kind).count()
    }

    fn render(&self, paint: Paint) -> String {
        if self.lines.is_empty() {
            return format!("no change: generation {} says the same\n", self.generation);
        }
        let mut out = String::new();
        for line in &self.lines {
            let text = line.text(&self.words);
            let shown = match line.kind() {
                Kind::Added => paint.good(&format!("+ {text}")),
                Kind::Removed => paint.bad(&format!("- {text}")),
                Kind::Changed => paint.doubtful(&format!("~ {text}")),
            };
            out += &shown;
            out.push('\n');
        }
        out += &format!(
            "\n{} added, {} removed, {} changed, compared with generation {}\n",
            self.count(Kind::Added),
            self.count(Kind::Removed),
            self.count(Kind::Changed),
            self.generation
        );
        if self.narrows {
            out += "it takes permissions away: flows that are open are decided again with their next packet\n";
        }
        out
    }

    fn as_json(&self) -> Value {
        json!({
            "generation": self.generation,
            "narrows": self.narrows,
            "changes": self.lines.iter().map(|line| self.line_json(line)).collect::<Vec<_>>(),
        })
    }

    fn line_json(&self, line: &Line) -> Value {
        let kind = match line.kind() {
            Kind::Added => "added",
            Kind::Removed => "removed",
            Kind::Changed => "changed",
        };
        let side = |side: &zt_common::policy::Side| {
            json!({
                "action": changes::action(side),
                "rule": self.words.rule(side.rule),
                "deadline_boottime_ns": (side.deadline != 0).then_some(side.deadline),
            })
        };
        json!({
            "change": kind,
            "source": self.words.identity(line.pair.source),
            "destination": self.words.identity(line.pair.destination),
            "ports": said::ports(&line.ports, line.pair.protocol),
            "before": side(&line.before),
            "after": side(&line.after),
            "audit_only": line.audit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::said::Pair;
    use zt_common::policy::Side;

    fn line(before: (u8, u32), after: (u8, u32)) -> Line {
        let side = |(action, rule)| Side {
            action,
            rule,
            ..Side::default()
        };
        Line {
            pair: Pair {
                source: 1,
                destination: 4,
                protocol: 17,
            },
            ports: 53..=53,
            before: side(before),
            after: side(after),
            audit: false,
        }
    }

    fn report(lines: Vec<Line>) -> Report {
        Report {
            generation: 7,
            lines,
            narrows: true,
            words: Words::default(),
        }
    }

    #[test]
    fn changes_are_told_in_words_and_counted() {
        let lines = vec![
            line((0, 0), (1, 3)),
            line((1, 3), (0, 0)),
            line((1, 3), (2, 4)),
        ];
        assert_eq!(
            report(lines).render(Paint(false)),
            "+ allow host → world 53/udp (rule number 3)\n\
             - allow host → world 53/udp (rule number 3)\n\
             ~ deny host → world 53/udp (rule number 4; was allow by rule number 3)\n\
             \n1 added, 1 removed, 1 changed, compared with generation 7\n\
             it takes permissions away: flows that are open are decided again with their next packet\n"
        );
    }

    #[test]
    fn no_change_is_said() {
        assert_eq!(
            report(vec![]).render(Paint(false)),
            "no change: generation 7 says the same\n"
        );
        assert_eq!(report(vec![]).as_json()["changes"], json!([]));
    }
}
