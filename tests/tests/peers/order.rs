//! The same facts, learned in another order.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    thread::sleep,
    time::{Duration, Instant},
};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use zt_agent::{
    kernel::{names::NameMaps, pins::Pins, trust::TrustMap, view::View},
    model::{Name, Numbers},
};
use zt_common::{
    address::Peer,
    identity::{Number, RESERVED},
    policy::{Entry, Side},
};
use zt_tests::{Workload, agent::save, cgroup::Cgroup, patience, workload::Udp};

use crate::stage::{CLIENT, OTHER, POLICY, SERVER, Settings, Stage};

/// For what must not answer.
const SHORT: Duration = Duration::from_millis(300);
const ORDERS: usize = 3;
const TOOL: &str = "spiffe://t/tool";

/// Something that the agent learns. `Passing` ones are learned and forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    Enrolled(&'static str),
    Endpoints,
    Policy(&'static str),
    Quarantine,
    BySocket,
    Passing(&'static str),
    Restart,
}

const FACTS: [Fact; 18] = [
    Fact::Enrolled("client"),
    Fact::Enrolled("other"),
    Fact::Enrolled("server"),
    Fact::Endpoints,
    Fact::Policy("core"),
    Fact::Policy("deny"),
    Fact::Policy("ranges"),
    // It names a group that another file declares: until both are there, none
    // of the policies that came with it counts.
    Fact::Policy("uses-group"),
    Fact::Policy("group"),
    Fact::Quarantine,
    Fact::BySocket,
    Fact::Restart,
    Fact::Passing("policy"),
    Fact::Passing("policy"),
    Fact::Passing("identity"),
    Fact::Passing("identity"),
    Fact::Passing("quarantine"),
    Fact::Passing("quarantine"),
];

fn policy(name: &str) -> String {
    let head = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  rules:\n"
    );
    match name {
        "core" => POLICY.to_owned(),
        "deny" => format!(
            "{head}    - {{action: deny, from: {{cidr: 10.89.9.8/29}}, to: [{{spiffe: \"{SERVER}\", ports: [9000]}}]}}\n    - {{from: {{spiffe: \"{CLIENT}\"}}, to: [{{cidr: 198.51.100.0/24, ports: any}}, {{reserved: world, ports: [443]}}]}}\n"
        ),
        "ranges" => format!(
            "{head}    - {{from: {{spiffe: \"spiffe://t/*\"}}, to: [{{spiffe: \"{SERVER}\", ports: [\"8000-8079\", \"8081-9999\"], protocol: [TCP, UDP]}}]}}\n"
        ),
        "uses-group" => format!(
            "{head}    - {{from: {{group: tools}}, to: [{{spiffe: \"{SERVER}\", ports: any, protocol: [TCP, UDP, ICMP]}}]}}\n"
        ),
        "group" => format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {{name: tools}}\nspec:\n  members: [{TOOL}, spiffe://t/elsewhere]\n"
        ),
        "passing" => format!(
            "{head}    - {{from: {{spiffe: \"spiffe://t/**\"}}, to: [{{spiffe: \"spiffe://t/**\", ports: any, protocol: [TCP, UDP, ICMP]}}]}}\n"
        ),
        other => panic!("{other}"),
    }
}

/// What the agent was told so far.
struct Told<'a> {
    stage: &'a RefCell<Stage>,
    tool: &'a Workload,
    /// Enrolled for a while.
    passing: &'a Cgroup,
    facts: BTreeSet<Fact>,
    enrolment: Option<UnixStream>,
}

impl Told<'_> {
    fn tell(&mut self, fact: Fact) {
        // The second time a passing one is forgotten.
        let new = self.facts.insert(fact) || !self.facts.remove(&fact);
        let stage = self.stage.borrow();
        match fact {
            Fact::Enrolled(_) | Fact::Endpoints | Fact::Passing("identity") => {
                drop(stage);
                self.write_identities();
            }
            Fact::Policy(name) => {
                save(
                    &stage.policies().join(format!("{name}.yaml")),
                    &policy(name),
                )
                .unwrap();
            }
            Fact::Passing("policy") if new => {
                save(&stage.policies().join("passing.yaml"), &policy("passing")).unwrap();
            }
            Fact::Passing("policy") => {
                fs::remove_file(stage.policies().join("passing.yaml")).unwrap();
            }
            Fact::Quarantine => {
                stage.tell(&["quarantine", "add", OTHER]);
            }
            Fact::Passing("quarantine") => {
                let verb = if new { "add" } else { "remove" };
                stage.tell(&["quarantine", verb, CLIENT]);
            }
            Fact::BySocket => {
                drop(stage);
                self.enrol();
            }
            Fact::Restart => {
                drop(stage);
                let mut stage = self.stage.borrow_mut();
                stage.agent.kill().unwrap();
                // It need not get ready: what is told may be half of something.
                stage.agent.launch().unwrap();
                drop(stage);
                if self.enrolment.is_some() {
                    self.enrol();
                }
            }
            Fact::Passing(other) => panic!("{other}"),
        }
    }

    fn write_identities(&self) {
        let stage = self.stage.borrow();
        let mut text = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n".to_owned();
        for (workload, name, host) in [
            (&stage.client, "client", 10),
            (&stage.other, "other", 11),
            (&stage.server, "server", 20),
        ] {
            if self.facts.contains(&Fact::Enrolled(name)) {
                let (cgroup, ip) = (workload.cgroup().path().display(), stage.network.ipv4(host));
                let netns = workload.netns().unwrap().name();
                text += &format!(
                    "  - {{spiffe: \"spiffe://t/{name}\", cgroup: {cgroup}, addresses: [{ip}], networkNamespace: {netns}}}\n"
                );
            }
        }
        if self.facts.contains(&Fact::Passing("identity")) {
            let cgroup = self.passing.path().display();
            text += &format!("  - {{spiffe: \"{OTHER}/passing\", cgroup: {cgroup}}}\n");
        }
        text = text.replace("workloads:\n", "workloads: \n");
        if text.ends_with("workloads: \n") {
            text = text.replace("workloads: \n", "workloads: []\n");
        }
        if self.facts.contains(&Fact::Endpoints) {
            text += "endpoints:\n  - {spiffe: \"spiffe://t/elsewhere\", addresses: [10.89.9.77]}\n  - {reserved: nodes, addresses: [10.89.9.78]}\n";
        }
        save(&stage.directory().join("identities.yaml"), &text).unwrap();
    }

    /// One request on the admin socket, as soon as it answers.
    fn ask(&self, request: &str) -> (UnixStream, String) {
        let path = self.stage.borrow().directory().join("run/agent.sock");
        let deadline = Instant::now() + patience::scaled(Duration::from_secs(30));
        loop {
            let try_it = || -> std::io::Result<(UnixStream, String)> {
                let mut stream = UnixStream::connect(&path)?;
                writeln!(stream, "{request}")?;
                let mut answer = String::new();
                BufReader::new(stream.try_clone()?).read_line(&mut answer)?;
                Ok((stream, answer))
            };
            match try_it() {
                Ok((stream, answer)) if answer.contains("\"ok\"") => return (stream, answer),
                other => assert!(Instant::now() < deadline, "{request}: {other:?}"),
            }
            sleep(Duration::from_millis(20));
        }
    }

    fn enrol(&mut self) {
        let cgroup = self.tool.cgroup().path().display();
        let request = format!(
            "{{\"enrol\":{{\"spiffe_id\":\"{TOOL}\",\"cgroup\":\"{cgroup}\",\"ports\":[\"7070/tcp\"]}}}}"
        );
        self.enrolment = Some(self.ask(&request).0);
    }
}

/// Numbers into names.
struct Words {
    identities: BTreeMap<Number, String>,
    rules: BTreeMap<u32, String>,
    numbers: Numbers,
}

impl Words {
    fn read(pins: &Pins) -> Self {
        let numbers = NameMaps::open(pins).unwrap().read().unwrap();
        let reserved = RESERVED
            .iter()
            .map(|(number, name)| (*number, (*name).to_owned()));
        let names = numbers
            .names()
            .map(|(name, number)| (number, name.to_string()));
        let rules = numbers
            .rules()
            .map(|(rule, number)| (number, rule.to_string()));
        Self {
            identities: reserved.chain(names).collect(),
            rules: rules.collect(),
            numbers: numbers.clone(),
        }
    }

    fn side(&self, side: &Side) -> String {
        let rule = if side.rule == 0 {
            "-"
        } else {
            &self.rules[&side.rule]
        };
        format!("{} {rule} {}", side.action, side.deadline)
    }

    fn entry(&self, entry: &Entry) -> String {
        let (now, would) = (self.side(&entry.now), self.side(&entry.would));
        format!("{now} | {would} | {}", entry.ranges)
    }

    fn peer(&self, peer: &Peer) -> String {
        let class = if peer.class == 0 {
            "-"
        } else {
            &self.identities[&peer.class]
        };
        let name = &self.identities[&peer.identity];
        format!(
            "{name} class {class} cgroup {} flags {}",
            peer.cgroup, peer.flags
        )
    }
}

/// Everything that the maps mean, without a number in it.
fn content(pins: &Pins) -> BTreeSet<String> {
    let (view, words) = (View::read(pins).unwrap(), Words::read(pins));
    let tables = &view.tables;
    let name = |number: Number| &words.identities[&number];
    let mut lines = BTreeSet::new();
    for (key, entry) in &tables.policy {
        let (from, to) = (name(key.source), name(key.destination));
        lines.insert(format!(
            "policy {from} {to} {}/{}: {}",
            key.port,
            key.protocol,
            words.entry(entry)
        ));
    }
    for (key, entry) in &tables.range {
        let (from, to) = (
            u32::from_be_bytes(key.source),
            u32::from_be_bytes(key.destination),
        );
        let port = u16::from_be_bytes(key.port);
        lines.insert(format!(
            "range {} {} {port}/{} {}: {}",
            name(from),
            name(to),
            key.prefix_len,
            key.protocol,
            words.entry(entry)
        ));
    }
    for (key, peer) in &tables.address {
        lines.insert(format!(
            "address {:?} {}/{}: {}",
            key.ip,
            key.port,
            key.protocol,
            words.peer(peer)
        ));
    }
    for (key, peer) in &tables.cidr {
        lines.insert(format!(
            "cidr {:?}/{}: {}",
            key.ip,
            key.prefix_len,
            words.peer(peer)
        ));
    }
    for (cgroup, workload) in &tables.workload {
        let who = name(workload.identity);
        lines.insert(format!(
            "workload {cgroup}: {who} {} {}",
            workload.flags, workload.netns
        ));
    }
    let trust = TrustMap::open(pins).unwrap();
    for (name, number) in words.numbers.names() {
        if trust.is_quarantined(number).unwrap() {
            lines.insert(format!("quarantined {name}"));
        }
    }
    lines
}

/// Who reaches whom, and what the caller sees.
fn verdicts(stage: &Stage, tool: &Workload) -> Vec<String> {
    let server = stage.to().ip();
    let mut seen = Vec::new();
    for from in [&stage.client, &stage.other, tool] {
        for port in [8080, 8050, 9000] {
            let tcp = from.tcp((server, port).into(), SHORT).unwrap();
            let udp = from.udp((server, port).into(), Udp::SendTo, SHORT).unwrap();
            for (protocol, attempt) in [("tcp", tcp), ("udp", udp)] {
                let outcome = attempt.errno.unwrap_or_default();
                seen.push(format!(
                    "{} {protocol}/{port}: {} {outcome}",
                    from.name(),
                    attempt.connected
                ));
            }
        }
    }
    seen
}

/// CVE-2024-42488: at a start, which of two events was handled first decided
/// what a pod was labelled as, and with it what was enforced. Here the maps and
/// the verdicts follow from what is true now, in whatever order it was learned,
/// with detours and with a restart anywhere in between.
#[test]
fn cve_2024_42488_the_order_of_events_does_not_matter() {
    let stage = Stage::new(Settings::default());
    // In the server's namespace, as a sidecar is: known by its cgroup alone.
    let tool = Workload::sharing(
        "tool",
        stage.managed.child("tool").unwrap(),
        stage.client.netns().cloned(),
    );
    let passing = stage.managed.child("passing").unwrap();
    let pins = Pins::new(stage.pins());
    let seed =
        std::env::var("ZT_SEED").map_or(std::process::id().into(), |seed| seed.parse().unwrap());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let stage = RefCell::new(stage);
    let mut first: Option<(BTreeSet<String>, Vec<String>)> = None;
    let mut numbers = BTreeSet::new();
    for round in 0..ORDERS {
        let shuffled = Just(FACTS.to_vec()).prop_shuffle();
        let order = shuffled.new_tree(&mut runner).unwrap().current();
        let pauses = prop::collection::vec(0..120u64, FACTS.len());
        let pauses = pauses.new_tree(&mut runner).unwrap().current();
        let mut told = Told {
            stage: &stage,
            tool: &tool,
            passing: &passing,
            facts: BTreeSet::new(),
            enrolment: None,
        };
        begin(&told);
        stage.borrow_mut().agent.start().unwrap();
        for (fact, pause) in order.iter().zip(pauses) {
            told.tell(*fact);
            sleep(Duration::from_millis(pause));
        }
        let _ = told.ask("{\"reload\":{}}");
        let names = NameMaps::open(&pins).unwrap().read().unwrap();
        numbers.insert(format!(
            "{:?}",
            names
                .names()
                .filter(|(name, _)| matches!(name, Name::Spiffe(_)))
                .collect::<Vec<_>>()
        ));
        let found = (content(&pins), verdicts(&stage.borrow(), &tool));
        match &first {
            None => first = Some(found),
            Some(first) => {
                let gone: Vec<_> = first.0.symmetric_difference(&found.0).collect();
                assert!(
                    gone.is_empty(),
                    "ZT_SEED={seed} round {round}: {gone:#?}\n{order:#?}"
                );
                assert_eq!(first.1, found.1, "ZT_SEED={seed} round {round}\n{order:#?}");
            }
        }
        drop(told);
        let mut stage = stage.borrow_mut();
        stage.agent.stop().unwrap();
        stage.tell(&["cleanup"]);
    }
    let (content, verdicts) = first.unwrap();
    println!(
        "seed {seed}: {} rows, numbers given {} ways, {verdicts:#?}",
        content.len(),
        numbers.len()
    );
    // The orders did differ where they may.
    assert!(numbers.len() > 1);
    let has = |text: &str| content.iter().any(|line| line.contains(text));
    assert!(has("quarantined spiffe://t/other") && has("cidr:198.51.100.0/24") && has("range "));
    assert!(!has("passing") && !has("quarantined spiffe://t/client"));
}

/// As before anything is known.
fn begin(told: &Told<'_>) {
    told.write_identities();
    let stage = told.stage.borrow();
    for file in fs::read_dir(stage.policies()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let _ = fs::remove_dir_all(stage.directory().join("state"));
    let _ = fs::remove_dir_all(stage.directory().join("run"));
}
