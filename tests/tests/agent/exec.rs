//! A command as an enrolled workload.

use std::{fs, net::SocketAddr, sync::Barrier, thread};

use zt_agent::{
    admin::{self, client, protocol::Enrol},
    source::quarantine::SpiffeIdText,
};
use zt_tests::{
    cgroup::Cgroup, netns::Netns, process::Running, report::Attempt, workload::probe_program,
};

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

#[test]
fn of_many_that_come_at_once_only_the_impossible_one_is_refused() {
    const MANY: usize = 32;
    let stage = Stage::running(Settings::default());
    let generation = || stage.status()["kernel"]["generation"].as_u64().unwrap();
    let before = generation();
    let socket = admin::socket(&stage.directory().join("run"));
    let name = |number| format!("many-{number}");
    let cgroups: Vec<Cgroup> = (0..MANY)
        .map(|number| stage.managed.child(&name(number)).unwrap())
        .collect();
    let all_at_once = Barrier::new(MANY + 1);
    let enrol = |cgroup: &Cgroup, name: &str| {
        let request = Enrol {
            spiffe_id: SpiffeIdText(format!("spiffe://t/{name}").parse().unwrap()),
            cgroup: cgroup.path().to_owned(),
            ports: Vec::new(),
            mode: None,
        };
        all_at_once.wait();
        client::enrol(&socket, request)
    };
    let (held, refused) = thread::scope(|scope| {
        // It is somebody else's.
        let impossible = scope.spawn(|| enrol(stage.client.cgroup(), "thief"));
        let enrol = &enrol;
        let many = (0..MANY).zip(&cgroups);
        let many: Vec<_> = many
            .map(|(number, cgroup)| scope.spawn(move || enrol(cgroup, &name(number))))
            .collect();
        let held = many.into_iter().map(|one| one.join().unwrap().unwrap());
        (held.collect::<Vec<_>>(), impossible.join().unwrap())
    });
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("spiffe://t/thief"), "{refused}");
    let rows = || {
        let status = stage.status();
        let maps = status["kernel"]["maps"].as_array().unwrap();
        let workloads = maps.iter().find(|map| map["name"] == "zt_workload_v1");
        workloads.unwrap()["rows"].as_u64().unwrap()
    };
    let with_all = rows();
    drop(held);
    wait(PATIENT, || rows() + MANY as u64 == with_all);
    // Steps are dear where there are many rules. One for each that came and went would
    // be twice as many as they are; on a busy machine they do not come all at once.
    let steps = generation() - before;
    let most = (MANY + MANY / 2) as u64;
    assert!(steps < most, "{steps} generations");
}

/// The service ends when its input is closed.
fn end(mut service: Running) {
    let (status, _) = service.finish(PATIENT).unwrap();
    assert!(status.success(), "{status}");
}
