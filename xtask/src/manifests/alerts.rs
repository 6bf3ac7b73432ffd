//! promtool reads what Prometheus and Grafana will.

use std::fs;

use serde_json::{Value, json};

use super::tools::here::{output, promtool};
use super::yaml;
use crate::workspace;

const RULES: &str = "deploy/monitoring/prometheusrule.yaml";
const STORIES: &str = "deploy/monitoring/alerts-test.yaml";
const DASHBOARD: &str = "deploy/monitoring/dashboard.json";

/// Every rule of the file.
fn rules() -> Vec<Value> {
    let groups = yaml::file(RULES)[0]["spec"]["groups"].clone();
    let groups = groups.as_array().expect("a list").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("a list").clone());
    rules.collect()
}

#[test]
fn the_alerts_fire_when_they_should_and_only_then() {
    let Some(mut check) = promtool() else { return };
    let Some(mut test) = promtool() else { return };
    let directory = tempfile::tempdir().unwrap();
    // What the operator hands to Prometheus; JSON is YAML, too.
    let rules = directory.path().join("prometheusrule.json");
    fs::write(&rules, yaml::file(RULES)[0]["spec"].to_string()).unwrap();
    let stories = directory.path().join("alerts-test.yaml");
    fs::copy(workspace::root().join(STORIES), &stories).unwrap();
    output(
        check
            .args(["check", "rules", "--lint=all", "--lint-fatal"])
            .arg(&rules),
    );
    let told = output(test.args(["test", "rules"]).arg(&stories));
    assert!(told.contains("SUCCESS"), "{told}");
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do_and_is_tried() {
    let stories = yaml::file(STORIES)[0].to_string();
    let rules = rules();
    assert!(rules.len() > 10);
    for rule in rules {
        let name = rule["alert"].as_str().expect("it has a name");
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}"
        );
        for text in ["summary", "description"] {
            let text = rule["annotations"][text].as_str().unwrap_or_default();
            assert!(text.len() > 20, "{name}: {text:?}");
        }
        assert!(
            stories.contains(&format!("\"{name}\\\"")),
            "{name} in {STORIES}"
        );
    }
}

#[test]
fn the_dashboard_asks_in_promql() {
    let Some(mut promtool) = promtool() else {
        return;
    };
    let dashboard = &yaml::file(DASHBOARD)[0];
    let panels = dashboard["panels"].as_array().expect("a list");
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules: Vec<Value> = targets
        .map(|target| {
            let asked = target["expr"].as_str().unwrap();
            let asked = asked
                .replace("$__rate_interval", "5m")
                .replace("$__range", "1h");
            json!({"record": format!("r{}", asked.len()), "expr": asked})
        })
        .collect();
    assert!(rules.len() >= panels.len());
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    fs::write(file.path(), groups.to_string()).unwrap();
    output(
        promtool
            .args(["check", "rules", "--lint=none"])
            .arg(file.path()),
    );
}
