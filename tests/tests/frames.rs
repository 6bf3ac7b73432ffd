//! The programs on the host side of a workload's veth: whatever sends a frame,
//! it is decided there, once, and nothing leaves that is not the workload's own.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use zt_agent::{
    kernel::{frames::POINTS, tc},
    model::Endpoint,
};
use zt_common::{
    codes::{Hook, Reason, Verdict},
    event::Event,
};
use zt_tests::{
    Sandbox, Workload,
    actor::Actor,
    netns::Network,
    node::{World, allow, identity, party},
    pool::Lease,
    workload::Udp,
};

const PATIENT: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(300);
const PORT: u16 = 8080;

/// Two workloads behind veths, both covered, and one of another node.
struct Lab {
    a: Workload,
    b: Workload,
    /// Not governed here.
    remote: Workload,
    network: Network,
    sandbox: Sandbox,
}

impl Lab {
    fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        let network = sandbox.network(9).unwrap();
        let workload = |name, host| sandbox.workload(&network, name, host).unwrap();
        Self {
            a: workload("a", 10),
            b: workload("b", 20),
            remote: workload("remote", 30),
            network,
            sandbox,
        }
    }

    fn ip(&self, host: u8) -> IpAddr {
        self.network.ipv4(host).into()
    }

    fn world(&self, rules: &str) -> World {
        let mine = |host| [self.ip(host), self.network.ipv6(host).into()];
        let world = World::default()
            .enrol(&self.a, &mine(10))
            .enrol(&self.b, &mine(20))
            .connect(&self.network, &self.a)
            .unwrap()
            .connect(&self.network, &self.b)
            .unwrap();
        let remote = |ip| Endpoint {
            ip,
            party: party("remote"),
            cgroup: None,
            ports: None,
            target: None,
        };
        let world = mine(30).into_iter().map(remote).fold(world, World::claim);
        world.rules(rules).unwrap()
    }

    /// Covered, and in force; the socket layers only if asked for.
    fn node(&self, rules: &str, sockets: bool) -> Lease {
        let mut node = Lease::take(&self.sandbox).unwrap();
        node.apply(&self.world(rules).model).unwrap();
        if sockets {
            node.attach().unwrap();
        }
        node.cover(&self.network, &self.a).unwrap();
        node.cover(&self.network, &self.b).unwrap();
        node
    }
}

fn open(protocol: &str) -> String {
    format!("[{}]", allow("a", "b", "any", protocol))
}

/// What was recorded: hook, reason and direction, without doubles removed.
fn seen(events: &[Event]) -> Vec<(Hook, Reason)> {
    let code = |event: &Event| {
        (
            Hook::from_code(event.hook).unwrap(),
            Reason::from_code(event.reason).unwrap(),
        )
    };
    events.iter().map(code).collect()
}

#[test]
fn the_interface_alone_decides_both_ends() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(20), PORT).into();
    let _serving = lab.b.serve(&[at], &[at]).unwrap();
    let mut node = lab.node(&open("[TCP, UDP]"), false);
    assert!(lab.a.tcp(at, PATIENT).unwrap().replied());
    assert!(lab.a.udp(at, Udp::SendTo, PATIENT).unwrap().replied());
    let both = [
        (Hook::TcFrom, Reason::AllowedByRule),
        (Hook::TcTo, Reason::AllowedByRule),
    ];
    assert_eq!(seen(&node.events()), [both, both].concat());
    node.apply(&lab.world("[]").model).unwrap();
    assert!(!lab.a.tcp(at, SHORT).unwrap().replied());
    let events = node.events();
    assert!(!events.is_empty());
    for event in seen(&events) {
        assert_eq!(event, (Hook::TcFrom, Reason::NoPolicy));
    }
}

#[test]
fn a_flow_is_decided_once_however_many_layers_see_it() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(20), PORT).into();
    let _serving = lab.b.serve(&[at], &[at]).unwrap();
    let mut node = lab.node(&open("[TCP, UDP]"), true);
    assert!(lab.a.tcp(at, PATIENT).unwrap().replied());
    assert!(lab.a.udp(at, Udp::SendTo, PATIENT).unwrap().replied());
    assert_eq!(
        seen(&node.events()),
        [
            (Hook::Connect4, Reason::AllowedByRule),
            (Hook::TcTo, Reason::AllowedByRule),
            (Hook::Sendmsg4, Reason::AllowedByRule),
            (Hook::TcTo, Reason::AllowedByRule),
        ]
    );
}

#[test]
fn a_workload_sends_only_as_itself() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(20), PORT).into();
    let _serving = lab.b.serve(&[], &[at]).unwrap();
    let mut node = lab.node(&open("UDP"), true);
    let forged: IpAddr = lab.ip(77);
    lab.a.netns().unwrap().add_address(forged).unwrap();
    let mut a = Actor::member(&lab.a);
    let socket = a.get("socket udp4");
    a.act(&format!("bind {socket} {forged}:5000")).unwrap();
    a.act(&format!("sendto {socket} {at} x")).unwrap();
    let seen = seen(&node.events());
    assert!(seen.contains(&(Hook::TcFrom, Reason::Spoofed)), "{seen:?}");
    assert!(!seen.contains(&(Hook::TcTo, Reason::AllowedByRule)));
}

#[test]
fn an_interface_that_is_nobodys_lets_nothing_through() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(20), PORT).into();
    let _serving = lab.b.serve(&[at], &[at]).unwrap();
    let mut node = Lease::take(&lab.sandbox).unwrap();
    let mut world = lab.world(&open("[TCP, UDP]"));
    world.model.interfaces.clear();
    node.apply(&world.model).unwrap();
    node.cover(&lab.network, &lab.a).unwrap();
    assert!(!lab.a.tcp(at, SHORT).unwrap().replied());
    let events = node.events();
    assert!(!events.is_empty());
    for event in &events {
        assert_eq!(event.reason, Reason::Unenrolled as u8);
        assert_ne!(event.interface, 0);
    }
    // In audit mode it passes, and the record says what would have been.
    let mut audit = world.mode(zt_agent::model::Mode::Audit);
    audit.model.interfaces.clear();
    node.apply(&audit.model).unwrap();
    assert!(lab.a.tcp(at, PATIENT).unwrap().replied());
    let events = node.events();
    assert!(!events.is_empty());
    assert!(events.iter().all(|e| e.verdict == Verdict::WouldDeny as u8));
}

#[test]
fn a_remote_end_is_known_by_its_address_at_the_interface() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(20), PORT).into();
    let _serving = lab.b.serve(&[at], &[at]).unwrap();
    let rules = format!("[{}]", allow("remote", "b", "any", "TCP"));
    let mut node = lab.node(&rules, false);
    assert!(lab.remote.tcp(at, PATIENT).unwrap().replied());
    let number = node.number(&identity("remote")).unwrap();
    let events = node.events();
    assert_eq!(seen(&events), [(Hook::TcTo, Reason::AllowedByRule)]);
    assert_eq!(events[0].source, number);
    assert!(!lab.remote.udp(at, Udp::SendTo, SHORT).unwrap().replied());
    assert_eq!(seen(&node.events()), [(Hook::TcTo, Reason::NoPolicy)]);
}

impl Lab {
    /// How many programs there are on the two sides of `a`'s port.
    fn attached(&self) -> usize {
        let index = self.world("[]").model.interfaces[0].index;
        let nobodys = self.sandbox.directory().join("no-pin");
        let programs = || {
            let mechanism = tc::probe()?;
            let sides = POINTS.map(|point| tc::programs(mechanism, index, point.side, &nobodys));
            sides.into_iter().map(|found| Ok(found?.len())).sum()
        };
        self.network.bridge().enter(programs).unwrap()
    }
}

#[test]
fn a_node_that_another_test_may_take_has_left_every_interface() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(20), PORT).into();
    let _serving = lab.b.serve(&[at], &[]).unwrap();
    let node = lab.node("[]", true);
    assert_eq!(lab.attached(), POINTS.len());
    assert!(!lab.a.tcp(at, SHORT).unwrap().connected);
    drop(node);
    assert_eq!(lab.attached(), 0);
    assert!(lab.a.tcp(at, PATIENT).unwrap().replied());
}

/// The node's own address on the network's bridge.
const NODE: u8 = 1;

impl Lab {
    /// Gives the node an address, and says so.
    fn with_node(&self, rules: &str) -> World {
        let bridge = self.network.bridge();
        let address = format!("{}/24", self.ip(NODE));
        bridge
            .ip(&["address", "add", &address, "dev", "br0"])
            .unwrap();
        let mut world = self.world(rules);
        world.model.node_addresses = vec![self.ip(NODE)];
        world
    }
}

#[test]
fn the_node_is_known_by_the_socket_that_sends_and_not_by_its_address() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(10), PORT).into();
    let _serving = lab.a.serve(&[at], &[at]).unwrap();
    let world = lab.with_node("[]");
    let mut node = lab.node("[]", true);
    node.apply(&world.model).unwrap();
    // This process is no workload.
    let reaches = || {
        let connect = || Ok(std::net::TcpStream::connect_timeout(&at, PATIENT)?);
        lab.network.bridge().enter(connect).is_ok()
    };
    assert!(reaches());
    assert_eq!(seen(&node.events()), [(Hook::TcTo, Reason::HostAllowed)]);
    // Somebody else who takes the node's address, on the same bridge.
    let forged = format!("{}/24", lab.ip(NODE));
    let remote = lab.remote.netns().unwrap();
    remote
        .ip(&["address", "replace", &forged, "dev", "eth0"])
        .unwrap();
    let mut forger = Actor::host(remote);
    let socket = forger.get("socket udp4");
    forger
        .act(&format!("bind {socket} {}:9", lab.ip(NODE)))
        .unwrap();
    forger.act(&format!("sendto {socket} {at} x")).unwrap();
    let events = node.events();
    assert_eq!(seen(&events), [(Hook::TcTo, Reason::NoPolicy)]);
    assert_eq!(events[0].source, zt_common::identity::MASQUERADED);
}

#[test]
fn a_workload_reaches_the_node_by_a_rule_for_it() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(NODE), PORT).into();
    let world = lab.with_node("[]");
    let mut node = lab.node("[]", false);
    node.apply(&world.model).unwrap();
    let listener = lab
        .network
        .bridge()
        .enter(|| Ok(std::net::TcpListener::bind(at)?));
    let _listener = listener.unwrap();
    assert!(!lab.a.tcp(at, SHORT).unwrap().connected);
    let mut allowed = world
        .rules(&format!(
            "[{{from: {{spiffe: \"{}\"}}, to: [{{reserved: host, ports: [{PORT}]}}]}}]",
            identity("a")
        ))
        .unwrap();
    allowed.model.node_addresses = vec![lab.ip(NODE)];
    node.apply(&allowed.model).unwrap();
    node.events();
    assert!(lab.a.tcp(at, PATIENT).unwrap().connected);
    assert_eq!(
        seen(&node.events()),
        [(Hook::TcFrom, Reason::AllowedByRule)]
    );
}

#[test]
fn a_revoked_flow_ends_at_the_interface_in_both_directions() {
    let lab = Lab::new();
    let at: SocketAddr = (lab.ip(20), PORT).into();
    let _serving = lab.b.serve(&[at], &[at]).unwrap();
    let mut node = lab.node(&open("[TCP, UDP]"), false);
    let mut held = lab.a.tcp_held(at, PATIENT).unwrap();
    assert!(held.again().unwrap().replied());
    node.events();
    // Nothing that matters to it: it is decided again, and goes on.
    let more = format!(
        "[{}, {}]",
        allow("a", "b", "any", "[TCP, UDP]"),
        allow("a", "remote", "[9]", "TCP")
    );
    node.apply(&lab.world(&more).model).unwrap();
    node.apply(&lab.world(&open("[TCP, UDP]")).model).unwrap();
    assert!(held.again().unwrap().replied());
    let both = [
        (Hook::TcFrom, Reason::AllowedByRule),
        (Hook::TcTo, Reason::AllowedByRule),
    ];
    assert_eq!(seen(&node.events()), both);
    node.apply(&lab.world("[]").model).unwrap();
    assert!(!held.again().unwrap().replied());
    let seen = seen(&node.events());
    assert!(seen.contains(&(Hook::TcFrom, Reason::NoPolicy)), "{seen:?}");
    assert!(
        !seen.contains(&(Hook::TcTo, Reason::AllowedByRule)),
        "{seen:?}"
    );
}
