//! What is said of metrics elsewhere is true of those that there are.

use std::collections::{BTreeMap, BTreeSet};

use super::{decisions, family::Spec, kernel, state};

const ALERTS: &str = include_str!("../../../deploy/monitoring/prometheusrule.yaml");
const ALERTS_TEST: &str = include_str!("../../../deploy/monitoring/alerts-test.yaml");
const DASHBOARD: &str = include_str!("../../../deploy/monitoring/dashboard.json");
const README: &str = include_str!("../../../README.md");

/// What a scrape adds, by deploy/monitoring/servicemonitor.yaml and by itself.
const OF_THE_TARGET: [&str; 4] = ["instance", "namespace", "node", "pod"];

/// The labels of every metric.
fn metrics() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let specs = [&decisions::ALL, &kernel::ALL, state::ALL].concat();
    let labels = |spec: Spec| (spec.name, spec.labels.iter().copied().collect());
    specs.into_iter().map(labels).collect()
}

/// Every word that begins like a metric, and the labels that are selected by.
fn mentioned(text: &str) -> Vec<(&str, Vec<&str>)> {
    let begins = |at: &usize| !text[..*at].ends_with(is_word);
    let starts = text.match_indices("zt_").map(|(at, _)| at).filter(begins);
    let one = |start: usize| {
        let rest = &text[start..];
        let (name, rest) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        (name, selected(rest))
    };
    starts.map(one).collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// `a` and `b` of `{a="1",b=~"2"}…`; the marks are escaped in JSON.
fn selected<'a>(rest: &'a str) -> Vec<&'a str> {
    let Some(inside) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else {
        return Vec::new();
    };
    let pairs = inside.0.split("\",").filter(|pair| !pair.is_empty());
    let label = |pair: &'a str| pair.split(['=', '!']).next().unwrap_or(pair).trim();
    pairs.map(label).collect()
}

#[test]
fn alerts_and_dashboard_ask_for_what_the_agent_exports() {
    let metrics = metrics();
    for (file, text) in [
        ("alerts", ALERTS),
        ("alerts-test", ALERTS_TEST),
        ("dashboard", DASHBOARD),
    ] {
        let mentioned = mentioned(text);
        assert!(mentioned.len() > 10, "{file}: {mentioned:?}");
        // The values of the label `map` are no metrics.
        let is_map = |name: &str| name.ends_with("_v1");
        for (name, labels) in mentioned.into_iter().filter(|(name, _)| !is_map(name)) {
            let has = metrics
                .get(name)
                .unwrap_or_else(|| panic!("{file}: there is no metric {name}"));
            for label in labels {
                assert!(
                    has.contains(label) || OF_THE_TARGET.contains(&label),
                    "{file}: {name} has no label {label}"
                );
            }
        }
    }
}

#[test]
fn the_readme_describes_every_metric_and_no_other() {
    let section = README.split("\n## Metrics\n").nth(1).expect("it has one");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `zt_"));
    let described: BTreeSet<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(mentioned)
        .map(|(name, _)| name)
        .collect();
    let metrics = metrics().into_keys().collect();
    assert_eq!(described, metrics);
}

#[test]
fn names_and_labels_are_found_in_expressions() {
    let text = r#"sum(rate(zt_a_total{x="1",y!~"2"}[5m])) / zt_b unless not_zt_c"#;
    let found = mentioned(text);
    assert_eq!(found, [("zt_a_total", vec!["x", "y"]), ("zt_b", vec![])]);
    assert_eq!(mentioned(r#"zt_a{x=\"1\",y=\"2\"}"#)[0].1, ["x", "y"]);
}
