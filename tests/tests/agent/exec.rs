//! A command as an enrolled workload.

use std::{fs, net::SocketAddr};

use zt_tests::{netns::Netns, process::Running, report::Attempt, workload::probe_program};

use crate::stage::{PATIENT, POLICY, Settings, Stage, is_refused, wait};

const RULES: &str = "    - from: {spiffe: spiffe://t/run/friend}
      to:
        - spiffe: spiffe://t/run/service
          ports: [9000]
";

/// Cgroups of commands that exist.
fn cgroups(stage: &Stage) -> usize {
    let entries = fs::read_dir(stage.managed.path()).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("exec-")).count()
}

fn serve(stage: &Stage, netns: &Netns, to: SocketAddr) -> Running {
    let (probe, to) = (probe_program().unwrap(), to.to_string());
    let running = stage
        .agent
        .attend(
            &[
                "exec",
                "--as",
                "spiffe://t/run/service",
                "--port",
                "9000/tcp",
                "--",
                probe.to_str().unwrap(),
                "serve",
                "--name",
                "service",
                "--tcp",
                &to,
            ],
            Some(netns),
        )
        .unwrap();
    running.wait_for(PATIENT, |line| line == "ready").unwrap();
    running
}

fn connect(stage: &Stage, netns: &Netns, identity: &str, to: SocketAddr) -> Attempt {
    let (probe, to) = (probe_program().unwrap(), to.to_string());
    let command = [
        "exec",
        "--as",
        identity,
        "--",
        probe.to_str().unwrap(),
        "tcp",
        "--connect",
        &to,
        "--timeout-ms",
        "1000",
    ];
    let answer = stage.agent.ask_in(&command, Some(netns)).unwrap();
    serde_json::from_str(&answer.output).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

#[test]
fn the_exit_code_is_the_commands_and_its_cgroup_goes_with_it() {
    let stage = Stage::running(Settings::default());
    let run = |script| {
        stage.ask(&[
            "exec",
            "--as",
            "spiffe://t/run/tool",
            "--",
            "sh",
            "-c",
            script,
        ])
    };
    assert_eq!(run("exit 7").code, 7);
    assert_eq!(run("kill -TERM $$").code, 128 + 15);
    let answer = run("cat /proc/self/cgroup");
    assert_eq!(answer.code, 0);
    assert!(answer.output.contains("/services/exec-"), "{answer:?}");
    assert_eq!(cgroups(&stage), 0);
    let unknown = stage.ask(&["exec", "--as", "spiffe://t/run/tool", "--", "/nothing/here"]);
    assert_eq!(unknown.code, 3, "{unknown:?}");
    assert_eq!(cgroups(&stage), 0);
}

#[test]
fn two_commands_in_one_namespace_are_told_apart() {
    let mut stage = Stage::new(Settings::default());
    stage.write_policy(&format!("{POLICY}{RULES}"));
    stage.agent.start().unwrap();
    let netns = stage.sandbox.netns("host").unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], 9000));
    let service = serve(&stage, &netns, to);
    assert_eq!(cgroups(&stage), 1);
    let friend = connect(&stage, &netns, "spiffe://t/run/friend", to);
    assert!(friend.replied(), "{friend:?}");
    let stranger = connect(&stage, &netns, "spiffe://t/run/stranger", to);
    assert!(is_refused(&stranger), "{stranger:?}");
    end(service);
    wait(PATIENT, || cgroups(&stage) == 0);
}

/// The service ends when its input is closed.
fn end(mut service: Running) {
    let (status, _) = service.finish(PATIENT).unwrap();
    assert!(status.success(), "{status}");
}
