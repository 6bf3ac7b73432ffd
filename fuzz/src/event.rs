//! Records of the event ring, and the audit records made from them.

use std::{net::Ipv6Addr, sync::Arc};

use ed25519_dalek::SigningKey;
use serde_json::Value;
use zt_agent::{
    audit::{
        Names, Record,
        account::Sums,
        chain::Chain,
        fold::Fold,
        intake::Intake,
        record::{Content, Time},
    },
    model::{Name, Numbers, RuleRef},
};
use zt_common::{
    codes::{Direction, Hook, Protocol, Reason, Verdict},
    event::Event,
};

/// Of a ring record, as the kernel's programs write it.
const LENGTH: usize = 80;
const BOOT_OFFSET: u64 = 1_700_000_000_000_000_000;
/// Nanoseconds of `CLOCK_BOOTTIME` in which equal decisions are folded.
const WINDOW: u64 = 1000;
const OPEN_FOLDS: usize = 4;

/// Takes `bytes` apart into ring records and checks what comes of them.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    let read = Event::from_bytes(bytes);
    assert_eq!(read.is_some(), bytes.len() == LENGTH, "{}", bytes.len());
    let names = names();
    let node: Arc<str> = "worker-3".into();
    let decisions: Vec<(Event, Arc<Record>)> = bytes
        .chunks_exact(LENGTH)
        .filter_map(|raw| {
            let event = Event::from_bytes(raw)?;
            check_event(raw, &event);
            let record = Record::of(&event, &names, &node, BOOT_OFFSET);
            check_record(&event, &record);
            Some((event, Arc::new(record)))
        })
        .collect();
    assert_eq!(decisions.len(), bytes.len() / LENGTH, "one was not read");
    check_trail(&decisions);
}

/// Each field stands where the kernel put it.
fn check_event(raw: &[u8], event: &Event) {
    let at = |from: usize, to: usize| {
        let mut value = [0; 8];
        value[..to - from].copy_from_slice(&raw[from..to]);
        // The ring is this machine's: little-endian, as the BPF target is.
        u64::from_le_bytes(value)
    };
    let fields: [(u64, u64); 19] = [
        (event.time, at(0, 8)),
        (event.sequence, at(8, 16)),
        (event.cgroup, at(16, 24)),
        (event.source.into(), at(40, 44)),
        (event.destination.into(), at(44, 48)),
        (event.generation.into(), at(48, 52)),
        (event.rule.into(), at(52, 56)),
        (event.would_rule.into(), at(56, 60)),
        (event.latency_ns.into(), at(60, 64)),
        (event.remote_port.into(), at(64, 66)),
        (event.local_port.into(), at(66, 68)),
        (event.cpu.into(), at(68, 70)),
        (event.protocol.into(), at(70, 71)),
        (event.hook.into(), at(71, 72)),
        (event.direction.into(), at(72, 73)),
        (event.verdict.into(), at(73, 74)),
        (event.reason.into(), at(74, 75)),
        (event.would_verdict.into(), at(75, 76)),
        (event.interface.into(), at(76, 80)),
    ];
    for (number, (field, bytes)) in (1..).zip(fields) {
        assert_eq!(field, bytes, "field {number}");
    }
    assert_eq!(event.remote, raw[24..40], "the other end's address");
}

/// The record is one line of JSON that says what the event says.
fn check_record(event: &Event, record: &Record) {
    let text = serde_json::to_string(record).unwrap_or_else(|error| panic!("{error}"));
    assert!(!text.contains('\n'), "more than a line: {text}");
    assert!(text.starts_with(r#"{"kind":"decision","#), "{text}");
    let json: Value = (serde_json::from_str(&text)).unwrap_or_else(|error| panic!("{error}"));
    let numbers = [
        ("sequence", event.sequence),
        ("generation", event.generation.into()),
        ("cpu", event.cpu.into()),
        ("count", 1),
    ];
    for (name, number) in numbers {
        assert_eq!(json[name].as_u64(), Some(number), "{name}: {text}");
    }
    let latency = json["latency_us"].as_f64();
    let expected = f64::from(event.latency_ns) / 1000.0;
    assert_eq!(latency, Some(expected), "{text}");
    let words = [
        (
            "decision",
            event.verdict,
            Verdict::from_code(event.verdict).map(Verdict::name),
        ),
        (
            "reason",
            event.reason,
            Reason::from_code(event.reason).map(Reason::name),
        ),
        (
            "hook",
            event.hook,
            Hook::from_code(event.hook).map(Hook::name),
        ),
        (
            "direction",
            event.direction,
            Direction::from_code(event.direction).map(Direction::name),
        ),
    ];
    for (name, code, word) in words {
        let unknown = format!("unknown-{code}");
        assert_eq!(json[name], word.unwrap_or(&unknown), "{text}");
    }
    check_ends(event, &json);
}

fn check_ends(event: &Event, json: &Value) {
    let (local, remote) = if event.direction == Direction::Ingress as u8 {
        ("destination", "source")
    } else {
        ("source", "destination")
    };
    for end in [local, remote] {
        let named = ["spiffe_id", "identity"].map(|name| !json[end][name].is_null());
        let is_named = named[0] != named[1] || end == remote && named == [false; 2];
        assert!(is_named, "who is the {end}? {json}");
    }
    assert_eq!(json[local]["cgroup"].as_u64(), Some(event.cgroup), "{json}");
    assert_eq!(json[local]["node"], "worker-3", "{json}");
    let has_ports = event.protocol != Protocol::Icmp as u8;
    let port = |port: u16| (has_ports && port != 0).then_some(u64::from(port));
    assert_eq!(
        json[local]["port"].as_u64(),
        port(event.local_port),
        "{json}"
    );
    assert_eq!(
        json[remote]["port"].as_u64(),
        port(event.remote_port),
        "{json}"
    );
    let ip = Ipv6Addr::from(event.remote);
    let address = (!ip.is_unspecified()).then(|| ip.to_canonical().to_string());
    assert_eq!(
        json[remote]["address"].as_str(),
        address.as_deref(),
        "{json}"
    );
}

/// Folded or not, the trail counts each decision once, and its lines chain.
fn check_trail(decisions: &[(Event, Arc<Record>)]) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let fold = Fold::new(WINDOW, OPEN_FOLDS);
    let (mut intake, rebase) = Intake::resume(fold, Sums::default(), 0, 0);
    assert_eq!(rebase, None);
    let mut chain = Chain::default().in_epoch(1);
    let mut offer = |content: Content| {
        let mut lines = Vec::new();
        let appended = chain.append(&content, &key, &mut lines);
        let next = appended.unwrap_or_else(|error| panic!("{error}"));
        let line = lines
            .strip_suffix(b"\n")
            .unwrap_or_else(|| panic!("{lines:?}"));
        assert_eq!(Chain::after(line), Ok(next), "{line:?}");
        chain = next;
        Ok(())
    };
    for (event, record) in decisions {
        intake.decision(event, record.timestamp, &mut || record.clone(), &mut offer);
        intake.tick(event.time, Time(event.time), &mut offer);
    }
    intake.flush(Time(0), &mut offer);
    assert_eq!(intake.pending(), 0, "still held");
    let recorded = usize::try_from(chain.sums.recorded);
    assert_eq!(recorded, Ok(decisions.len()), "decisions in the trail");
}

fn names() -> Names {
    let mut numbers = Numbers::default();
    for (spiffe, number) in [("spiffe://td/ns/a", 256), ("spiffe://td/ns/b", 257)] {
        let id = (spiffe.parse()).unwrap_or_else(|error| panic!("{spiffe}: {error}"));
        numbers.adopt(Name::Spiffe(id), number);
    }
    let policy = "a-policy".into();
    numbers.adopt_rule(RuleRef { policy, number: 2 }, 1);
    Names::new(&numbers, [(4711, "demo.slice/a".into())])
}
