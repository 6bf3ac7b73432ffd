//! Numbers of identities and rules run out, and come back.

use std::{collections::BTreeSet, net::SocketAddr};

use zt_agent::{
    kernel::{keeper::Keeper, names::NameMaps, sys},
    model::{Endpoint, Name, Party, Service},
};
use zt_common::{
    codes::Protocol,
    identity::{FIRST_CLASS, RETIRED},
};
use zt_tests::node::{Node, World, allow, identity, party};

use crate::lab::{Lab, PATIENT, PORT, SHORT};

/// Somebody elsewhere.
fn elsewhere(name: &str, last: u8) -> Endpoint {
    Endpoint {
        ip: format!("10.89.7.{last}").parse().unwrap(),
        party: party(name),
        cgroup: None,
        ports: None,
        target: None,
    }
}

/// `a` is called `name`; both may talk to `b`, and `a` to somebody elsewhere.
fn called(lab: &Lab, name: &str) -> World {
    let mut world = World::default().enrol(&lab.b, &Lab::ips(20));
    world = world.enrol_cgroup(name, lab.a.cgroup(), None);
    for ip in Lab::ips(10) {
        world = world.claim(Endpoint {
            ip,
            party: Party::Workload(identity(name).parse().unwrap()),
            cgroup: lab.a.cgroup().id().ok(),
            ports: None,
            target: None,
        });
    }
    world
}

fn sums_hold(node: &Node) {
    let totals = node.counters.totals().unwrap();
    let counted: u64 = node.counters.counts().unwrap().values().sum();
    assert_eq!(counted + totals.uncounted, totals.decisions);
}

fn names_in_kernel(node: &Node) -> BTreeSet<String> {
    let numbers = NameMaps::open(&node.pins).unwrap().read().unwrap();
    numbers.names().map(|(name, _)| name.to_string()).collect()
}

/// The last numbers are taken: what is given from now on was somebody's.
fn exhaust(node: &mut Node, lab: &Lab) {
    let map = sys::get_pinned(&node.pins.map("zt_identity_v1")).unwrap();
    let name = zt_common::identity::Name { name: [1; 2048] };
    let fd = std::os::fd::AsFd::as_fd(&map);
    sys::map_update(fd, &(FIRST_CLASS - 1), &name).unwrap();
    node.keeper = Keeper::open(&node.pins, &lab.sandbox.directory()).unwrap();
}

#[test]
fn a_number_comes_back_when_its_events_were_read_and_its_counts_stay() {
    let lab = Lab::new();
    let to = SocketAddr::from((Lab::ips(20)[0], PORT));
    let _serving = lab.b.serve(&[to], &[]).unwrap();
    let rules = |name: &str| format!("[{}]", allow(name, "b", "any", "TCP"));
    let mut node = lab.node(&called(&lab, "first").rules(&rules("first")).unwrap());
    assert!(lab.a.tcp(to, PATIENT).unwrap().replied());
    let first = node.number(&identity("first")).unwrap();
    let rule = node.numbers.rules().next().unwrap().1;
    assert!(node.counters.hits(rule).unwrap() > 0);
    // Nobody is called so any more, and its events are still in the ring.
    let second = called(&lab, "second").rules(&rules("second")).unwrap();
    for name in ["second", "third"] {
        let rules = rules(name);
        node.apply(&called(&lab, name).rules(&rules).unwrap().model)
            .unwrap();
        assert!(lab.a.tcp(to, PATIENT).unwrap().replied());
    }
    assert!(!node.tidy().unwrap());
    assert!(node.keeper.waits());
    assert!(names_in_kernel(&node).contains(&identity("first")));
    sums_hold(&node);
    // Who is wanted again before that keeps the number.
    node.apply(&second.model).unwrap();
    let kept = node.number(&identity("second")).unwrap();
    node.events();
    node.apply(&called(&lab, "second").rules("[]").unwrap().model)
        .unwrap();
    assert!(!names_in_kernel(&node).contains(&identity("first")));
    assert_eq!(node.number(&identity("second")).unwrap(), kept);
    let counts = node.counters.counts().unwrap();
    assert!(
        counts
            .keys()
            .all(|key| key.source != first && key.destination != first)
    );
    assert!(counts.keys().any(|key| key.source == RETIRED));
    sums_hold(&node);
}

#[test]
fn a_number_that_is_somebody_elses_carries_nothing_over() {
    let lab = Lab::new();
    let to = SocketAddr::from((Lab::ips(20)[0], PORT));
    let mut serving = lab.b.serve(&[to], &[]).unwrap();
    let rules = format!("[{}]", allow("old", "b", "any", "TCP"));
    let mut node = lab.node(&called(&lab, "old").rules(&rules).unwrap());
    let mut held = lab.a.tcp_held(to, SHORT).unwrap();
    assert!(held.again().unwrap().replied());
    let old = node.number(&identity("old")).unwrap();
    // `a` becomes somebody who may nothing, and `old` is nobody.
    let after = |name: &str| {
        let rules = format!("[{}]", allow(name, "b", "any", "TCP"));
        let world = called(&lab, "new").claim(elsewhere(name, 99));
        world.rules(&rules).unwrap()
    };
    node.apply(&after("x").model).unwrap();
    exhaust(&mut node, &lab);
    node.events();
    // One after the other gets what is left, until one gets the number of old.
    let mut reused = None;
    for n in 0..8 {
        let name = format!("next-{n}");
        let world = after(&name);
        if node.apply(&world.model).is_err() {
            // None is left: as the agent does, what is dead is taken back first.
            for _ in 0..100 {
                if node.tidy().unwrap() {
                    break;
                }
                // Something was decided just before.
                node.events();
            }
            node.apply(&world.model).unwrap();
        }
        node.events();
        if node.number(&identity(&name)).unwrap() == old {
            reused = Some(name);
            break;
        }
    }
    let heir = reused.expect("the number is given again");
    let before = serving.received().unwrap().len();
    assert!(
        !held.again().unwrap().replied(),
        "the connection of old lives on"
    );
    assert!(!lab.a.tcp(to, SHORT).unwrap().connected);
    assert_eq!(serving.received().unwrap().len(), before);
    // The heir has the rights, and only they.
    node.apply(
        &called(&lab, &heir)
            .rules(&format!("[{}]", allow(&heir, "b", "any", "TCP")))
            .unwrap()
            .model,
    )
    .unwrap();
    assert_eq!(node.number(&identity(&heir)).unwrap(), old);
    assert!(lab.a.tcp(to, PATIENT).unwrap().replied());
    sums_hold(&node);
}

#[test]
fn who_is_quarantined_keeps_the_number() {
    let lab = Lab::new();
    let mut node = lab.node(&called(&lab, "bad"));
    let bad = node.number(&identity("bad")).unwrap();
    node.trust.set(bad, true).unwrap();
    for name in ["x", "y", "z"] {
        node.apply(&called(&lab, name).model).unwrap();
        node.events();
        node.tidy().unwrap();
    }
    assert!(names_in_kernel(&node).contains(&identity("bad")));
    assert!(!names_in_kernel(&node).contains(&identity("x")));
    node.apply(&called(&lab, "bad").model).unwrap();
    assert_eq!(node.number(&identity("bad")).unwrap(), bad);
    assert!(node.trust.is_quarantined(bad).unwrap());
    assert!(
        node.numbers
            .get(&Name::Spiffe(identity("x").parse().unwrap()))
            .is_none()
    );
}

/// Behind it are `bad` and somebody else, of whom there are many.
fn service(name: &str) -> Service {
    let members = [("bad", 80), (name, 80)].map(|(name, port)| (party(name), port));
    Service::new("ns/web", members).unwrap()
}

#[test]
fn a_service_that_was_cut_off_for_somebody_gives_its_number_back_and_the_heir_is_not() {
    let lab = Lab::new();
    let with = |name: &str| {
        let claim = Endpoint {
            party: Party::Service(service(name).into()),
            ports: Some(vec![(Protocol::Tcp, 80)]),
            ..elsewhere("bad", 99)
        };
        called(&lab, "bad").claim(claim)
    };
    let mut node = lab.node(&with("x"));
    let name = |of: &str| Name::Service(service(of).into());
    let bad = node.number(&identity("bad")).unwrap();
    let first = node.keeper.numbers().get(&name("x")).unwrap();
    for number in [bad, first] {
        node.trust.set(number, true).unwrap();
    }
    for other in ["y", "z"] {
        node.apply(&with(other).model).unwrap();
        node.events();
        node.tidy().unwrap();
    }
    assert_eq!(node.keeper.numbers().get(&name("x")), None);
    assert!(!names_in_kernel(&node).contains(&name("x").to_string()));
    assert!(!node.trust.is_quarantined(first).unwrap());
    // While it is there it is cut off, and so is he.
    let last = node.keeper.numbers().get(&name("z")).unwrap();
    node.trust.set(last, true).unwrap();
    node.events();
    node.tidy().unwrap();
    assert!(node.trust.is_quarantined(last).unwrap());
    assert!(node.trust.is_quarantined(bad).unwrap());
}

#[test]
fn nothing_is_forgotten_for_numbers_that_nobody_lacks() {
    let lab = Lab::new();
    let mut node = lab.node(&called(&lab, "first"));
    node.apply(&called(&lab, "second").model).unwrap();
    let needs = zt_agent::compile::names(&called(&lab, "third").model);
    let active = |node: &Node| node.store.control().generations().0;
    let before = active(&node);
    let make_room = |node: &mut Node| {
        let Node { keeper, store, .. } = node;
        keeper.make_room(store, &needs).unwrap()
    };
    assert!(!make_room(&mut node));
    assert!(!node.keeper.waits() && active(&node) == before);
    exhaust(&mut node, &lab);
    let mut back = false;
    for _ in 0..100 {
        back = make_room(&mut node);
        if back {
            break;
        }
        node.events();
    }
    assert!(back && active(&node) == before + 1);
    assert!(!names_in_kernel(&node).contains(&identity("first")));
    node.apply(&called(&lab, "third").model).unwrap();
}
