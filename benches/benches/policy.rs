//! From a policy document to rows.
//!
//! | case | compared with |
//! |---|---|
//! | parse 1, 100, 1,000 rules | each other: it should be linear |
//! | compile 1, 1,000, 65,536 rows | each other, per row |

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use zt_agent::{
    compile,
    document::{SourceFile, policy},
    model::Numbers,
};
use zt_benches::{PORTS, document, model};

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for rules in [1, 100, 1_000] {
        let files = [SourceFile::new("bench.yaml", document(rules))];
        group.throughput(Throughput::Elements(rules as u64));
        group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
            bencher.iter(|| policy::parse(&files).expect("a valid document"));
        });
    }
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for rows in [1, 1_000, 65_536] {
        let peers = (rows / u32::from(PORTS)).max(1);
        let model = model(7, peers).expect("a valid model");
        let mut numbers = Numbers::default();
        let needs = compile::names(&model);
        for name in &needs.names {
            numbers.intern(name).expect("enough numbers");
        }
        for rule in &needs.rules {
            numbers.intern_rule(rule).expect("enough numbers");
        }
        group.throughput(Throughput::Elements(u64::from(rows)));
        group.bench_function(BenchmarkId::from_parameter(rows), |bencher| {
            bencher.iter(|| compile::compile(&model, &numbers).expect("a valid model"));
        });
    }
}

criterion_group!(benches, parse, compile);
criterion_main!(benches);
