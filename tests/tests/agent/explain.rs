//! `policy explain` reads the kernel, and tells when it is not what the files say.

use std::process::Command;

use serde_json::Value;

use crate::stage::{CLIENT, OTHER, SERVER, Settings, Stage};

/// The exit code and the answer.
fn explain(stage: &Stage, from: &str) -> (i32, Value) {
    let answer = stage.ask(&[
        "policy", "explain", "--from", from, "--to", SERVER, "--port", "8080", "-o", "json",
    ]);
    let value = serde_json::from_str(&answer.output);
    (
        answer.code,
        value.unwrap_or_else(|error| panic!("{error}: {answer:?}")),
    )
}

fn text(stage: &Stage, from: &str) -> String {
    stage
        .ask(&[
            "policy", "explain", "--from", from, "--to", SERVER, "--port", "8080",
        ])
        .output
}

/// The decision at the caller's end.
fn egress(answer: &Value) -> &Value {
    let decisions = answer["decisions"].as_array().unwrap();
    let found = decisions
        .iter()
        .find(|decision| decision["direction"] == "egress");
    found.unwrap_or_else(|| panic!("{answer}"))
}

/// The words of the command that shows the row, with another verb.
fn row(answer: &Value, verb: &str) -> Vec<String> {
    let command = egress(answer)["look_up"].as_str().unwrap();
    let words = command
        .split(' ')
        .map(|word| if word == "lookup" { verb } else { word });
    words.map(str::to_owned).collect()
}

fn bpftool(words: &[String]) -> String {
    let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The bytes of a row's key.
fn key(answer: &Value) -> Vec<String> {
    let words = row(answer, "lookup");
    let start = words.iter().position(|word| word == "hex").unwrap() + 1;
    words[start..].to_vec()
}

/// The bytes of a row's value, which end with its key and four zeros.
fn value(answer: &Value) -> Vec<String> {
    let mut words = row(answer, "lookup");
    words.insert(1, "--json".to_owned());
    let shown: Value = serde_json::from_str(&bpftool(&words)).unwrap();
    let bytes = shown["value"].as_array().unwrap().iter();
    let bytes = bytes.map(|byte| byte.as_str().unwrap().trim_start_matches("0x").to_owned());
    bytes.collect()
}

/// A command that writes this value to the row of an answer.
fn update(answer: &Value, value: &[String]) -> Vec<String> {
    let words = ["value", "hex"].map(str::to_owned);
    [&row(answer, "update"), &words[..], value].concat()
}

#[test]
fn a_row_that_was_deleted_behind_the_agents_back_is_noticed() {
    let stage = Stage::running(Settings::default());
    let (code, before) = explain(&stage, CLIENT);
    assert_eq!(
        (code, &egress(&before)["in_sync"]),
        (0, &Value::Bool(true)),
        "{before}"
    );
    bpftool(&row(&before, "delete"));
    let (code, after) = explain(&stage, CLIENT);
    assert_eq!(
        (code, &egress(&after)["in_sync"]),
        (1, &Value::Bool(false)),
        "{after}"
    );
    assert!(text(&stage, CLIENT).contains("DIFFERS: the files want allow"));
    stage.is_denied(&stage.client);
}

#[test]
fn a_row_that_was_written_behind_the_agents_back_is_noticed() {
    let stage = Stage::running(Settings::default());
    let (code, before) = explain(&stage, OTHER);
    assert_eq!(
        (code, &egress(&before)["in_sync"]),
        (1, &Value::Bool(true)),
        "{before}"
    );
    let granted = explain(&stage, CLIENT).1;
    let mut grant = value(&granted);
    let at = grant.len() - 4 - key(&granted).len();
    assert_eq!(grant[at..grant.len() - 4], key(&granted));
    grant.splice(at..grant.len() - 4, key(&before));
    bpftool(&update(&before, &grant));
    let (code, after) = explain(&stage, OTHER);
    assert_eq!(
        (code, &egress(&after)["in_sync"]),
        (0, &Value::Bool(false)),
        "{after}"
    );
    assert!(text(&stage, OTHER).contains("DIFFERS: the files want default deny"));
    stage.passes(&stage.other);
}

/// The programs take such a row for another key's, and read nothing in it.
#[test]
fn a_row_whose_copy_of_the_key_was_altered_grants_nothing_and_is_repaired() {
    let mut stage = Stage::running(Settings::default());
    let (_, before) = explain(&stage, CLIENT);
    let mut grant = value(&before);
    let at = grant.len() - 4 - key(&before).len();
    assert_eq!(grant[at..grant.len() - 4], key(&before));
    grant.splice(at..grant.len() - 4, key(&explain(&stage, OTHER).1));
    bpftool(&update(&before, &grant));
    stage.is_denied(&stage.client);
    let (code, after) = explain(&stage, CLIENT);
    assert_eq!(
        (code, &egress(&after)["in_sync"]),
        (1, &Value::Bool(false)),
        "{after}"
    );
    stage.agent.kill().unwrap();
    stage.agent.start().unwrap();
    stage.passes(&stage.client);
}
