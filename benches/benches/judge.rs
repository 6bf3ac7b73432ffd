//! One decision in user space.
//!
//! | case | compared with |
//! |---|---|
//! | judge | the others: what is left when everything is looked up |
//! | reference, 1 peer | judge: walking every rule instead |
//! | reference, 8,192 peers | the same with that many claims on addresses |

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use zt_benches::{FIRST_PORT, model, peer_address};
use zt_common::{
    codes::{Action, Direction, Protocol, Reason},
    policy::{Entry, Side},
    verdict::{Facts, judge},
};
use zt_reference::{Question, evaluate};

fn judged(criterion: &mut Criterion) {
    let facts = Facts {
        peer: 300,
        enforce: true,
        ..Facts::default()
    };
    let side = Side {
        rule: 1,
        action: Action::Allow as u8,
        ..Side::default()
    };
    let entry = Entry {
        now: side,
        would: side,
        ..Entry::default()
    };
    let class = Entry::default();
    criterion.bench_function("judge", |bencher| {
        bencher.iter(|| judge(black_box(&facts), black_box(&entry), black_box(&class)));
    });
}

fn reference(criterion: &mut Criterion) {
    let question = Question {
        local: Some(0),
        direction: Direction::Egress,
        remote: peer_address(0),
        remote_port: FIRST_PORT,
        local_port: 40_000,
        protocol: Protocol::Udp,
        now: 1,
        quarantined: Vec::new(),
    };
    for peers in [1, 8_192] {
        let model = model(7, peers).expect("a valid model");
        let answer = evaluate(&model, &question, true);
        assert_eq!(answer.reason, Reason::AllowedByRule);
        criterion.bench_function(&format!("reference/{peers}"), |bencher| {
            bencher.iter(|| evaluate(black_box(&model), black_box(&question), true));
        });
    }
}

criterion_group!(benches, judged, reference);
criterion_main!(benches);
