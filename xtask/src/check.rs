//! What the dependencies may be, by the rules of `deny.toml`: licences, one
//! version of each crate, and where they come from.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use crate::step::Steps;
use crate::workspace;

pub fn dependencies(steps: &Steps) -> Result<()> {
    steps.check("Check the dependencies", || {
        let rules = Rules::load()?;
        let problems = rules.problems(&packages(&rules.graph.targets)?)?;
        if !problems.is_empty() {
            bail!("see deny.toml:\n  {}", problems.join("\n  "));
        }
        Ok(())
    })
}

/// The part of `deny.toml` that we know; a field that we do not is an error, or
/// somebody would rely on a rule that nothing enforces.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: Deny,
    skip: Vec<Skip>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skip {
    /// `name@version`; the version may be cut short, like a requirement's.
    #[serde(rename = "crate")]
    spec: String,
    #[expect(dead_code, reason = "for the reader, but it must be there")]
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Deny,
    unknown_git: Deny,
    allow_registry: Vec<String>,
}

/// The only level that we enforce.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Deny {
    Deny,
}

/// A package as `cargo metadata` tells it.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None: in the clone.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

fn packages(targets: &[String]) -> Result<Vec<Package>> {
    let mut metadata: Command = workspace::cargo("metadata");
    metadata.args(["--format-version", "1"]);
    for target in targets {
        metadata.args(["--filter-platform", target]);
    }
    let output = metadata.output().context("cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    Ok(metadata.packages)
}

impl Rules {
    fn load() -> Result<Self> {
        let path = workspace::root().join("deny.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    fn problems(&self, packages: &[Package]) -> Result<Vec<String>> {
        // Matched, so that a level added later cannot be forgotten here.
        let (Deny::Deny, Deny::Deny, Deny::Deny) = (
            &self.bans.multiple_versions,
            &self.sources.unknown_registry,
            &self.sources.unknown_git,
        );
        let mut problems = self.licenses.problems(packages)?;
        problems.extend(self.bans.problems(packages));
        problems.extend(self.sources.problems(packages));
        Ok(problems)
    }
}

impl Licenses {
    fn problems(&self, packages: &[Package]) -> Result<Vec<String>> {
        let allowed = self.allowed()?;
        let refused = packages.iter().filter(|package| {
            let expression = package.license.as_deref().unwrap_or_default();
            // LAX: older crates write "MIT/Apache-2.0".
            !Expression::parse_mode(expression, ParseMode::LAX).is_ok_and(|expression| {
                expression.evaluate(|wanted| allowed.iter().any(|one| one.satisfies(wanted)))
            })
        });
        Ok(refused
            .map(|package| {
                let license = package.license.as_deref().unwrap_or("no license");
                format!("{}: {license} is not allowed", package.name)
            })
            .collect())
    }

    fn allowed(&self) -> Result<Vec<Licensee>> {
        let parsed = self
            .allow
            .iter()
            .map(|name| Licensee::parse(name).with_context(|| format!("licenses.allow: {name}")));
        parsed.collect()
    }
}

impl Bans {
    fn problems(&self, packages: &[Package]) -> Vec<String> {
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for package in packages {
            versions
                .entry(&package.name)
                .or_default()
                .push(&package.version);
        }
        versions.retain(|_, versions| versions.len() > 1);
        let stale = self.skip.iter().filter(|skip| {
            !versions
                .iter()
                .any(|(name, versions)| versions.iter().any(|version| skip.covers(name, version)))
        });
        let mut problems: Vec<String> = stale
            .map(|skip| format!("bans.skip: {} is not needed any more", skip.spec))
            .collect();
        for (name, versions) in &versions {
            let left = versions
                .iter()
                .filter(|version| !self.skip.iter().any(|skip| skip.covers(name, version)));
            if left.count() > 1 {
                problems.push(format!("{name}: more than one version: {versions:?}"));
            }
        }
        problems
    }
}

impl Skip {
    fn covers(&self, name: &str, version: &str) -> bool {
        let Some((wanted, prefix)) = self.spec.split_once('@') else {
            return self.spec == name;
        };
        wanted == name
            && version
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl Sources {
    fn problems(&self, packages: &[Package]) -> Vec<String> {
        let unknown = packages.iter().filter_map(|package| {
            let source = package.source.as_deref()?;
            (!self.knows(source)).then(|| format!("{}: from {source}", package.name))
        });
        unknown.collect()
    }

    fn knows(&self, source: &str) -> bool {
        source.strip_prefix("registry+").is_some_and(|registry| {
            self.allow_registry
                .iter()
                .any(|allowed| allowed == registry)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

    fn rules() -> Rules {
        let mut rules = Rules::load().unwrap();
        rules.bans.skip.clear();
        rules
    }

    fn package(name: &str, version: &str, license: Option<&str>, source: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            license: license.map(Into::into),
            source: Some(source.into()),
        }
    }

    fn problems(rules: &Rules, packages: &[Package]) -> Vec<String> {
        rules.problems(packages).unwrap()
    }

    #[test]
    fn one_allowed_licence_of_several_is_enough() {
        for license in ["MIT", "GPL-3.0-only OR MIT", "Unlicense/MIT"] {
            let packages = [package("a", "1.0.0", Some(license), REGISTRY)];
            assert_eq!(problems(&rules(), &packages), [""; 0], "{license}");
        }
    }

    #[test]
    fn a_licence_that_is_not_allowed_or_missing_is_a_problem() {
        for license in [Some("GPL-3.0-only"), Some("MIT AND GPL-3.0-only"), None] {
            let packages = [package("a", "1.0.0", license, REGISTRY)];
            assert_eq!(problems(&rules(), &packages).len(), 1, "{license:?}");
        }
    }

    #[test]
    fn two_versions_are_a_problem_unless_one_is_skipped() {
        let packages = [
            package("a", "1.2.0", Some("MIT"), REGISTRY),
            package("a", "2.0.0", Some("MIT"), REGISTRY),
        ];
        let mut rules = rules();
        assert_eq!(problems(&rules, &packages).len(), 1);
        rules.bans.skip.push(Skip {
            spec: "a@1".into(),
            reason: "a test".into(),
        });
        assert_eq!(problems(&rules, &packages), [""; 0]);
        assert_eq!(problems(&rules, &packages[1..]).len(), 1, "stale skip");
    }

    #[test]
    fn other_registries_and_git_are_problems() {
        for source in ["git+https://example.com/a", "registry+https://example.com"] {
            let packages = [package("a", "1.0.0", Some("MIT"), source)];
            assert_eq!(problems(&rules(), &packages).len(), 1, "{source}");
        }
    }
}
