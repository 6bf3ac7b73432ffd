//! Many changes, and many workloads.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use aya::maps::MapInfo;
use zt_agent::{
    kernel::{names::NameMaps, pins::Pins, view::View},
    model::Endpoint,
};
use zt_tests::{
    Workload,
    cgroup::Cgroup,
    node::{allow, party},
    patience,
};

use crate::{
    beside::{Beside, Usage},
    lab::{Lab, PORT, SHORT},
    stage::{POLICY, SERVER, Settings, Stage, is_refused, wait},
};

/// Each waits for a grace period, 10 ms and more. `ZT_CHANGES=10000` makes as
/// many as that. An emulated machine makes fewer of everything.
const CHANGES: u32 = 2_000;

/// Descriptors of ours that are maps of this node. Others of this process have theirs.
fn own_descriptors(pins: &Pins) -> usize {
    let maps = fs::read_dir(pins.map("")).unwrap().flatten();
    let ids = maps.map(|map| MapInfo::from_pin(map.path()).unwrap().id());
    let ids: BTreeSet<u32> = ids.collect();
    assert!(ids.len() > 10, "{ids:?}");
    let infos = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    let is_one = |text: &String| {
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
        id.is_some_and(|id| ids.contains(&id.trim().parse().unwrap()))
    };
    texts.filter(is_one).count()
}

/// Every change has an identity and a policy of a name that was never there.
#[test]
fn thousands_of_changes_in_a_row_disturb_nothing_and_leave_nothing() {
    let changes = std::env::var("ZT_CHANGES")
        .map_or(CHANGES / patience::factor(), |text| text.parse().unwrap());
    let lab = Lab::new();
    let at = |host: u8| SocketAddr::from((Lab::ips(host)[0], PORT));
    let _b = lab.b.serve(&[at(20)], &[]).unwrap();
    let mut outside = lab.outside.serve(&[at(30)], &[]).unwrap();
    let fixed = allow("a", "b", "any", "TCP");
    let change = |n: u32| {
        let passing = format!("churn/{n}");
        let rule = allow("a", &passing, "[80]", "TCP");
        let mut world = lab
            .world()
            .claim(Endpoint {
                ip: "10.89.7.200".parse().unwrap(),
                party: party(&passing),
                cgroup: None,
                ports: None,
                target: None,
            })
            .rules(&format!("[{fixed}, {rule}]"))
            .unwrap();
        world.model.policies[0].name = format!("p-{n}").into();
        world
    };
    let mut node = lab.node(&change(0));
    node.keeper.spare = 200;
    let (limit, pause) = (Duration::from_secs(2), Duration::from_millis(5));
    let run = patience::scaled(Duration::from_secs(10));
    let mut held = lab.a.tcp_held(at(20), limit).unwrap();
    let good = lab.a.tcp_loop(at(20), run, pause, limit).unwrap();
    let bad = lab.a.tcp_loop(at(30), run, pause, limit).unwrap();
    let before = own_descriptors(&node.pins);
    assert!(before > 10, "{before}");
    let rows = |node: &zt_tests::node::Node| {
        let tables = node.store.read().unwrap();
        (
            tables.policy.len(),
            tables.address.len(),
            tables.workload.len(),
        )
    };
    let (before_rows, started) = (rows(&node), Instant::now());
    for n in 1..=changes {
        node.apply(&change(n).model).unwrap();
        if n % 20 == 0 {
            node.events();
        }
        if n % 500 == 0 {
            assert!(held.again().unwrap().replied(), "after {n} changes");
        }
    }
    let took = started.elapsed();
    let (good, bad) = (good.summary().unwrap(), bad.summary().unwrap());
    println!("{changes} changes in {took:?}; allowed {good:?}, forbidden {bad:?}");
    assert!(good.ok > 100 && good.failed.is_empty(), "{good:?}");
    assert!(bad.ok == 0 && bad.failed.keys().eq(["EPERM"]), "{bad:?}");
    assert!(outside.received().unwrap().is_empty());
    assert!(held.again().unwrap().replied());
    node.events();

    assert_eq!(own_descriptors(&node.pins), before);
    assert_eq!(rows(&node), before_rows);
    let named = NameMaps::open(&node.pins).unwrap().read().unwrap();
    let (names, rules) = (named.names().count(), named.rules().count());
    println!("{names} names and {rules} rules are left");
    assert!(names < 1000 && rules < 1000, "{names} {rules}");
    let totals = node.counters.totals().unwrap();
    let counted: u64 = node.counters.counts().unwrap().values().sum();
    assert_eq!(counted + totals.uncounted, totals.decisions);
}

#[test]
fn hundreds_of_saved_files_are_followed_and_the_last_word_counts() {
    let saves = 300 / patience::factor() as usize;
    let mut stage = Stage::running(Settings::default());
    let policy = |n: usize, other: bool| {
        let also = if other { crate::stage::ALSO_OTHER } else { "" };
        let text = POLICY.replace("name: core", &format!("name: core-{n}"));
        format!(
            "{text}    - {{from: {{spiffe: \"spiffe://t/churn/{n}\"}}, to: [{{spiffe: \"{SERVER}\", ports: [{}]}}]}}\n{also}",
            9000 + n
        )
    };
    stage.write_policy(&policy(0, false));
    sleep(Duration::from_millis(600));
    let before = Usage::of(&stage);
    let generation = View::read(&Pins::new(stage.pins())).unwrap().generation;
    let mut beside = Beside::start(&stage, Duration::from_secs(15));
    for n in 1..saves {
        stage.write_policy(&policy(n, false));
        sleep(Duration::from_millis(if n % 3 == 0 { 60 } else { 5 }));
        if n % 100 == 0 {
            beside.holds();
        }
    }
    beside.end(&mut stage);
    let now = View::read(&Pins::new(stage.pins())).unwrap().generation;
    println!("{saves} saved, {} changes put in force", now - generation);
    // A slow machine puts few of them in force, and the last in any case.
    assert!(now > generation + 3 / patience::factor());
    stage.write_policy(&policy(saves, true));
    stage.until_other(true);
    stage.write_policy(&policy(saves + 1, false));
    stage.until_other(false);
    Usage::of(&stage).is_like(&before, 16 * 1024);
}

/// A workload that is enrolled as long as its connection is open.
struct Passing {
    cgroup: Cgroup,
    _enrolment: UnixStream,
}

impl Passing {
    fn enrol(stage: &Stage, socket: &PathBuf, n: usize) -> Self {
        let kind = if n.is_multiple_of(2) { "good" } else { "bad" };
        let cgroup = stage.managed.child(&format!("passing-{n}")).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        let path = cgroup.path().display();
        writeln!(
            stream,
            "{{\"enrol\":{{\"spiffe_id\":\"spiffe://t/{kind}/{n}\",\"cgroup\":\"{path}\"}}}}"
        )
        .unwrap();
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("\"ok\""), "{n}: {answer}");
        Self {
            cgroup,
            _enrolment: stream,
        }
    }

    /// Hangs up, and the cgroup is gone.
    fn end(self) {
        self.cgroup.remove().unwrap();
    }
}

#[test]
fn a_thousand_workloads_come_and_go_in_a_minute() {
    const AT_ONCE: usize = 20;
    let workloads = 1000 / patience::factor() as usize;
    let mut stage = Stage::new(Settings::default());
    stage.write_policy(&format!(
        "{POLICY}    - {{from: {{spiffe: \"spiffe://t/good/*\"}}, to: [{{spiffe: \"{SERVER}\", ports: [8080]}}]}}\n"
    ));
    stage.agent.start().unwrap();
    let socket = stage.directory().join("run/agent.sock");
    let before = Usage::of(&stage);
    let rows = View::read(&Pins::new(stage.pins())).unwrap().tables;
    let mut beside = Beside::start(&stage, Duration::from_secs(20));
    let (mut here, started) = (VecDeque::new(), Instant::now());
    for n in 0..workloads {
        here.push_back(Passing::enrol(&stage, &socket, n));
        if n % 50 < 2 {
            // Enrolled is enforced.
            let cgroup = here.back().unwrap().cgroup.clone();
            let member = Workload::sharing("member", cgroup, stage.client.netns().cloned());
            let attempt = member.tcp(stage.to(), SHORT).unwrap();
            assert_eq!(attempt.replied(), n % 2 == 0, "{n}: {attempt:?}");
            assert!(n % 2 == 0 || is_refused(&attempt), "{n}: {attempt:?}");
        }
        if here.len() > AT_ONCE {
            here.pop_front().unwrap().end();
        }
        if n % 200 == 0 {
            beside.holds();
        }
    }
    here.into_iter().for_each(Passing::end);
    println!("{workloads} workloads in {:?}", started.elapsed());
    // What was enrolled is withdrawn.
    wait(Duration::from_secs(20), || {
        View::read(&Pins::new(stage.pins())).unwrap().tables == rows
    });
    beside.end(&mut stage);
    assert_eq!(stage.agent.readiness().unwrap().0, 200);
    Usage::of(&stage).is_like(&before, 24 * 1024);
    let named = NameMaps::open(&Pins::new(stage.pins()))
        .unwrap()
        .read()
        .unwrap();
    println!("{} names are left", named.names().count());
}
