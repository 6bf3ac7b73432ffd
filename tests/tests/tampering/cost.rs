//! What looking costs, with maps as large as they get.

use std::time::{Duration, Instant};

use zt_agent::{
    compile::Tables,
    kernel::{held::Held, load::MapSizes},
};
use zt_common::policy::{Entry, PolicyKey, Side};
use zt_tests::{
    Sandbox,
    node::{Node, SIZES},
};

const ROWS: u32 = 65_536;

fn tables() -> Tables {
    let side = Side {
        rule: 1,
        action: 1,
        ..Side::default()
    };
    let entry = Entry {
        now: side,
        would: side,
        ..Entry::default()
    };
    let key = |n: u32| PolicyKey {
        source: 256 + n / 256,
        destination: 256 + n % 256,
        port: 80,
        protocol: 6,
        zero: 0,
    };
    Tables {
        policy: (0..ROWS).map(|n| (key(n), entry)).collect(),
        ..Tables::default()
    }
}

#[test]
fn reading_64k_rows_back_takes_a_moment() {
    let sandbox = Sandbox::new().unwrap();
    let sizes = MapSizes {
        policy: 131_072,
        ..SIZES
    };
    let mut node = Node::with_sizes(&sandbox, &sizes).unwrap();
    node.store.apply(tables(), false).unwrap();
    let _ = Held::open(&node.pins).unwrap();
    let quickest = |look: &mut dyn FnMut()| {
        let time = |_| {
            let start = Instant::now();
            look();
            start.elapsed()
        };
        (0..5).map(time).min().unwrap()
    };
    let control = quickest(&mut || assert!(!node.store.restore_control().unwrap()));
    let read = quickest(&mut || assert_eq!(node.store.read().unwrap().policy.len(), 65_536));
    let restore = quickest(&mut || assert_eq!(node.store.restore().unwrap(), 0));
    println!(
        "64k policy rows: control element {control:?}; reading all rows {read:?}; reading, comparing and a grace period {restore:?}"
    );
    assert!(restore < Duration::from_secs(5));
}
