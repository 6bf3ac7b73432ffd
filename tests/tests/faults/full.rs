//! Maps and the ring have no room left.

use std::{fmt::Write, fs, net::IpAddr, time::Duration};

use aya::maps::{Map, MapData, PerCpuHashMap, PerCpuValues};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use zt_agent::{
    compile::Tables,
    explain::wanted,
    kernel::{counters::Counters, pins::Pins, view::View},
};
use zt_common::state::CountKey;
use zt_tests::agent::save;

use crate::{
    beside::{Beside, Usage},
    stage::{ALSO_OTHER, CLIENT, OTHER, PATIENT, POLICY, SERVER, Settings, Stage, both, wait},
};

/// The agent waits until files are still, and reads them.
const NOTICED: Duration = Duration::from_secs(8);

/// What there was, and more rows than the limits of the stage allow.
fn too_much(stage: &Stage, map: &str) {
    let rule = |to: &str, ports: &str| {
        format!("{POLICY}    - from: {{spiffe: {CLIENT}}}\n      to: [{{{to}, ports: {ports}}}]\n")
    };
    let server = format!("spiffe: {SERVER}");
    match map {
        "policy" => {
            let ports: Vec<String> = (1..2300).step_by(2).map(|p| p.to_string()).collect();
            stage.write_policy(&rule(&server, &format!("[{}]", ports.join(", "))));
        }
        "range" => {
            let ports = (1..60_000)
                .step_by(37)
                .map(|p| format!("\"{p}-{}\"", p + 20));
            let ports: Vec<String> = ports.collect();
            stage.write_policy(&rule(&server, &format!("[{}]", ports.join(", "))));
        }
        "cidr" => {
            let targets = (0..100).map(|n| format!("{{cidr: 198.51.{n}.0/24, ports: any}}"));
            let targets: Vec<String> = targets.collect();
            stage.write_policy(&format!(
                "{POLICY}    - from: {{spiffe: {CLIENT}}}\n      to: [{}]\n",
                targets.join(", ")
            ));
        }
        "address" => {
            let mut text = identities(stage) + "endpoints:\n";
            for n in 0..1100 {
                let (high, low) = (n / 250, n % 250);
                let _ = writeln!(
                    text,
                    "  - {{reserved: nodes, addresses: [10.77.{high}.{low}]}}"
                );
            }
            save(&stage.directory().join("identities.yaml"), &text).unwrap();
        }
        "workload" => {
            let mut text = identities(stage);
            for n in 0..300 {
                let cgroup = stage.managed.path().join(format!("many-{n}"));
                let _ = fs::create_dir(&cgroup);
                let cgroup = cgroup.display();
                let _ = writeln!(
                    text,
                    "  - {{spiffe: \"spiffe://t/many/{n}\", cgroup: {cgroup}}}"
                );
            }
            save(&stage.directory().join("identities.yaml"), &text).unwrap();
        }
        other => panic!("{other}"),
    }
}

fn identities(stage: &Stage) -> String {
    stage.write_identities();
    fs::read_to_string(stage.directory().join("identities.yaml")).unwrap()
}

fn tables(stage: &Stage) -> Tables {
    View::read(&Pins::new(stage.pins())).unwrap().tables
}

/// Every row of `before` is there.
#[track_caller]
fn has_all(now: &Tables, before: &Tables, map: &str) {
    macro_rules! check {
        ($($table:ident),+) => {
            $(for (key, row) in &before.$table {
                assert_eq!(now.$table.get(key), Some(row), "{map}: {}", stringify!($table));
            })+
        };
    }
    check!(policy, range, address, cidr, workload, interface);
}

#[track_caller]
fn says_that_it_is_full(stage: &Stage, map: &str) {
    let said = || stage.agent.readiness().unwrap();
    wait(NOTICED, || {
        let (code, text) = said();
        code == 503 && text.contains(&format!("the {map} table needs"))
    });
    println!("{map}: {}", said().1.trim());
}

#[test]
fn a_map_that_is_full_is_named_and_what_was_in_force_stays() {
    let mut stage = Stage::running(Settings::default());
    let before = Usage::of(&stage);
    let in_force = tables(&stage);
    let mut beside = Beside::start(&stage, Duration::from_secs(25));
    for map in ["policy", "range", "cidr", "address", "workload"] {
        too_much(&stage, map);
        says_that_it_is_full(&stage, map);
        has_all(&tables(&stage), &in_force, map);
        beside.holds();
        stage.write_policy(POLICY);
        stage.write_identities();
        wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
        assert_eq!(tables(&stage), in_force, "{map}");
    }
    beside.end(&mut stage);
    Usage::of(&stage).is_like(&before, 12 * 1024);
}

/// Whoever was allowed something and is not any more cannot wait until there is
/// room for what others are allowed.
#[test]
fn what_is_taken_away_is_gone_at_once_though_the_maps_are_full() {
    let stage = Stage::running(Settings::default());
    for map in ["policy", "range", "cidr", "address", "workload"] {
        stage.write_policy(&both());
        stage.write_identities();
        stage.until_other(true);
        wait(NOTICED, || stage.agent.readiness().unwrap().0 == 200);
        // The other client's rule goes with the change that does not fit, or
        // while one does not.
        too_much(&stage, map);
        if ["address", "workload"].contains(&map) {
            says_that_it_is_full(&stage, map);
            stage.write_policy(POLICY);
        }
        stage.until_other(false);
        says_that_it_is_full(&stage, map);
        stage.passes(&stage.client);
        let text = fs::read_to_string(stage.policy()).unwrap();
        let deny = ALSO_OTHER
            .replace(OTHER, CLIENT)
            .replace("- from", "- action: deny\n      from");
        stage.write_policy(&format!("{text}{deny}"));
        wait(NOTICED, || !stage.connect(&stage.client).connected);
        says_that_it_is_full(&stage, map);
    }
}

/// Who is gone is nobody, though others do not fit who come.
#[test]
fn the_address_of_who_is_gone_is_nobodys_though_the_maps_are_full() {
    let stage = Stage::running(Settings::default());
    stage.write_policy(&both());
    stage.until_other(true);
    for map in ["address", "workload"] {
        too_much(&stage, map);
        says_that_it_is_full(&stage, map);
        stage.until_other(true);
        let path = stage.directory().join("identities.yaml");
        let text = fs::read_to_string(&path).unwrap();
        let entries: Vec<&str> = text.split("  - spiffe: ").collect();
        let without: Vec<&str> = entries
            .into_iter()
            .filter(|entry| !entry.starts_with(OTHER))
            .collect();
        save(&path, &without.join("  - spiffe: ")).unwrap();
        let address = IpAddr::from(stage.network.ipv4(11));
        wait(NOTICED, || {
            let rows = tables(&stage).address;
            !rows.keys().any(|key| wanted::address(&key.ip) == address)
        });
        stage.until_other(false);
        stage.passes(&stage.client);
        stage.write_identities();
        stage.until_other(true);
    }
}

#[test]
fn a_full_counter_map_changes_no_verdict_and_says_how_many_it_missed() {
    let stage = Stage::running(Settings::default());
    let pins = Pins::new(stage.pins());
    // Everything but the pairs that were counted already.
    let map = MapData::from_pin(pins.map("zt_count_v1")).unwrap();
    let mut map: PerCpuHashMap<MapData, CountKey, u64> =
        Map::PerCpuHashMap(map).try_into().unwrap();
    let cpus = aya::util::nr_cpus().unwrap();
    let mut filled = 0;
    for source in 100_000.. {
        let key = CountKey {
            source,
            ..CountKey::default()
        };
        let nothing = PerCpuValues::try_from(vec![0; cpus]).unwrap();
        if map.insert(key, nothing, 0).is_err() {
            break;
        }
        filled += 1;
    }
    assert!(filled > 1000, "{filled}");
    for _ in 0..3 {
        stage.passes(&stage.client);
        stage.is_denied(&stage.other);
    }
    let counters = Counters::open(&pins).unwrap();
    let totals = counters.totals().unwrap();
    assert!(totals.uncounted > 0, "{totals:?}");
    let counted: u64 = counters.counts().unwrap().values().sum();
    assert_eq!(counted + totals.uncounted, totals.decisions);
    // The trail is none the poorer for it.
    wait(PATIENT, || {
        let trail = &stage.status()["agent"]["trail"];
        ["recorded", "pending", "unwritten"]
            .iter()
            .map(|name| trail[*name].as_u64().unwrap())
            .sum::<u64>()
            == counters.totals().unwrap().decisions
    });
}

/// An agent that is stopped reads no events; the kernel decides without it.
#[test]
fn a_ring_that_nobody_reads_fills_up_and_costs_only_records() {
    let mut stage = Stage::running(Settings {
        fold_seconds: 0,
        ..Settings::default()
    });
    let counters = Counters::open(&Pins::new(stage.pins())).unwrap();
    let before = Usage::of(&stage);
    let pid = Pid::from_raw(stage.agent.pid().unwrap().cast_signed());
    let mut beside = Beside::start(&stage, Duration::from_secs(10));
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut floods = 0;
    while counters.totals().unwrap().lost_ring == 0 {
        floods += 1;
        assert!(floods < 30, "the ring does not fill up");
        let to = stage.to();
        let run = Duration::from_millis(1000);
        let flood = |_| {
            stage
                .other
                .tcp_loop(to, run, Duration::ZERO, PATIENT)
                .unwrap()
        };
        let loops: Vec<_> = (0..2).map(flood).collect();
        for one in loops {
            assert_eq!(one.summary().unwrap().ok, 0);
        }
    }
    beside.holds();
    stage.passes(&stage.client);
    stage.is_denied(&stage.other);
    kill(pid, Signal::SIGCONT).unwrap();
    beside.end(&mut stage);
    wait(NOTICED, || {
        stage.metric("zt_audit_lost_total", &["ring-full"]) > 0.0
    });
    stage.agent.stop().unwrap();
    let totals = counters.totals().unwrap();
    let sum = |kind: &str| -> u64 {
        let records = stage.records();
        let counts = records.iter().filter(|record| record["kind"] == kind);
        counts.map(|record| record["count"].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("decision") + sum("loss"), totals.decisions);
    stage.tell(&["audit", "verify"]);
    stage.agent.start().unwrap();
    Usage::of(&stage).is_like(&before, 24 * 1024);
}
