//! From an event to a line of the audit trail, one of 10,000 identities after the
//! other.
//!
//! | case | compared with |
//! |---|---|
//! | record | the others: an event in words |
//! | record and fold | record: whether the same was told before; here never |
//! | encode | the same record as JSON |
//! | line | encode: with its numbers and hashes in the chain |

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use ed25519_dalek::SigningKey;
use zt_agent::{
    audit::{Names, Record, chain::Chain, fold::Fold, record::Content},
    model::{Name, Numbers, RuleRef},
};
use zt_common::{
    codes::{Direction, Hook, Protocol, Reason, Verdict},
    event::Event,
};
use zt_tests::node::identity;

const IDENTITIES: u32 = 10_000;
const RULE: u32 = 1;

/// Names, and events of one flow to each in turn.
fn known() -> (Names, impl Iterator<Item = Event>) {
    let mut numbers = Numbers::default();
    let mut number = |name: &str| {
        let name = Name::Spiffe(identity(name).parse().expect("an identity"));
        numbers.intern(&name).expect("enough numbers")
    };
    let source = number("client");
    let peers: Vec<u32> = (0..IDENTITIES)
        .map(|peer| number(&format!("peer/{peer}")))
        .collect();
    let rule = RuleRef {
        policy: "bench".into(),
        number: RULE,
    };
    let rule = numbers.intern_rule(&rule).expect("enough numbers");
    let names = Names::new(&numbers, [(7, Arc::from("services/client"))]);
    let event = move |(sequence, destination): (u64, u32)| Event {
        time: 1_000 * sequence,
        sequence,
        cgroup: 7,
        source,
        destination,
        generation: 3,
        rule,
        latency_ns: 1_500,
        remote_port: 443,
        local_port: 40_000,
        protocol: Protocol::Udp as u8,
        hook: Hook::Connect4 as u8,
        direction: Direction::Egress as u8,
        verdict: Verdict::Allow as u8,
        reason: Reason::AllowedByRule as u8,
        ..Event::default()
    };
    (names, (0..).zip(peers.into_iter().cycle()).map(event))
}

fn trail(criterion: &mut Criterion) {
    let (names, mut events) = known();
    let node: Arc<str> = "node-1".into();
    let record = |event: &Event| Arc::new(Record::of(event, &names, &node, 1));
    let mut next = || events.next().expect("they do not end");
    criterion.bench_function("record", |bencher| {
        bencher.iter(|| record(black_box(&next())));
    });
    // As many are open at once as there are identities.
    let mut fold = Fold::new(1_000 * u64::from(IDENTITIES), 65_536);
    criterion.bench_function("record and fold", |bencher| {
        bencher.iter(|| {
            let event = next();
            let record = record(&event);
            while fold.due(event.time).is_some() {}
            fold.passes(black_box(&event), &mut || record.clone())
        });
    });
    let content = Content::Decision(record(&next()));
    criterion.bench_function("encode", |bencher| {
        let mut text = Vec::new();
        bencher.iter(|| {
            text.clear();
            black_box(&content)
                .write_json(&mut text)
                .expect("plain data");
        });
    });
    let (key, mut chain) = (SigningKey::from_bytes(&[7; 32]), Chain::default());
    criterion.bench_function("line", |bencher| {
        let mut lines = Vec::new();
        bencher.iter(|| {
            lines.clear();
            let next = chain.append(black_box(&content), &key, &mut lines);
            chain = next.expect("plain data");
        });
    });
}

criterion_group!(benches, trail);
criterion_main!(benches);
