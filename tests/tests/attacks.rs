//! Hostile workloads: each test tries to get something past the programs, or
//! to make them refuse what is allowed.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{net::IpAddr, sync::Arc, thread::sleep, time::Duration};

use zt_agent::model::Endpoint;
use zt_common::{
    codes::{Direction, Reason, Verdict},
    event::Event,
    policy::PolicyKey,
    state::Control,
};
use zt_tests::{
    Sandbox, Workload,
    actor::Actor,
    netns::Netns,
    node::{Node, SIZES, World, allow, identity, party},
    pool::Lease,
    stranger::{At, Does, Stranger},
};

/// Workloads in namespaces of their own, on one network.
struct Apart {
    a: Workload,
    b: Workload,
    c: Workload,
    // Dropped after the workloads.
    sandbox: Sandbox,
}

const A: &str = "10.89.7.10";
const B: &str = "10.89.7.20";
const C: &str = "10.89.7.30";

impl Apart {
    fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        let network = sandbox.network(7).unwrap();
        let workload = |name, host| sandbox.workload(&network, name, host).unwrap();
        Self {
            a: workload("a", 10),
            b: workload("b", 20),
            c: workload("c", 30),
            sandbox,
        }
    }

    fn world(&self) -> World {
        World::default()
            .enrol(&self.a, &[ip(A)])
            .enrol(&self.b, &[ip(B)])
            .enrol(&self.c, &[ip(C)])
    }

    /// Only `a` is governed here; the others are workloads of other nodes.
    fn only_a(&self) -> World {
        let remote = |name, at| Endpoint {
            ip: ip(at),
            party: party(name),
            cgroup: None,
            ports: None,
            target: None,
        };
        World::default()
            .enrol(&self.a, &[ip(A)])
            .claim(remote("b", B))
            .claim(remote("c", C))
    }

    fn node(&self, world: &World) -> Lease {
        node(&self.sandbox, world)
    }
}

/// Workloads that share a namespace of its own, like services of one host.
struct Together {
    a: Workload,
    b: Workload,
    c: Workload,
    netns: Arc<Netns>,
    sandbox: Sandbox,
}

impl Together {
    fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        let netns = Arc::new(sandbox.netns("shared").unwrap());
        let workload = |name: &str| {
            let cgroup = sandbox.cgroup().child(name).unwrap();
            Workload::sharing(name, cgroup, Some(Arc::clone(&netns)))
        };
        Self {
            a: workload("a"),
            b: workload("b"),
            c: workload("c"),
            netns,
            sandbox,
        }
    }

    fn world(&self) -> World {
        World::default()
            .enrol_cgroup("a", self.a.cgroup(), None)
            .enrol_cgroup("b", self.b.cgroup(), None)
            .enrol_cgroup("c", self.c.cgroup(), None)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(sandbox: &Sandbox, world: &World) -> Lease {
    let mut node = Lease::take(sandbox).unwrap();
    node.apply(&world.model).unwrap();
    node.attach().unwrap();
    node
}

fn control(node: &Node, change: impl FnOnce(&mut Control)) {
    let mut control = node.store.control().read();
    change(&mut control);
    node.store.control().configure(&control);
}

fn rules(list: &[String]) -> String {
    format!("[{}]", list.join(", "))
}

fn any(from: &str, to: &str, protocol: &str) -> String {
    allow(from, to, "any", protocol)
}

/// A TCP connection of `from` to a listener of `to`: numbers of both sockets.
fn connected(from: &mut Actor, to: &mut Actor, listener: u32, address: &str) -> (u32, u32) {
    let client = from.get("socket tcp4");
    from.act(&format!("connect {client} {address}")).unwrap();
    (client, to.get(&format!("accept {listener}")))
}

fn listening(actor: &mut Actor, address: &str) -> u32 {
    let listener = actor.get("socket tcp4");
    actor.act(&format!("reuse {listener}")).unwrap();
    actor.act(&format!("bind {listener} {address}")).unwrap();
    actor.act(&format!("listen {listener}")).unwrap();
    listener
}

fn bound(actor: &mut Actor, kind: &str, address: &str) -> u32 {
    let socket = actor.get(&format!("socket {kind}"));
    actor.act(&format!("bind {socket} {address}")).unwrap();
    socket
}

/// Whether what is sent at one end arrives at the other.
fn carries(from: &mut Actor, socket: u32, to: &mut Actor, peer: u32) -> bool {
    let sent = from.act(&format!("send {socket} ping"));
    let got = to.act(&format!("recv {peer}"));
    sent.is_ok() && got.as_deref() == Ok("ping")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_connected_raw_socket_is_no_tcp_connection() {
    let lab = Apart::new();
    let open = rules(&[any("a", "b", "TCP")]);
    let mut world = lab.only_a().rules(&open).unwrap();
    world.model.workloads[0].raw_sockets = true;
    let mut a = Actor::member(&lab.a);
    let _node = lab.node(&world);
    let mut seen = Actor::host(lab.c.netns().unwrap());
    let frames = seen.get("socket frames");
    let raw = a.get("socket raw4:6");
    a.act(&format!("connect {raw} {B}:80")).unwrap();
    let syn = syn(([10, 89, 7, 10], 1234), ([10, 89, 7, 20], 80));
    a.act(&format!("sendhex {raw} {B}:0 {syn}")).unwrap();
    let sent = a.act(&format!("sendhex {raw} {C}:0 {syn}"));
    assert!(!tcp_arrives(&mut seen, frames), "{sent:?}");
}

/// A TCP header with SYN and the right checksum.
fn syn(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> String {
    let mut header = [0u8; 20];
    header[..2].copy_from_slice(&from.1.to_be_bytes());
    header[2..4].copy_from_slice(&to.1.to_be_bytes());
    (header[12], header[13]) = (0x50, 2);
    // The pseudo header: addresses, protocol, length.
    let pseudo = [&from.0[..], &to.0[..], &[0, 6, 0, 20]].concat();
    let words = pseudo.chunks(2).chain(header.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    header[16..18].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    hex(&header)
}

/// A frame with a UDP datagram of one byte and the right checksum.
fn datagram6(from: (&str, u16), to: (&str, u16)) -> String {
    let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let addresses = [octets(from.0), octets(to.0)].concat();
    let mut udp = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    udp.extend([0, 9, 0, 0, b'x']);
    // The pseudo header: addresses, length, next header.
    let pseudo = [&addresses[..], &[0, 0, 0, 9, 0, 0, 0, 17]].concat();
    let padded = [&udp[..], &[0]].concat();
    let words = pseudo.chunks(2).chain(padded.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    udp[6..8].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    let ethernet = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9];
    let ip = [0x86, 0xdd, 0x60, 0, 0, 0, 0, 9, 17, 64];
    hex(&[&ethernet[..], &ip, &addresses, &udp].concat())
}

#[test]
fn a_neighbour_cannot_send_as_the_workload_itself() {
    const OWN: &str = "fd00:89:7::10";
    let lab = Apart::new();
    let mut receiver = Actor::member(&lab.a);
    let mut neighbour = Actor::host(lab.c.netns().unwrap());
    let wire = neighbour.get("socket packet");
    let frame = datagram6((OWN, 7000), (OWN, 8000));
    let unseen = bound(&mut receiver, "udp6", &format!("[{OWN}]:8000"));
    neighbour.act(&format!("frame {wire} {frame}")).unwrap();
    let got = receiver.act(&format!("recv {unseen}"));
    assert_eq!(got.as_deref(), Ok("x"), "arrives without programs");
    let model = World::default().enrol(&lab.a, &[ip(A), ip(OWN)]);
    let mut node = lab.node(&model.rules("[]").unwrap());
    // Neither before nor after the workload has really talked to itself.
    let seen = bound(&mut receiver, "udp6", &format!("[{OWN}]:7000"));
    for talks in [false, true] {
        if talks {
            let itself = format!("sendto {seen} [{OWN}]:8000 itself");
            receiver.act(&itself).unwrap();
            assert_eq!(receiver.act(&format!("recv {unseen}")).unwrap(), "itself");
        }
        node.events();
        for (socket, from, to) in [(unseen, 7000, 8000), (seen, 8000, 7000)] {
            let frame = datagram6((OWN, from), (OWN, to));
            neighbour.act(&format!("frame {wire} {frame}")).unwrap();
            let got = receiver.act(&format!("recv {socket}"));
            assert!(got.is_err(), "{from} to {to}: {got:?}");
        }
        let reasons: Vec<_> = node.events().iter().map(|event| event.reason).collect();
        assert_eq!(reasons, [Reason::Spoofed as u8; 2], "talks: {talks}");
    }
}

/// Whether a TCP packet of `a` shows up among the frames.
fn tcp_arrives(seen: &mut Actor, frames: u32) -> bool {
    let source = hex(&[10, 89, 7, 10]);
    while let Ok(packet) = seen.act(&format!("recv {frames}")) {
        // Protocol at byte 9, source address at byte 12.
        if packet.get(18..20) == Some("06") && packet.get(24..32) == Some(source.as_str()) {
            return true;
        }
    }
    false
}

#[test]
fn a_source_route_does_not_lead_past_the_policy() {
    let lab = Apart::new();
    let world = lab.only_a().rules(&rules(&[any("a", "b", "TCP")])).unwrap();
    let mut a = Actor::member(&lab.a);
    let mut seen = Actor::host(lab.c.netns().unwrap());
    let frames = seen.get("socket frames");
    // Loose source and record route, by way of C.
    let by_c = hex(&[131, 7, 4, 10, 89, 7, 30, 0]);
    let try_it = |a: &mut Actor| {
        let socket = a.get("socket tcp4");
        a.act(&format!("options {socket} {by_c}")).unwrap();
        a.act(&format!("connect {socket} {B}:80"))
    };
    let _ = try_it(&mut a);
    assert!(tcp_arrives(&mut seen, frames), "passes without programs");
    let _node = lab.node(&world);
    while seen.act(&format!("recv {frames}")).is_ok() {}
    let _ = try_it(&mut a);
    assert!(!tcp_arrives(&mut seen, frames));
}

#[test]
fn a_revoked_connection_does_not_live_on_by_a_rule_for_the_other_direction() {
    let lab = Apart::new();
    let back = any("b", "a", "TCP");
    let both = rules(&[any("a", "b", "TCP"), back.clone()]);
    let mut node = lab.node(&lab.only_a().rules(&both).unwrap());
    let mut a = Actor::member(&lab.a);
    let mut b = Actor::host(lab.b.netns().unwrap());
    let listener = listening(&mut b, &format!("{B}:80"));
    let (client, served) = connected(&mut a, &mut b, listener, &format!("{B}:80"));
    assert!(carries(&mut a, client, &mut b, served));
    let applied = node
        .apply(&lab.only_a().rules(&rules(&[back])).unwrap().model)
        .unwrap();
    assert!(applied.narrows);
    assert!(!carries(&mut a, client, &mut b, served));
}

#[test]
fn a_remote_syn_does_not_poison_an_open_connection() {
    let lab = Apart::new();
    let open = rules(&[any("a", "b", "TCP")]);
    let mut node = lab.node(&lab.only_a().rules(&open).unwrap());
    let mut a = Actor::member(&lab.a);
    let mut b = Actor::host(lab.b.netns().unwrap());
    let listener = listening(&mut b, &format!("{B}:80"));
    let (client, served) = connected(&mut a, &mut b, listener, &format!("{B}:80"));
    assert!(carries(&mut a, client, &mut b, served));
    // A change that narrows elsewhere: the next packet is decided again.
    let more = rules(&[any("a", "b", "TCP"), any("a", "c", "UDP")]);
    node.apply(&lab.only_a().rules(&more).unwrap().model)
        .unwrap();
    node.apply(&lab.only_a().rules(&open).unwrap().model)
        .unwrap();
    let port: u16 = a.act(&format!("port {client}")).unwrap().parse().unwrap();
    let raw = b.get("socket raw4:6");
    let syn = syn(([10, 89, 7, 20], 80), ([10, 89, 7, 10], port));
    b.act(&format!("sendhex {raw} {A}:0 {syn}")).unwrap();
    sleep(Duration::from_millis(50));
    assert!(carries(&mut a, client, &mut b, served));
    assert!(carries(&mut b, served, &mut a, client));
}

#[test]
fn the_next_user_of_a_port_does_not_inherit_its_verdict() {
    let lab = Together::new();
    let world = lab.world().rules(&rules(&[any("a", "b", "TCP")])).unwrap();
    let node = node(&lab.sandbox, &world);
    control(&node, |control| control.flags = 0);
    let (mut a, mut b) = (Actor::member(&lab.a), Actor::member(&lab.b));
    let mut host = Actor::host(&lab.netns);
    let listener = listening(&mut b, "127.0.0.1:8080");
    let try_it = |who: &mut Actor| {
        let socket = who.get("socket tcp4");
        who.act(&format!("reuse {socket}")).unwrap();
        who.act(&format!("abortive {socket}")).unwrap();
        who.act(&format!("bind {socket} 127.0.0.1:7777")).unwrap();
        let result = who.act(&format!("connect {socket} 127.0.0.1:8080"));
        (socket, result)
    };
    let (socket, result) = try_it(&mut a);
    assert_eq!(result, Ok(String::new()));
    let served = b.get(&format!("accept {listener}"));
    b.act(&format!("abortive {served}")).unwrap();
    a.act(&format!("close {socket}")).unwrap();
    b.act(&format!("close {served}")).unwrap();
    let (_, result) = try_it(&mut host);
    assert!(result.is_err());
    assert!(b.act(&format!("accept {listener}")).is_err());
}

fn egress(events: &[Event], port: u16) -> Vec<(u32, Verdict)> {
    events
        .iter()
        .filter(|event| event.direction == Direction::Egress as u8 && event.remote_port == port)
        .map(|event| {
            let verdict = Verdict::from_code(event.verdict).unwrap();
            (event.destination, verdict)
        })
        .collect()
}

#[test]
fn the_unspecified_address_is_loopback_and_decided_once() {
    let lab = Together::new();
    let open = rules(&[any("a", "b", "[TCP, UDP]")]);
    let world = lab.world().rules(&open).unwrap();
    let mut node = node(&lab.sandbox, &world);
    let (mut a, mut b) = (Actor::member(&lab.a), Actor::member(&lab.b));
    listening(&mut b, "127.0.0.1:8080");
    let receiver = bound(&mut b, "udp4", "127.0.0.1:8080");
    let number = node.number(&identity("b")).unwrap();
    let client = a.get("socket tcp4");
    let result = a.act(&format!("connect {client} 0.0.0.0:8080"));
    let events = node.events();
    assert_eq!(result, Ok(String::new()), "{events:#?}");
    assert_eq!(egress(&events, 8080), [(number, Verdict::Allow)]);
    let sender = a.get("socket udp4");
    a.act(&format!("sendto {sender} 0.0.0.0:8080 hello"))
        .unwrap();
    assert_eq!(b.act(&format!("recv {receiver}")), Ok("hello".to_owned()));
    assert_eq!(egress(&node.events(), 8080), [(number, Verdict::Allow)]);
}

#[test]
fn a_denial_does_not_outlive_its_cause_because_the_caller_insists() {
    let lab = Together::new();
    let world = lab.world().rules(&rules(&[any("a", "b", "UDP")])).unwrap();
    let node = node(&lab.sandbox, &world);
    control(&node, |control| control.datagram_idle = 1_000_000_000);
    let (mut a, mut b) = (Actor::member(&lab.a), Actor::member(&lab.b));
    let sender = a.get("socket udp4");
    let send = format!("sendto {sender} 127.0.0.1:8080 hello");
    assert!(a.act(&send).is_err(), "nobody is there");
    bound(&mut b, "udp4", "127.0.0.1:8080");
    let mut passed = false;
    for _ in 0..15 {
        sleep(Duration::from_millis(200));
        passed |= a.act(&send).is_ok();
    }
    assert!(passed);
}

#[test]
fn a_nested_cgroup_does_not_get_a_share_of_its_own() {
    let lab = Apart::new();
    let world = lab.world().rules(&rules(&[any("a", "b", "UDP")])).unwrap();
    let node = lab.node(&world);
    control(&node, |control| control.flow_share = 8);
    let spilled = || node.counters.totals().unwrap().flow_spilled;
    for name in ["x", "y", "z"] {
        let nested = lab.a.cgroup().child(name).unwrap();
        let mut a = Actor::member(&Workload::sharing("a", nested, lab.a.netns().cloned()));
        let sender = a.get("socket udp4");
        for port in 1..=8 {
            a.act(&format!("sendto {sender} {B}:{port} x")).unwrap();
        }
    }
    // 24 flows of one workload, 8 of them its share (a new window may begin).
    assert!(spilled() >= 8, "{}", spilled());
}

#[test]
fn a_row_whose_key_was_altered_is_noticed_and_repaired() {
    let lab = Apart::new();
    let world = lab.world().rules(&rules(&[any("a", "b", "TCP")])).unwrap();
    let mut node = lab.node(&world);
    let before = node.store.read().unwrap();
    let map = node.pins.map("zt_policy_v1");
    let map = zt_agent::kernel::sys::get_pinned(&map).unwrap();
    let key: PolicyKey = *before.policy.keys().next().unwrap();
    let fd = std::os::fd::AsFd::as_fd(&map);
    let row: Option<zt_common::version::PolicyRow> =
        zt_agent::kernel::sys::map_lookup(fd, &key).unwrap();
    let mut row = row.unwrap();
    row.key.source += 1;
    zt_agent::kernel::sys::map_update(fd, &key, &row).unwrap();
    assert_ne!(node.store.read().unwrap(), before, "a drift that is seen");
    node.store = zt_agent::kernel::store::Store::adopt(&node.pins).unwrap();
    node.apply(&world.model).unwrap();
    assert_eq!(node.store.read().unwrap(), before);
    let (mut a, mut b) = (Actor::member(&lab.a), Actor::member(&lab.b));
    let listener = listening(&mut b, &format!("{B}:80"));
    let (client, served) = connected(&mut a, &mut b, listener, &format!("{B}:80"));
    assert!(carries(&mut a, client, &mut b, served));
}

#[test]
fn programs_of_cgroups_above_the_managed_root_are_strangers_too() {
    let lab = Apart::new();
    let node = lab.node(&lab.world());
    let below = zt_agent::kernel::cgroup::Root::open(lab.a.cgroup().path(), false).unwrap();
    let nowhere = zt_agent::kernel::pins::Pins::new("/nonexistent/zt");
    for point in zt_agent::kernel::links::status(&below, &nowhere).unwrap() {
        assert_eq!(point.strangers.len(), 1, "{point:?}");
    }
    for point in zt_agent::kernel::links::status(&node.root, &node.pins).unwrap() {
        assert!(point.program_id.is_some(), "{point:?}");
        assert!(point.strangers.is_empty(), "{point:?}");
    }
}

#[test]
fn the_generations_end_with_an_error_and_not_with_a_surprise() {
    let lab = Apart::new();
    let open = lab.world().rules(&rules(&[any("a", "b", "TCP")])).unwrap();
    let mut node = lab.node(&open);
    node.store.control().activate(u32::MAX - 1, 1);
    let error = node.apply(&lab.world().model).unwrap_err().to_string();
    assert!(error.contains("generation"), "{error}");
}

#[test]
fn a_change_that_does_not_fit_leaves_everything_as_it_was() {
    let lab = Apart::new();
    let open = lab.world().rules(&rules(&[any("a", "b", "TCP")])).unwrap();
    let mut node = lab.node(&open);
    let before = node.store.read().unwrap();
    let mut wanted = before.clone();
    let (key, entry) = before.policy.first_key_value().unwrap();
    for destination in 0..20_000 {
        let key = PolicyKey {
            destination: 10_000 + destination,
            ..*key
        };
        wanted.policy.insert(key, *entry);
    }
    wanted.policy.remove(key);
    let generation = node.store.control().generations();
    assert!(node.store.apply(wanted, false).is_err());
    assert_eq!(node.store.control().generations(), generation);
    assert_eq!(node.store.read().unwrap(), before);
    assert_eq!(*node.store.current(), before);
    let (mut a, mut b) = (Actor::member(&lab.a), Actor::member(&lab.b));
    let listener = listening(&mut b, &format!("{B}:80"));
    connected(&mut a, &mut b, listener, &format!("{B}:80"));
    node.apply(&lab.world().model).unwrap();
    let socket = a.get("socket tcp4");
    let denied = a.act(&format!("connect {socket} {B}:80"));
    assert_eq!(denied, Err("EPERM".to_owned()));
}

#[test]
fn a_socket_belongs_to_where_it_was_made_wherever_it_goes() {
    let lab = Together::new();
    let world = lab
        .world()
        .rules(&rules(&[any("a", "b", "[TCP, UDP]")]))
        .unwrap();
    let mut node = node(&lab.sandbox, &world);
    let (mut a, mut b) = (Actor::member(&lab.a), Actor::member(&lab.b));
    let mut c = Actor::member(&lab.c);
    let receiver = bound(&mut b, "udp4", "127.0.0.1:8080");
    let a_socket = a.get("socket udp4");
    let c_socket = c.get("socket udp4");
    let (a_pid, c_pid) = (a.pid(), c.pid());
    let taken_by_c = {
        let fd = a.get(&format!("fd {a_socket}"));
        c.get(&format!("take {a_pid} {fd}"))
    };
    let taken_by_a = {
        let fd = c.get(&format!("fd {c_socket}"));
        a.get(&format!("take {c_pid} {fd}"))
    };
    let hello = |socket| format!("sendto {socket} 127.0.0.1:8080 hello");
    assert_eq!(c.act(&hello(taken_by_c)), Ok(String::new()));
    assert_eq!(b.act(&format!("recv {receiver}")), Ok("hello".to_owned()));
    assert_eq!(a.act(&hello(taken_by_a)), Err("EPERM".to_owned()));
    // A process that moves takes its old sockets along, as what they are.
    lab.c.cgroup().add(a_pid).unwrap();
    node.events();
    assert_eq!(a.act(&hello(a_socket)), Ok(String::new()));
    let made_there = a.get("socket udp4");
    assert_eq!(a.act(&hello(made_there)), Err("EPERM".to_owned()));
    let number = node.number(&identity("c")).unwrap();
    let denied = node.events();
    assert!(
        denied.iter().all(|event| event.source == number),
        "{denied:#?}"
    );
}

#[test]
fn a_socket_made_before_the_programs_is_known_by_its_packets() {
    let lab = Together::new();
    let world = lab.world().rules(&rules(&[any("a", "b", "UDP")])).unwrap();
    let (mut a, mut c) = (Actor::member(&lab.a), Actor::member(&lab.c));
    let mut b = Actor::member(&lab.b);
    let receiver = bound(&mut b, "udp4", "127.0.0.1:8080");
    let (from_a, from_c) = (a.get("socket udp4"), c.get("socket udp4"));
    for (who, socket) in [(&mut a, from_a), (&mut c, from_c)] {
        who.act(&format!("connect {socket} 127.0.0.1:8080"))
            .unwrap();
    }
    let _node = node(&lab.sandbox, &world);
    assert!(carries(&mut a, from_a, &mut b, receiver));
    assert!(!carries(&mut c, from_c, &mut b, receiver));
}

#[test]
fn one_datagram_socket_and_many_peers() {
    let lab = Apart::new();
    let world = lab
        .world()
        .rules(&rules(&[any("a", "b", "[TCP, UDP]")]))
        .unwrap();
    let _node = lab.node(&world);
    let mut a = Actor::member(&lab.a);
    let socket = a.get("socket udp4");
    let denied = Err("EPERM".to_owned());
    for _ in 0..3 {
        assert_eq!(
            a.act(&format!("sendto {socket} {B}:53 x")),
            Ok(String::new())
        );
        assert_eq!(a.act(&format!("sendto {socket} {C}:53 x")), denied);
    }
    a.act(&format!("connect {socket} {B}:53")).unwrap();
    assert_eq!(a.act(&format!("sendto {socket} {C}:53 x")), denied);
    a.act(&format!("unspec {socket}")).unwrap();
    assert_eq!(a.act(&format!("connect {socket} {C}:53")), denied);
    let stream = a.get("socket tcp4");
    let _ = a.act(&format!("connect {stream} {B}:53"));
    let _ = a.act(&format!("unspec {stream}"));
    assert_eq!(a.act(&format!("connect {stream} {C}:53")), denied);
}

#[test]
fn a_denied_datagram_poisons_nothing_and_replies_come_from_the_port_asked() {
    let lab = Apart::new();
    let open = rules(&[any("a", "b", "UDP")]);
    let node = lab.node(&lab.only_a().rules(&open).unwrap());
    control(&node, |control| control.datagram_idle = 600_000_000);
    let mut a = Actor::member(&lab.a);
    let mut b = Actor::host(lab.b.netns().unwrap());
    let inside = bound(&mut a, "udp4", &format!("{A}:5000"));
    let outside = bound(&mut b, "udp4", &format!("{B}:53"));
    let other = bound(&mut b, "udp4", &format!("{B}:54"));
    let answer = |b: &mut Actor, socket, text: &str| {
        b.act(&format!("sendto {socket} {A}:5000 {text}")).unwrap();
    };
    answer(&mut b, outside, "first");
    assert!(a.act(&format!("recv {inside}")).is_err());
    a.act(&format!("sendto {inside} {B}:53 ask")).unwrap();
    assert_eq!(b.act(&format!("recv {outside}")), Ok("ask".to_owned()));
    answer(&mut b, other, "elsewhere");
    answer(&mut b, outside, "answer");
    assert_eq!(a.act(&format!("recv {inside}")), Ok("answer".to_owned()));
    sleep(Duration::from_secs(1));
    answer(&mut b, outside, "late");
    assert!(a.act(&format!("recv {inside}")).is_err());
}

#[test]
fn changes_under_load_let_nothing_forbidden_through_and_disturb_nothing_else() {
    let lab = Apart::new();
    let to = |at: &str| format!("{at}:8080").parse().unwrap();
    let _b = lab.b.serve(&[to(B)], &[]).unwrap();
    let _c = lab.c.serve(&[to(C)], &[]).unwrap();
    // a to b is always allowed, b to c never; a to c changes.
    let fixed = any("a", "b", "TCP");
    let one = lab
        .world()
        .rules(&rules(std::slice::from_ref(&fixed)))
        .unwrap();
    let two = rules(&[fixed, any("a", "c", "TCP"), any("c", "b", "TCP")]);
    let two = lab.world().rules(&two).unwrap();
    let mut node = lab.node(&one);
    let (duration, pause) = (Duration::from_secs(6), Duration::from_millis(1));
    let looping = |from: &Workload, at| {
        from.tcp_loop(to(at), duration, pause, Duration::from_millis(900))
            .unwrap()
    };
    let always = [looping(&lab.a, B), looping(&lab.a, B)];
    let never = [looping(&lab.b, C), looping(&lab.b, C)];
    let end = std::time::Instant::now() + duration;
    let mut changes = 0u32;
    while std::time::Instant::now() < end {
        for world in [&two, &one] {
            node.apply(&world.model).unwrap();
            node.events();
            changes += 1;
        }
        // The same programs, loaded anew, behind the same links.
        node.attach().unwrap();
    }
    for summary in always {
        let summary = summary.summary().unwrap();
        assert!(summary.ok > 50 && summary.failed.is_empty(), "{summary:?}");
    }
    for summary in never {
        assert_eq!(summary.summary().unwrap().ok, 0);
    }
    assert!(changes > 10, "{changes}");
}

#[test]
fn programs_loaded_anew_take_over_without_a_gap() {
    use zt_agent::kernel::{links, load};
    let lab = Apart::new();
    let to = |at: &str| format!("{at}:8080").parse().unwrap();
    let _b = lab.b.serve(&[to(B)], &[]).unwrap();
    let _c = lab.c.serve(&[to(C)], &[]).unwrap();
    let open = rules(&[any("a", "b", "TCP")]);
    let mut node = lab.node(&lab.world().rules(&open).unwrap());
    let (duration, pause) = (Duration::from_secs(5), Duration::from_millis(1));
    let limit = Duration::from_millis(900);
    let mut held = lab.a.tcp_held(to(B), limit).unwrap();
    let always = lab.a.tcp_loop(to(B), duration, pause, limit).unwrap();
    let never = lab.a.tcp_loop(to(C), duration, pause, limit).unwrap();
    let end = std::time::Instant::now() + duration;
    let mut decisions = 0;
    while std::time::Instant::now() < end {
        let loaded = load::load(&node.pins, &SIZES, load::LOG_OFF).unwrap();
        let done = links::attach(&loaded, &node.root, &node.pins, || {}).unwrap();
        assert!(
            done.iter()
                .all(|(_, how)| *how == links::Attachment::Replaced)
        );
        decisions += node.events().len();
    }
    let always = always.summary().unwrap();
    assert!(always.ok > 50 && always.failed.is_empty(), "{always:?}");
    assert_eq!(never.summary().unwrap().ok, 0);
    assert!(held.again().unwrap().replied());
    decisions += node.events().len();
    let totals = node.counters.totals().unwrap();
    assert_eq!(totals.decisions, decisions as u64 + totals.lost_ring);
}

#[test]
fn a_full_ring_changes_no_verdict_and_its_losses_are_exact() {
    let lab = Apart::new();
    let open = rules(&[any("a", "b", "UDP")]);
    let mut node = lab.node(&lab.world().rules(&open).unwrap());
    let mut a = Actor::member(&lab.a);
    let socket = a.get("socket udp4");
    // 4 MiB hold 47,662 records.
    a.act(&format!("flood {socket} {B} 50000")).unwrap();
    for _ in 0..3 {
        assert!(a.act(&format!("sendto {socket} {C}:53 x")).is_err());
        assert!(a.act(&format!("sendto {socket} {B}:53 x")).is_ok());
    }
    let events = node.events().len() as u64;
    let totals = node.counters.totals().unwrap();
    assert!(totals.lost_ring > 0, "{totals:?}");
    assert_eq!(totals.decisions, events + totals.lost_ring);
    let counted: u64 = node.counters.counts().unwrap().values().sum();
    assert_eq!(counted + totals.uncounted, totals.decisions);
}

#[test]
fn a_flood_of_flows_does_not_crowd_out_another_workload() {
    let lab = Apart::new();
    let open = rules(&[any("a", "b", "UDP"), any("c", "b", "UDP")]);
    let node = lab.node(&lab.world().rules(&open).unwrap());
    let (mut a, mut c) = (Actor::member(&lab.a), Actor::member(&lab.c));
    let mut b = Actor::member(&lab.b);
    let inside = bound(&mut c, "udp4", &format!("{C}:5000"));
    let outside = bound(&mut b, "udp4", &format!("{B}:53"));
    c.act(&format!("sendto {inside} {B}:53 ask")).unwrap();
    assert_eq!(b.act(&format!("recv {outside}")), Ok("ask".to_owned()));
    // Its socket remembers only this one by itself.
    c.act(&format!("sendto {inside} {B}:54 other")).unwrap();
    // A slow machine takes many windows of a share, and the quiet flow is idle meanwhile.
    control(&node, |control| {
        control.flow_share = 256;
        control.datagram_idle = 600_000_000_000;
    });
    let flood = a.get("socket udp4");
    // More than the table has room for.
    a.act(&format!("flood {flood} {B} 20000")).unwrap();
    let spilled = node.counters.totals().unwrap().flow_spilled;
    assert!(spilled > SIZES.flow.into(), "{spilled}");
    b.act(&format!("sendto {outside} {C}:5000 answer")).unwrap();
    assert_eq!(c.act(&format!("recv {inside}")), Ok("answer".to_owned()));
}

#[test]
fn a_declared_port_is_its_owners_and_nobody_elses() {
    let lab = Together::new();
    let claim = Endpoint {
        ip: ip("127.0.0.1"),
        party: party("b"),
        cgroup: lab.b.cgroup().id().ok(),
        ports: Some(vec![
            (zt_common::codes::Protocol::Tcp, 8080),
            (zt_common::codes::Protocol::Udp, 8080),
        ]),
        target: None,
    };
    let open = rules(&[any("a", "b", "[TCP, UDP]"), any("b", "a", "[TCP, UDP]")]);
    let world = lab.world().claim(claim).rules(&open).unwrap();
    let _node = node(&lab.sandbox, &world);
    let (mut a, mut b) = (Actor::member(&lab.a), Actor::member(&lab.b));
    let mut c = Actor::member(&lab.c);
    let listener = listening(&mut b, "127.0.0.1:8080");
    for address in ["127.0.0.1:8080", "0.0.0.0:8080"] {
        for kind in ["tcp4", "udp4"] {
            let socket = c.get(&format!("socket {kind}"));
            c.act(&format!("reuse {socket}")).unwrap();
            let refused = c.act(&format!("bind {socket} {address}"));
            assert_eq!(refused, Err("EPERM".to_owned()), "{kind} {address}");
        }
    }
    connected(&mut a, &mut b, listener, "127.0.0.1:8080");
    let socket = c.get("socket tcp4");
    let denied = c.act(&format!("connect {socket} 127.0.0.1:8080"));
    assert_eq!(denied, Err("EPERM".to_owned()));
    // A port that nobody declared: the socket behind it says whose it is.
    let other = listening(&mut c, "127.0.0.1:9090");
    let socket = a.get("socket tcp4");
    let denied = a.act(&format!("connect {socket} 127.0.0.1:9090"));
    assert_eq!(denied, Err("EPERM".to_owned()));
    assert!(c.act(&format!("accept {other}")).is_err());
    // The node's processes may reach a workload, and not the other way round.
    let mut host = Actor::host(&lab.netns);
    connected(&mut host, &mut b, listener, "127.0.0.1:8080");
    listening(&mut host, "127.0.0.1:9191");
    let socket = a.get("socket tcp4");
    assert!(a.act(&format!("connect {socket} 127.0.0.1:9191")).is_err());
}

#[test]
fn a_change_cut_off_before_its_flip_never_was_and_after_it_is_whole() {
    use zt_agent::kernel::{store::Store, sys};
    use zt_common::version::{FOREVER, PolicyRow, Version};
    let lab = Apart::new();
    let open = rules(&[any("a", "b", "TCP")]);
    let mut node = lab.node(&lab.world().rules(&open).unwrap());
    let before = node.store.read().unwrap();
    let (active, narrowed) = node.store.control().generations();
    let (old, value) = before.policy.first_key_value().unwrap();
    let new = PolicyKey { port: 443, ..*old };
    let version = |from, until| Version {
        from,
        until,
        value: *value,
    };
    let row = |key, versions| PolicyRow {
        versions,
        key,
        zero: [0; 4],
    };
    let ended = row(*old, [version(active, active + 1), Version::default()]);
    let begun = row(new, [Version::default(), version(active + 1, FOREVER)]);
    let map = sys::get_pinned(&node.pins.map("zt_policy_v1")).unwrap();
    let half_write = || {
        for row in [&ended, &begun] {
            sys::map_update(std::os::fd::AsFd::as_fd(&map), &row.key, row).unwrap();
        }
    };
    half_write();
    node.store = Store::adopt(&node.pins).unwrap();
    assert_eq!(node.store.read().unwrap(), before);
    assert_eq!(*node.store.current(), before);
    // A flip for another reason does not make the leftovers true.
    let mut wanted = before.clone();
    wanted.workload.pop_first();
    node.store.apply(wanted.clone(), false).unwrap();
    assert_eq!(node.store.read().unwrap(), wanted);
    node.store.apply(before.clone(), false).unwrap();

    let (active, _) = node.store.control().generations();
    let version = |from, until| Version {
        from,
        until,
        value: *value,
    };
    for row in [
        row(*old, [version(1, active + 1), Version::default()]),
        row(new, [Version::default(), version(active + 1, FOREVER)]),
    ] {
        sys::map_update(std::os::fd::AsFd::as_fd(&map), &row.key, &row).unwrap();
    }
    node.store.control().activate(active + 1, narrowed);
    node.store = Store::adopt(&node.pins).unwrap();
    let mut after = before.policy.clone();
    after.remove(old);
    after.insert(new, *value);
    assert_eq!(node.store.read().unwrap().policy, after);
    assert_eq!(node.store.current().policy, after);
    node.store.apply(before.clone(), false).unwrap();
    assert_eq!(node.store.read().unwrap(), before);
}

#[test]
fn a_program_of_somebody_else_cannot_overrule_a_denial_unseen() {
    let attach = |cgroup, does| Stranger::attach_at("someone", cgroup, At::Connect4, does).unwrap();
    let lab = Apart::new();
    let node = lab.node(&lab.world());
    let mut a = Actor::member(&lab.a);
    let refused = |a: &mut Actor| {
        let socket = a.get("socket tcp4");
        a.act(&format!("connect {socket} {B}:80"))
    };
    let eperm = Err("EPERM".to_owned());
    let _permit = attach(lab.a.cgroup(), Does::Permit);
    let _overrule = attach(lab.a.cgroup(), Does::Overrule);
    assert_eq!(refused(&mut a), eperm, "below ours it runs before ours");
    // After ours it overrules the call; the packet is denied all the same.
    let _after = attach(lab.sandbox.cgroup(), Does::Overrule);
    assert_ne!(refused(&mut a), Ok(String::new()));
    let status = zt_agent::kernel::links::status(&node.root, &node.pins).unwrap();
    for point in status {
        let strangers = usize::from(point.point.program == "zt_connect4");
        assert_eq!(point.strangers.len(), strangers, "{point:?}");
    }
}
