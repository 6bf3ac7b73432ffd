//! Sets with nobody in them.

use std::{fs, time::Duration};

use zt_agent::{
    compile,
    document::{SourceFile, policy},
    kernel::{pins::Pins, view::View},
    model::Numbers,
};
use zt_tests::node::World;

use crate::stage::{POLICY, Settings, Stage, is_refused, wait};

/// A start on a busy machine may take seconds.
const PATIENT: Duration = Duration::from_secs(15);

/// A policy whose only rule is this, and a group without members.
fn document(rule: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: empty}}\nspec:\n  rules:\n    - {rule}\n---\napiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {{name: nobody}}\nspec:\n  members: []\n"
    )
}

const SOMEBODY: &str = "[{spiffe: \"spiffe://t/**\", ports: any, protocol: [TCP, UDP, ICMP]}]";
const ANYBODY: &str = "[{spiffe: \"spiffe://t/**\"}, {reserved: world}, {reserved: host}]";

/// Rules in which some set is empty, in every way of writing that.
fn rules() -> Vec<String> {
    let mut rules = Vec::new();
    for from in [
        "[]",
        "{group: nobody}",
        "[{group: nobody}]",
        "{}",
        "[{}]",
        "null",
        "~",
        "\"\"",
        "{spiffe: \"\"}",
        "{spiffe: null}",
        "{spiffe: []}",
        "{group: \"\"}",
        "{group: null}",
        "{cidr: \"\"}",
        "{cidr: null}",
        "{reserved: \"\"}",
        "{reserved: null}",
        "[null]",
    ] {
        rules.push(format!("{{from: {from}, to: {SOMEBODY}}}"));
    }
    for to in [
        "[]",
        "[{group: nobody, ports: any}]",
        "[{ports: any}]",
        "[{}]",
        "null",
        "[null]",
        "{}",
        "[{spiffe: \"\", ports: any}]",
        "[{spiffe: null, ports: any}]",
        "[{group: null, ports: any}]",
        "[{cidr: null, ports: any}]",
        "[{spiffe: \"spiffe://t/**\", ports: []}]",
        "[{spiffe: \"spiffe://t/**\", ports: null}]",
        "[{spiffe: \"spiffe://t/**\"}]",
        "[{spiffe: \"spiffe://t/**\", ports: any, protocol: []}]",
        "[{spiffe: \"spiffe://t/**\", ports: any, protocol: null}]",
    ] {
        rules.push(format!("{{from: {ANYBODY}, to: {to}}}"));
    }
    rules.push(format!("{{to: {SOMEBODY}}}"));
    rules.push(format!("{{from: {ANYBODY}}}"));
    rules.push("{}".to_owned());
    rules
}

/// Rows that rules of a document give for a node with two workloads.
fn policy_rows(text: &str) -> Option<usize> {
    let policies = policy::parse(&[SourceFile::new("empty.yaml", text)]).ok()?;
    let mut model = World::default().model;
    for (number, name) in (1..).zip(["client", "server"]) {
        model.workloads.push(zt_agent::model::WorkloadSpec {
            identity: format!("spiffe://t/{name}").parse().unwrap(),
            cgroup: number,
            path: name.into(),
            mode: model.mode,
            raw_sockets: false,
            netns: None,
        });
    }
    model.policies = policies;
    let mut numbers = Numbers::default();
    let needs = compile::names(&model);
    for name in &needs.names {
        numbers.intern(name).unwrap();
    }
    for rule in &needs.rules {
        numbers.intern_rule(rule).unwrap();
    }
    let tables = compile::compile(&model, &numbers).unwrap().tables;
    let allow = zt_common::codes::Action::Allow as u8;
    let opens =
        |entry: &zt_common::policy::Entry| entry.now.action == allow || entry.would.action == allow;
    Some(
        tables
            .policy
            .values()
            .chain(tables.range.values())
            .filter(|e| opens(e))
            .count(),
    )
}

/// CVE-2025-64715: a set of addresses that resolved to none was left out when
/// the rule was written down, and a rule without the field allowed everybody.
/// Here a set without members selects nobody or is an error, however it is
/// written, and a field that is missing is never a wildcard.
#[test]
fn cve_2025_64715_an_empty_set_selects_nobody_or_is_refused() {
    let full = format!("{{from: {ANYBODY}, to: {SOMEBODY}}}");
    assert!(
        policy_rows(&document(&full)).unwrap() > 0,
        "the same rule with both"
    );
    let (mut accepted, mut refused) = (0, 0);
    for rule in rules() {
        match policy_rows(&document(&rule)) {
            None => refused += 1,
            Some(rows) => {
                assert_eq!(rows, 0, "{rule}");
                accepted += 1;
            }
        }
    }
    println!("{accepted} load and select nobody, {refused} are refused");
    assert!(accepted >= 4 && refused >= 10);
}

/// The same along the whole way: file, model, maps, the copy that is kept of
/// what was accepted, and a start from that copy.
#[test]
fn cve_2025_64715_an_empty_set_is_still_empty_after_a_restart_from_the_copy() {
    let mut stage = Stage::running(Settings::default());
    stage.passes(&stage.client);
    let accepted: Vec<String> = rules()
        .into_iter()
        .filter(|rule| policy_rows(&document(rule)).is_some())
        .collect();
    for (number, rule) in accepted.iter().enumerate() {
        let text = document(rule)
            .replace("name: empty", &format!("name: empty-{number}"))
            .replace("name: nobody", &format!("name: nobody-{number}"))
            .replace("group: nobody", &format!("group: nobody-{number}"));
        let path = stage.policies().join(format!("empty-{number}.yaml"));
        zt_tests::agent::save(&path, &text).unwrap();
    }
    // The only rule that allows anything goes.
    fs::remove_file(stage.policy()).unwrap();
    let denied = |stage: &Stage| {
        wait(PATIENT, || is_refused(&stage.connect(&stage.client)));
        for workload in [&stage.client, &stage.other] {
            stage.is_denied(workload);
        }
        let view = View::read(&Pins::new(stage.pins())).unwrap();
        assert!(view.tables.policy.is_empty() && view.tables.range.is_empty());
    };
    denied(&stage);
    let kept = stage.directory().join("state/accepted/policies");
    // It is written down a moment after it is enforced.
    let count = || fs::read_dir(&kept).map_or(0, Iterator::count);
    wait(PATIENT, || count() == accepted.len());
    for file in fs::read_dir(&kept).unwrap() {
        let kept = fs::read_to_string(file.unwrap().path()).unwrap();
        let written = fs::read_dir(stage.policies()).unwrap();
        let mut texts = written.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
        assert!(texts.any(|text| text == kept), "not verbatim: {kept}");
    }

    // What is in the files now cannot be used, and nothing is pinned any more.
    stage.agent.stop().unwrap();
    stage.tell(&["cleanup"]);
    stage.passes(&stage.client);
    stage.write_policy(&format!("{POLICY}nonsense: true\n"));
    // It never gets ready with such a file; it enforces all the same.
    stage.agent.launch().unwrap();
    denied(&stage);
    let said = stage.agent.log();
    assert!(
        said.contains("enforcing the files that were accepted last"),
        "{said}"
    );
}
