//! `zt-agent policy check`

use std::{path::PathBuf, process::ExitCode};

use serde_json::{Value, json};

use super::files;
use crate::{
    cli::{
        Global,
        output::{self, Output, Paint},
        settings,
    },
    document::{Config, SourceFile, render},
    explain::wanted,
    model::{Numbers, Policy, Position, Problem, Severity},
    source::policies::{self, LoadError, PolicySet},
};

#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Files, and directories of files [default: the configured ones]
    pub paths: Vec<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

pub fn run(global: &Global, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let config = config(global, args)?;
    let report = check(&files::paths(&args.paths, &config), &config)?;
    if args.output.is_json() {
        output::json(&report.as_json())?;
    } else {
        output::text(&report.render(Paint::of_stdout()))?;
    }
    Ok(ExitCode::from(u8::from(report.errors() > 0)))
}

/// Files can be checked anywhere, also where no agent is configured.
fn config(global: &Global, args: &CheckArgs) -> anyhow::Result<Config> {
    if args.paths.is_empty() || global.config.exists() {
        return settings::load(global);
    }
    Ok(Config::default())
}

/// What was found.
#[derive(Debug, Default)]
struct Report {
    policies: usize,
    rules: usize,
    problems: Vec<Problem>,
    sources: Vec<SourceFile>,
    /// Why nobody looked whom the rules select.
    unselected: Option<String>,
}

fn check(paths: &[PathBuf], config: &Config) -> anyhow::Result<Report> {
    let set = match policies::load(paths) {
        Ok(set) => set,
        Err(LoadError::Problems { problems, sources }) => {
            return Ok(Report {
                problems,
                sources,
                ..Report::default()
            });
        }
        Err(LoadError::File(error)) => return Err(error.into()),
    };
    let mut report = Report {
        policies: set.policies.len(),
        rules: set.policies.iter().map(|policy| policy.rules.len()).sum(),
        ..Report::default()
    };
    report.select(set, config);
    Ok(report)
}

impl Report {
    /// Looks whom the rules select on this node.
    fn select(&mut self, set: PolicySet, config: &Config) {
        self.sources = set.sources;
        match warnings(set.policies, config) {
            Ok((warnings, identities)) => {
                self.problems.extend(warnings);
                self.sources.push(identities);
            }
            Err(error) => self.unselected = Some(format!("{error:#}")),
        }
    }

    fn errors(&self) -> usize {
        let error = |problem: &&Problem| problem.severity == Severity::Error;
        self.problems.iter().filter(error).count()
    }

    fn warnings(&self) -> usize {
        self.problems.len() - self.errors()
    }

    fn summary(&self) -> String {
        let verdicts = format!(
            "{}, {}",
            output::count(self.errors(), "error", "errors"),
            output::count(self.warnings(), "warning", "warnings")
        );
        if self.errors() > 0 {
            return verdicts;
        }
        let policies = output::count(self.policies, "policy", "policies");
        let rules = output::count(self.rules, "rule", "rules");
        format!("{policies}, {rules}, {verdicts}")
    }

    fn render(&self, paint: Paint) -> String {
        let mut out = String::new();
        for problem in &self.problems {
            let source = self.sources.iter().find(|s| s.name == problem.at.file);
            out.push_str(&render::problem(problem, source, paint.style()));
            out.push('\n');
        }
        if let Some(why) = &self.unselected {
            out.push_str(&format!(
                "{}: whom the rules select was not checked: {why}\n",
                paint.doubtful("note")
            ));
        }
        let summary = self.summary();
        let summary = match (self.errors(), self.warnings()) {
            (0, 0) => paint.good(&summary),
            (0, _) => paint.doubtful(&summary),
            _ => paint.bad(&summary),
        };
        out + &summary + "\n"
    }

    fn as_json(&self) -> Value {
        json!({
            "problems": self.problems.iter().map(problem_json).collect::<Vec<_>>(),
            "summary": {
                "policies": self.policies,
                "rules": self.rules,
                "errors": self.errors(),
                "warnings": self.warnings(),
                "selection_unchecked": self.unselected,
            },
        })
    }
}

fn problem_json(problem: &Problem) -> Value {
    let Position { file, line, column } = &problem.at;
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    json!({
        "severity": severity,
        "file": **file,
        "line": line,
        "column": column,
        "field": problem.field,
        "message": problem.message,
        "hint": problem.hint,
    })
}

fn warnings(policies: Vec<Policy>, config: &Config) -> anyhow::Result<(Vec<Problem>, SourceFile)> {
    let (identities, source) = settings::identities(config)?;
    let model = wanted::on_paper(&identities, config, policies);
    let (compiled, _) = wanted::compile(&model, &Numbers::default())?;
    Ok((compiled.warnings, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const POLICY: &str = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata: {name: p}
spec:
  rules:
    - from: {spiffe: \"spiffe://td/a\"}
      to:
        - spiffe: \"spiffe://td/nobody\"
          ports: [80]
";

    fn report(policy: &str, identities: Option<&str>) -> (TempDir, Report) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("p.yaml");
        std::fs::write(&path, policy).unwrap();
        let config = Config {
            identities: directory.path().join("identities.yaml"),
            ..Config::default()
        };
        if let Some(text) = identities {
            std::fs::write(&config.identities, text).unwrap();
        }
        let report = check(&[path], &config).unwrap();
        (directory, report)
    }

    fn text(directory: &TempDir, report: &Report) -> String {
        let name = format!("{}/", directory.path().display());
        report.render(Paint(false)).replace(&name, "")
    }

    #[test]
    fn a_rule_that_selects_nobody_is_a_warning_with_its_line() {
        let identities = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n  - {spiffe: \"spiffe://td/a\", cgroup: a}\n";
        let (directory, report) = report(POLICY, Some(identities));
        let text = text(&directory, &report);
        assert!(
            text.starts_with("p.yaml:8:11: warning: spec.rules[1].to[1]: "),
            "{text}"
        );
        assert!(
            text.contains("8 |         - spiffe: \"spiffe://td/nobody\"\n"),
            "{text}"
        );
        assert!(
            text.ends_with("\n1 policy, 1 rule, 0 errors, 1 warning\n"),
            "{text}"
        );
        assert_eq!(report.as_json()["summary"]["warnings"], 1);
    }

    #[test]
    fn without_an_identity_file_it_is_said_that_nobody_looked() {
        let (directory, report) = report(POLICY, None);
        let text = text(&directory, &report);
        assert!(
            text.starts_with("note: whom the rules select was not checked: identities.yaml"),
            "{text}"
        );
        assert!(
            text.ends_with("1 policy, 1 rule, 0 errors, 0 warnings\n"),
            "{text}"
        );
    }

    #[test]
    fn errors_are_counted_and_shown_with_a_caret() {
        let (directory, report) = report(&POLICY.replace("[80]", "[0]"), None);
        let text = text(&directory, &report);
        assert!(text.contains("p.yaml:9:19: error: "), "{text}");
        assert!(text.contains(" ^\n"), "{text}");
        assert!(text.ends_with("\n1 error, 0 warnings\n"), "{text}");
        assert_eq!(report.errors(), 1);
    }
}
