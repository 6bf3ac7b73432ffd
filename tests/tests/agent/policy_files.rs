//! What is written into the policy files is what is enforced, and what is wrong
//! in them changes nothing.

use std::fs;

use zt_tests::patience::scaled;

use crate::stage::{ALSO_OTHER, PATIENT, POLICY, PROMPT, Settings, Stage, both, wait};

/// `/readyz` answers 503 with this in a line; gives the whole answer.
#[track_caller]
fn is_unready(stage: &Stage, word: &str) -> String {
    let body = || {
        let (code, body) = stage.agent.readiness().unwrap();
        (code == 503 && body.contains(word)).then_some(body)
    };
    wait(PATIENT, || body().is_some());
    body().unwrap()
}

#[track_caller]
fn is_ready(stage: &Stage) {
    wait(PATIENT, || stage.agent.readiness().unwrap().0 == 200);
}

#[test]
fn an_edited_policy_is_in_force_within_a_second() {
    let stage = Stage::running(Settings::default());
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    stage.write_policy(&both());
    let took = stage.until_other(true);
    assert!(took < scaled(PROMPT), "allowing took {took:?}");
    stage.write_policy(POLICY);
    let took = stage.until_other(false);
    assert!(took < scaled(PROMPT), "denying took {took:?}");
    stage.passes(&stage.client);
}

#[test]
fn a_policy_with_an_error_changes_nothing_and_the_agent_says_where_it_is() {
    let stage = Stage::running(Settings::default());
    let also = ALSO_OTHER;
    let twice = format!("{}---\n{POLICY}", both());
    // Each would let the other client pass, were it not for the error.
    let errors = [
        (format!("{POLICY}{also}  rulez: []\n"), "core.yaml:14"),
        (
            format!("{POLICY}{}", also.replace("8080", "80800")),
            "core.yaml:13",
        ),
        (twice, "core.yaml:17"),
    ];
    for (text, place) in errors {
        stage.write_policy(&text);
        let said = is_unready(&stage, "core.yaml:");
        assert!(said.contains(place), "{place} is not in: {said}");
        stage.passes(&stage.client);
        stage.is_denied(&stage.other);
        let status = stage.status();
        assert_eq!(status["agent"]["ready"], false);
        stage.write_policy(POLICY);
        is_ready(&stage);
    }
    stage.write_policy(&both());
    stage.until_other(true);
}

#[test]
fn a_directory_that_vanishes_leaves_what_was_in_force() {
    let stage = Stage::running(Settings::default());
    let away = stage.directory().join("away");
    fs::rename(stage.policies(), &away).unwrap();
    is_unready(&stage, "policies");
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    fs::rename(&away, stage.policies()).unwrap();
    wait(PATIENT, || stage.agent.readiness().unwrap().0 == 200);
    stage.write_policy(&both());
    // The new directory is watched from the next look on, a second later.
    stage.until_other(true);
}
