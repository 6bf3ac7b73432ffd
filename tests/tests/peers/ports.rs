//! Port ranges that overlap.

use std::{cell::RefCell, collections::BTreeSet, ops::RangeInclusive};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use zt_agent::compile::lookup;
use zt_common::codes::{Action, Protocol};
use zt_tests::{
    node::identity,
    pool::Lease,
    test_run::{Asker, Packet, Transport},
};

use crate::lab::Lab;

/// A rule from `a` to `b`.
#[derive(Clone, Debug)]
struct Rule {
    denies: bool,
    /// Empty: any.
    ranges: Vec<RangeInclusive<u16>>,
}

impl Rule {
    fn covers(&self, port: u16) -> bool {
        self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(&port))
    }

    fn yaml(&self) -> String {
        let action = if self.denies { "deny" } else { "allow" };
        let ranges = self.ranges.iter().map(|range| {
            let (low, high) = (range.start(), range.end());
            if low == high {
                low.to_string()
            } else {
                format!("\"{low}-{high}\"")
            }
        });
        let ranges: Vec<String> = ranges.collect();
        let ports = if ranges.is_empty() {
            "any".to_owned()
        } else {
            format!("[{}]", ranges.join(", "))
        };
        format!(
            "{{action: {action}, from: {{spiffe: \"{}\"}}, to: [{{spiffe: \"{}\", ports: {ports}, protocol: UDP}}]}}",
            identity("a"),
            identity("b")
        )
    }
}

/// Rule by rule, port by port: any denial, then any allow.
fn allowed(rules: &[Rule], port: u16) -> bool {
    let covers = |denies| {
        rules
            .iter()
            .any(|rule| rule.denies == denies && rule.covers(port))
    };
    !covers(true) && covers(false)
}

/// Ends at which ranges meet, nest and just miss each other.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        prop::sample::select(
            &[
                1u16, 2, 79, 80, 81, 1023, 1024, 1025, 32767, 32768, 65534, 65535
            ][..]
        ),
        1000..1040u16,
        1..=65535u16,
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let range = (port(), port()).prop_map(|(one, two)| one.min(two)..=one.max(two));
    (
        prop::bool::weighted(0.35),
        prop::collection::vec(range, 0..4),
    )
        .prop_map(|(denies, ranges)| Rule { denies, ranges })
}

/// Every end of every range, and its neighbours.
fn ends(rules: &[Rule]) -> BTreeSet<u16> {
    let ends = rules.iter().flat_map(|rule| &rule.ranges);
    let ends = ends.flat_map(|range| [*range.start(), *range.end()]);
    let around = ends.flat_map(|end| [end.saturating_sub(1), end, end.saturating_add(1)]);
    let all = around.chain([1, 53, 1010, 1024, 40_000, 65535]);
    all.filter(|port| *port != 0).collect()
}

struct Kernel {
    node: Lease,
    a: Asker,
    egress: std::path::PathBuf,
    lab: Lab,
    /// A flow of its own for every packet.
    next_port: u16,
}

impl Kernel {
    fn new() -> Self {
        let lab = Lab::new();
        let node = Lease::take(&lab.sandbox).unwrap();
        Self {
            a: Asker::start(&lab.a).unwrap(),
            egress: node.pin_program("zt_egress").unwrap(),
            node,
            lab,
            next_port: 1,
        }
    }

    /// Which of the ports the programs let a datagram of `a` go to.
    fn lets_pass(&mut self, ports: &BTreeSet<u16>) -> Vec<(u16, bool)> {
        self.next_port = self.next_port % 60_000 + 1;
        let packet = |port: &u16| Packet {
            source: Lab::ips(10)[0],
            destination: Lab::ips(20)[0],
            source_port: self.next_port,
            destination_port: *port,
            transport: Transport::Udp,
        };
        let packets: Vec<Packet> = ports.iter().map(packet).collect();
        let ran = self.a.run_all(&self.egress, &packets, 1).unwrap();
        let returned = ran.iter().map(|ran| ran.returned != 0);
        ports.iter().copied().zip(returned).collect()
    }
}

/// CVE-2024-52529: where port ranges of several rules overlapped, one of them
/// was applied and the others were not. Here every port is decided as if the
/// rules were read one by one; asked of the programs in the kernel.
#[test]
fn cve_2024_52529_overlapping_port_ranges_are_all_enforced() {
    let kernel = RefCell::new(Kernel::new());
    let config = Config {
        cases: 60,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let (mut passed, mut asked) = (0, 0);
    let run = |rules: Vec<Rule>| {
        let kernel = &mut *kernel.borrow_mut();
        let text: Vec<String> = rules.iter().map(Rule::yaml).collect();
        let world = kernel
            .lab
            .world()
            .rules(&format!("[{}]", text.join(", ")))
            .unwrap();
        kernel.node.apply(&world.model).unwrap();
        kernel.node.events();
        let (a, b) = (
            kernel.node.number(&identity("a")).unwrap(),
            kernel.node.number(&identity("b")).unwrap(),
        );
        for (port, passes) in kernel.lets_pass(&ends(&rules)) {
            let wanted = allowed(&rules, port);
            (passed, asked) = (passed + usize::from(passes), asked + 1);
            prop_assert_eq!(passes, wanted, "port {} in the kernel", port);
            let tables = kernel.node.store.current();
            let entry = lookup::entry(tables, a, b, Protocol::Udp as u8, port);
            let said = entry.now.action == Action::Allow as u8;
            prop_assert_eq!(said, wanted, "port {} in the tables", port);
        }
        Ok(())
    };
    let strategy = prop::collection::vec(rule(), 0..6);
    let mut runner = TestRunner::new(config);
    let run = RefCell::new(run);
    runner
        .run(&strategy, |rules| (run.borrow_mut())(rules))
        .unwrap();
    println!("{asked} ports asked, {passed} pass");
    assert!(passed > 100 && passed < asked - 100);
}

/// The shape of the advisory: a wide range that is allowed to one, and a narrow
/// one inside it of another rule; a denial inside an allow, and around one.
#[test]
fn cve_2024_52529_a_range_inside_another_hides_nothing() {
    let range = |denies, low, high| Rule {
        denies,
        ranges: vec![low..=high],
    };
    let cases = [
        vec![range(false, 1000, 2000), range(false, 1500, 1600)],
        vec![range(false, 1000, 2000), range(true, 1500, 1600)],
        vec![range(true, 1000, 2000), range(false, 1500, 1600)],
        vec![
            range(false, 1, 65535),
            range(true, 1024, 65535),
            range(false, 80, 80),
        ],
        vec![
            range(false, 1000, 1500),
            range(false, 1400, 2000),
            range(true, 1450, 1450),
        ],
    ];
    let mut kernel = Kernel::new();
    for rules in cases {
        let mut orders = vec![rules.clone()];
        orders.push(rules.into_iter().rev().collect());
        for rules in orders {
            let text: Vec<String> = rules.iter().map(Rule::yaml).collect();
            let world = kernel
                .lab
                .world()
                .rules(&format!("[{}]", text.join(", ")))
                .unwrap();
            kernel.node.apply(&world.model).unwrap();
            for (port, passes) in kernel.lets_pass(&ends(&rules)) {
                assert_eq!(passes, allowed(&rules, port), "port {port} of {rules:?}");
            }
        }
    }
}
