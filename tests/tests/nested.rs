//! A cgroup that is enrolled inside an enrolled one.

use std::{net::SocketAddr, time::Duration};

use zt_common::codes::{Reason, Verdict};
use zt_tests::{
    Sandbox, Workload,
    node::{World, allow},
    pool::Lease,
};

/// For what must answer.
const PATIENT: Duration = Duration::from_secs(2);

#[test]
fn an_open_connection_follows_its_cgroup_when_that_is_enrolled_inside_another() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(7).unwrap();
    let outer = sandbox.workload(&network, "outer", 10).unwrap();
    let server = sandbox.workload(&network, "server", 20).unwrap();
    let cgroup = outer.cgroup().child("inner").unwrap();
    let inner = Workload::sharing("inner", cgroup, outer.netns().cloned());
    let to = SocketAddr::new(network.ipv4(20).into(), 8080);
    let _serving = server.serve(&[to], &[]).unwrap();

    let world = |rules: &[&str]| {
        let rules: Vec<String> = rules
            .iter()
            .map(|from| allow(from, "server", "[8080]", "TCP"))
            .collect();
        World::default()
            .enrol(&outer, &[network.ipv4(10).into()])
            .enrol(&server, &[network.ipv4(20).into()])
            .rules(&format!("[{}]", rules.join(", ")))
            .unwrap()
    };
    for (rules, stays) in [(["outer", "inner"].as_slice(), true), (&["outer"], false)] {
        let before = world(rules);
        let mut node = Lease::take(&sandbox).unwrap();
        node.apply(&before.model).unwrap();
        node.attach().unwrap();
        let mut held = inner.tcp_held(to, PATIENT).unwrap();
        assert!(held.again().unwrap().replied());
        let _ = node.events();

        let both = before.enrol_cgroup("inner", inner.cgroup(), None);
        assert!(node.apply(&both.model).unwrap().narrows);
        assert_eq!(held.again().unwrap().replied(), stays, "{rules:?}");
        let source = node.number(&zt_tests::node::identity("inner")).unwrap();
        let decided = node.events().into_iter().find(|e| e.source == source);
        let decided = decided.expect("it was decided again, as the inner one");
        let expected = if stays { Verdict::Allow } else { Verdict::Deny };
        assert_eq!(decided.verdict, expected as u8, "{decided:?}");
        if !stays {
            assert_eq!(decided.reason, Reason::NoPolicy as u8);
        }
        drop((held, node));
    }
}
