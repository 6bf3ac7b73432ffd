//! Several workloads and strangers in one network namespace, over loopback.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use zt_tests::{Workload, agent::save, stay::Staying};

use crate::{
    scene::SOON,
    stage::{Settings, Stage, wait},
};

const POLICY: &str = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata: {name: core}
spec:
  rules:
    - from: [{spiffe: spiffe://t/caller}, {spiffe: spiffe://t/neighbour}]
      to: [{spiffe: spiffe://t/callee, ports: any}]
";

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn write_identities(stage: &Stage, callers: &[&Workload], callee: &Workload) {
    let mut text = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n".to_owned();
    for caller in callers {
        let (name, cgroup) = (caller.name(), caller.cgroup().path().display());
        text += &format!("  - {{spiffe: spiffe://t/{name}, cgroup: {cgroup}}}\n");
    }
    let cgroup = callee.cgroup().path().display();
    text += &format!(
        "  - {{spiffe: spiffe://t/callee, cgroup: {cgroup}, addresses: [127.0.0.1, \"::1\"], ports: [7001, 7002, 7003]}}\n"
    );
    save(&stage.directory().join("identities.yaml"), &text).unwrap();
}

#[track_caller]
fn was_aborted(end: &Staying) {
    let ended = end.ended(SOON).unwrap();
    assert_eq!(ended.errno.as_deref(), Some("ECONNABORTED"), "{ended:?}");
}

#[test]
fn the_end_of_an_enrolment_cuts_both_ends_and_nobody_elses() {
    let mut stage = Stage::new(Settings::default());
    let netns = Arc::new(stage.sandbox.netns("shared").unwrap());
    let outside = stage.sandbox.cgroup().child("outside").unwrap();
    let workload = |name: &str| {
        let cgroup = stage.managed.child(name).unwrap();
        Workload::sharing(name, cgroup, Some(netns.clone()))
    };
    let (caller, neighbour, callee) = (
        workload("caller"),
        workload("neighbour"),
        workload("callee"),
    );
    // A cgroup below an enrolled one is its own.
    let below = Workload::sharing(
        "below",
        caller.cgroup().child("below").unwrap(),
        Some(netns.clone()),
    );
    let stranger = Workload::sharing("stranger", outside, Some(netns.clone()));
    write_identities(&stage, &[&caller, &neighbour], &callee);
    stage.write_policy(POLICY);
    stage.agent.start().unwrap();

    let heard = [7001, 7002, 7003].map(|port| callee.hear(loopback(port)).unwrap());
    let strangers = stranger.hear(loopback(7100)).unwrap();
    let first = caller.stay(loopback(7001), None).unwrap();
    let deeper = below.stay(loopback(7001), None).unwrap();
    let heard_six = callee.hear("[::1]:7001".parse().unwrap()).unwrap();
    let six = caller.stay("[::1]:7001".parse().unwrap(), None).unwrap();
    let mapped = "[::ffff:127.0.0.1]:7001".parse().unwrap();
    let mapped = caller.stay(mapped, None).unwrap();
    let allowed = neighbour.stay(loopback(7002), None).unwrap();
    let by_host = stranger.stay(loopback(7003), None).unwrap();
    let foreign = stranger.stay(loopback(7100), None).unwrap();

    write_identities(&stage, &[&neighbour], &callee);
    for end in [&first, &deeper, &six, &mapped, &heard[0], &heard_six] {
        was_aborted(end);
    }
    wait(SOON, || heard[0].all_ended().unwrap().len() == 3);
    let cut = |cause: &str| stage.metric("zt_connections_cut_total", &[cause]);
    // The callers' ends are nobody's now, and nobody may reach the callee's.
    assert_eq!((cut("unenrolled"), cut("no-policy")), (4.0, 4.0));

    std::thread::sleep(Duration::from_millis(300));
    for (server, client) in [
        (&heard[1], allowed),
        (&heard[2], by_host),
        (&strangers, foreign),
    ] {
        assert_eq!(server.all_ended().unwrap(), []);
        assert_eq!(client.finish().unwrap().errno, None);
    }
}

/// Ending them must keep nobody waiting, and end.
#[test]
fn thousands_of_connections_are_cut_while_the_agent_works_on() {
    const MANY: usize = 1500;
    let mut stage = Stage::new(Settings::default());
    let netns = Arc::new(stage.sandbox.netns("shared").unwrap());
    let workload = |name: &str| {
        let cgroup = stage.managed.child(name).unwrap();
        Workload::sharing(name, cgroup, Some(netns.clone()))
    };
    let (caller, neighbour, callee) = (
        workload("caller"),
        workload("neighbour"),
        workload("callee"),
    );
    write_identities(&stage, &[&caller, &neighbour], &callee);
    stage.write_policy(POLICY);
    stage.agent.start().unwrap();
    let _heard = callee.hear(loopback(7001)).unwrap();
    let mut crowd = caller.crowd(loopback(7001), MANY).unwrap();
    let mut allowed = neighbour.crowd(loopback(7001), MANY).unwrap();
    assert_eq!(
        (crowd.open().unwrap(), allowed.open().unwrap()),
        (MANY, MANY)
    );

    let since = Instant::now();
    write_identities(&stage, &[&neighbour], &callee);
    let cut = || stage.metric("zt_connections_cut_total", &[]);
    wait(SOON, || cut() > 0.0);
    let first = since.elapsed();
    // Whatever else is asked is done meanwhile.
    let asked = Instant::now();
    let generation = stage.metric("zt_generation", &[]);
    stage.write_policy(&POLICY.replace("any", "[1, 7001]"));
    wait(SOON, || stage.metric("zt_generation", &[]) > generation);
    let answered = asked.elapsed();
    wait(SOON * 5, || cut() == (2 * MANY) as f64);
    let last = since.elapsed();
    println!(
        "{} ends: the first cut after {first:?}, the last after {last:?}; a change of policy meanwhile took {answered:?}",
        2 * MANY
    );
    assert_eq!((crowd.open().unwrap(), allowed.open().unwrap()), (0, MANY));
}
