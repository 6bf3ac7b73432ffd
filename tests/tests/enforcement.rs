//! Real programs, real sockets: who reaches whom, and what the caller sees.
//!
//! Every pair that must be denied is first seen to pass without our programs.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread::sleep,
    time::Duration,
};

use zt_agent::model::{Endpoint, Mode};
use zt_common::{
    codes::{Hook, Protocol, Reason, Verdict},
    event::Event,
    identity,
};
use zt_tests::{
    Sandbox, Workload,
    node::{Node, World, allow, party},
    patience::scaled,
    pool::Lease,
    workload::{Server, Udp},
};

/// For what must answer.
const PATIENT: Duration = Duration::from_secs(2);
/// For what must not.
const SHORT: Duration = Duration::from_millis(300);

/// A client and a server in namespaces of their own, both enrolled.
struct Pair {
    client: Workload,
    server: Workload,
    client_ips: Vec<IpAddr>,
    server_ips: Vec<IpAddr>,
    serving: Server,
    /// Lines of the server that were looked at.
    seen: usize,
    // Dropped after the workloads.
    sandbox: Sandbox,
}

const PORT: u16 = 8080;

impl Pair {
    fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        let network = sandbox.network(7).unwrap();
        let client = sandbox.workload(&network, "client", 10).unwrap();
        let server = sandbox.workload(&network, "server", 20).unwrap();
        let ips = |host| vec![network.ipv4(host).into(), network.ipv6(host).into()];
        let server_ips: Vec<IpAddr> = ips(20);
        let all: Vec<SocketAddr> = server_ips.iter().map(|ip| (*ip, PORT).into()).collect();
        let serving = server.serve(&all, &all).unwrap();
        Self {
            client,
            server,
            client_ips: ips(10),
            server_ips,
            serving,
            seen: 0,
            sandbox,
        }
    }

    fn world(&self) -> World {
        World::default()
            .enrol(&self.client, &self.client_ips)
            .enrol(&self.server, &self.server_ips)
    }

    fn targets(&self) -> Vec<SocketAddr> {
        self.server_ips
            .iter()
            .map(|ip| (*ip, PORT).into())
            .collect()
    }

    fn v4(&self) -> SocketAddr {
        self.targets()[0]
    }

    /// A node with the programs attached and `world` in force.
    fn node(&self, world: &World) -> Lease {
        let mut node = Lease::take(&self.sandbox).unwrap();
        node.apply(&world.model).unwrap();
        node.attach().unwrap();
        node
    }

    /// Shows that everything that will be asked passes without our programs.
    fn passes_without_programs(&mut self) {
        for to in self.targets() {
            assert!(self.client.tcp(to, PATIENT).unwrap().replied(), "tcp {to}");
            let udp = self.client.udp(to, Udp::SendTo, PATIENT).unwrap();
            assert!(udp.replied(), "udp {to}");
        }
        assert!(!self.received().is_empty());
    }

    /// What arrived at the server since the last call.
    fn received(&mut self) -> Vec<String> {
        let all = self.serving.received().unwrap();
        let new = all[self.seen..].to_vec();
        self.seen = all.len();
        new
    }
}

fn denials(events: &[Event]) -> Vec<(Hook, Reason)> {
    events
        .iter()
        .filter(|event| event.verdict == Verdict::Deny as u8)
        .map(|event| {
            (
                Hook::from_code(event.hook).unwrap(),
                Reason::from_code(event.reason).unwrap(),
            )
        })
        .collect()
}

#[test]
fn an_allowed_pair_talks_and_a_denied_caller_gets_eperm_at_once() {
    let mut pair = Pair::new();
    pair.passes_without_programs();
    let allowed = format!("[{}]", allow("client", "server", "[8080]", "[TCP, UDP]"));
    let open = pair.world().rules(&allowed).unwrap();
    let mut node = pair.node(&open);
    for to in pair.targets() {
        assert!(pair.client.tcp(to, PATIENT).unwrap().replied(), "tcp {to}");
        for how in [Udp::Connected, Udp::SendTo] {
            let udp = pair.client.udp(to, how, PATIENT).unwrap();
            assert!(udp.replied(), "udp {to} {udp:?}");
        }
    }
    assert_eq!(denials(&node.events()), []);
    pair.received();

    node.apply(&pair.world().rules("[]").unwrap().model)
        .unwrap();
    for to in pair.targets() {
        let tcp = pair.client.tcp(to, SHORT).unwrap();
        assert_eq!(tcp.errno.as_deref(), Some("EPERM"), "tcp {to}");
        let udp = pair.client.udp(to, Udp::Connected, SHORT).unwrap();
        assert_eq!(udp.errno.as_deref(), Some("EPERM"), "udp {to}");
        let udp = pair.client.udp(to, Udp::SendTo, SHORT).unwrap();
        assert_eq!(udp.errno.as_deref(), Some("EPERM"), "udp {to}");
    }
    assert_eq!(pair.received(), Vec::<String>::new());
    let hooks: Vec<_> = denials(&node.events());
    for hook in [
        Hook::Connect4,
        Hook::Connect6,
        Hook::Sendmsg4,
        Hook::Sendmsg6,
    ] {
        assert!(
            hooks.contains(&(hook, Reason::NoPolicy)),
            "{hook:?} {hooks:?}"
        );
    }
}

#[test]
fn the_wire_is_decided_too_when_the_socket_hooks_are_gone() {
    let mut pair = Pair::new();
    pair.passes_without_programs();
    let mut node = pair.node(&pair.world().rules("[]").unwrap());
    for program in ["zt_connect4", "zt_connect6", "zt_sendmsg4", "zt_sendmsg6"] {
        node.detach(program).unwrap();
    }
    for to in pair.targets() {
        assert!(!pair.client.tcp(to, SHORT).unwrap().connected, "tcp {to}");
        assert!(!pair.client.udp(to, Udp::SendTo, SHORT).unwrap().replied());
    }
    assert_eq!(pair.received(), Vec::<String>::new());
    assert!(denials(&node.events()).contains(&(Hook::SkbEgress, Reason::NoPolicy)));

    // The receiving end decides for itself.
    node.detach("zt_egress").unwrap();
    for to in pair.targets() {
        assert!(!pair.client.tcp(to, SHORT).unwrap().connected, "tcp {to}");
        assert!(!pair.client.udp(to, Udp::SendTo, SHORT).unwrap().replied());
    }
    assert_eq!(pair.received(), Vec::<String>::new());
    assert!(denials(&node.events()).contains(&(Hook::SkbIngress, Reason::NoPolicy)));

    // With nothing left to stop it, it passes: the programs did it.
    node.detach("zt_ingress").unwrap();
    pair.passes_without_programs();
}

#[test]
fn replies_pass_and_a_server_opens_nothing_from_its_service_port() {
    let pair = Pair::new();
    let back: SocketAddr = (pair.client_ips[0], 9000).into();
    let listening = pair.client.serve(&[back], &[back]).unwrap();
    let from = SocketAddr::from((pair.server_ips[0], 7000)).to_string();
    let open = |limit| {
        let to = back.to_string();
        pair.server
            .ask(&["udp", "--sendto", &to, "--from", &from], limit)
            .unwrap()
    };
    assert!(open(PATIENT).replied(), "passes without programs");
    let rules = format!("[{}]", allow("client", "server", "any", "[TCP, UDP]"));
    let node = pair.node(&pair.world().rules(&rules).unwrap());
    assert!(
        pair.client
            .udp(pair.v4(), Udp::SendTo, PATIENT)
            .unwrap()
            .replied()
    );
    assert_eq!(open(SHORT).errno.as_deref(), Some("EPERM"));
    assert_eq!(
        pair.server.tcp(back, SHORT).unwrap().errno.as_deref(),
        Some("EPERM")
    );
    drop((listening, node));
}

#[test]
fn an_established_connection_ends_on_its_next_packet_when_the_rule_goes() {
    let pair = Pair::new();
    let rules = format!("[{}]", allow("client", "server", "[8080]", "TCP"));
    let open = pair.world().rules(&rules).unwrap();
    let mut node = pair.node(&open);
    for to in pair.targets() {
        let mut held = pair.client.tcp_held(to, SHORT).unwrap();
        assert!(held.again().unwrap().replied());
        // A change that only widens leaves it alone.
        let wider = format!(
            "[{}, {}]",
            allow("client", "server", "[8080]", "TCP"),
            allow("client", "server", "[9999]", "TCP")
        );
        let applied = node
            .apply(&pair.world().rules(&wider).unwrap().model)
            .unwrap();
        assert!(!applied.narrows);
        assert!(held.again().unwrap().replied());
        let applied = node
            .apply(&pair.world().rules("[]").unwrap().model)
            .unwrap();
        assert!(applied.narrows);
        assert!(!held.again().unwrap().replied(), "{to}");
        node.apply(&open.model).unwrap();
    }
}

#[test]
fn quarantine_is_one_map_write_and_cuts_an_open_connection_in_every_mode() {
    let pair = Pair::new();
    let rules = format!("[{}]", allow("client", "server", "[8080]", "[TCP, UDP]"));
    for mode in [Mode::Enforce, Mode::Audit] {
        let world = pair.world().rules(&rules).unwrap().mode(mode);
        let mut node = pair.node(&world);
        let mut held = pair.client.tcp_held(pair.v4(), SHORT).unwrap();
        assert!(held.again().unwrap().replied());
        for name in ["client", "server"] {
            let number = node.number(&zt_tests::node::identity(name)).unwrap();
            node.trust.set(number, true).unwrap();
            node.events();
            assert!(
                !pair
                    .client
                    .udp(pair.v4(), Udp::SendTo, SHORT)
                    .unwrap()
                    .replied()
            );
            let new = pair.client.tcp(pair.v4(), SHORT).unwrap();
            assert_eq!(new.errno.as_deref(), Some("EPERM"));
            assert!(denials(&node.events()).contains(&(Hook::Connect4, Reason::Quarantined)));
            node.trust.set(number, false).unwrap();
            assert!(pair.client.tcp(pair.v4(), PATIENT).unwrap().replied());
        }
        let number = node.number(&zt_tests::node::identity("client")).unwrap();
        node.trust.set(number, true).unwrap();
        assert!(!held.again().unwrap().replied());
        node.trust.set(number, false).unwrap();
        node.pins.remove().unwrap();
    }
}

#[test]
fn a_grant_lapses_in_the_kernel_by_itself() {
    let pair = Pair::new();
    let mut world = pair
        .world()
        .rules(&format!("[{}]", allow("client", "server", "[8080]", "TCP")))
        .unwrap();
    // To load the programs takes longer than the grant lasts.
    let mut node = pair.node(&world);
    let in_a_moment = std::time::SystemTime::now() + scaled(Duration::from_millis(4000));
    let nanos = in_a_moment
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    Arc::make_mut(&mut world.model.policies[0].rules)[0].expires =
        Some(u64::try_from(nanos).unwrap());
    node.apply(&world.model).unwrap();
    let mut held = pair.client.tcp_held(pair.v4(), SHORT).unwrap();
    assert!(held.again().unwrap().replied());
    let live = node.events();
    assert!(
        live.iter()
            .any(|event| event.reason == Reason::LiveGrant as u8)
    );
    sleep(
        in_a_moment
            .elapsed()
            .map_or_else(|ahead| ahead.duration(), |_| Duration::ZERO),
    );
    assert!(!held.again().unwrap().replied());
    let new = pair.client.tcp(pair.v4(), SHORT).unwrap();
    assert_eq!(new.errno.as_deref(), Some("EPERM"));
    assert!(denials(&node.events()).contains(&(Hook::Connect4, Reason::GrantExpired)));
}

#[test]
fn a_deny_rule_beats_an_allow_and_has_its_own_reason() {
    let pair = Pair::new();
    let deny = allow("client", "server", "[8080]", "TCP").replacen('{', "{action: deny, ", 1);
    let rules = format!("[{}, {deny}]", allow("client", "server", "any", "TCP"));
    let mut node = pair.node(&pair.world().rules(&rules).unwrap());
    let tcp = pair.client.tcp(pair.v4(), SHORT).unwrap();
    assert_eq!(tcp.errno.as_deref(), Some("EPERM"));
    assert!(denials(&node.events()).contains(&(Hook::Connect4, Reason::DeniedByRule)));
}

#[test]
fn what_nobody_enrolled_is_denied_and_passes_in_audit_mode() {
    let mut pair = Pair::new();
    pair.passes_without_programs();
    let only_server = World::default().enrol(&pair.server, &pair.server_ips);
    let mut node = pair.node(&only_server);
    for to in pair.targets() {
        let tcp = pair.client.tcp(to, SHORT).unwrap();
        assert_eq!(tcp.errno.as_deref(), Some("EPERM"));
    }
    assert!(denials(&node.events()).contains(&(Hook::Connect4, Reason::Unenrolled)));
    node.apply(&only_server.mode(Mode::Audit).model).unwrap();
    assert!(pair.client.tcp(pair.v4(), PATIENT).unwrap().replied());
    let events = node.events();
    let would = |reason: Reason| {
        events
            .iter()
            .any(|event| event.verdict == Verdict::WouldDeny as u8 && event.reason == reason as u8)
    };
    assert!(would(Reason::Unenrolled));
    assert!(would(Reason::NoPolicy) || would(Reason::UnknownPeer));
}

#[test]
fn nothing_passes_before_the_first_generation() {
    let mut pair = Pair::new();
    pair.passes_without_programs();
    let mut node = Node::new(&pair.sandbox).unwrap();
    node.attach().unwrap();
    for to in pair.targets() {
        let tcp = pair.client.tcp(to, SHORT).unwrap();
        assert_eq!(tcp.errno.as_deref(), Some("EPERM"));
        assert!(!pair.client.udp(to, Udp::SendTo, SHORT).unwrap().replied());
    }
    let raw = pair.client.raw("v4").unwrap();
    assert_eq!(raw.errno.as_deref(), Some("EPERM"));
    assert!(denials(&node.events()).contains(&(Hook::Connect4, Reason::NotReady)));
}

#[test]
fn raw_sockets_need_a_grant() {
    let pair = Pair::new();
    assert!(pair.client.raw("v4").unwrap().connected);
    let mut world = pair.world();
    let mut node = pair.node(&world);
    for family in ["v4", "v6"] {
        let raw = pair.client.raw(family).unwrap();
        assert_eq!(raw.errno.as_deref(), Some("EPERM"), "{family}");
    }
    assert_eq!(
        denials(&node.events()),
        [(Hook::SockCreate, Reason::RawSocket); 2]
    );
    world.model.workloads[0].raw_sockets = true;
    node.apply(&world.model).unwrap();
    assert!(pair.client.raw("v4").unwrap().connected);
}

#[test]
fn icmp_is_a_protocol_of_its_own() {
    let pair = Pair::new();
    for workload in [&pair.client, &pair.server] {
        workload.netns().unwrap().allow_ping().unwrap();
    }
    let ping = |limit| pair.client.ping(pair.server_ips[0], limit).unwrap();
    assert!(ping(PATIENT).replied(), "passes without programs");
    let tcp_only = format!("[{}]", allow("client", "server", "any", "[TCP, UDP]"));
    let mut node = pair.node(&pair.world().rules(&tcp_only).unwrap());
    assert!(!ping(SHORT).replied());
    let both = format!("[{}]", allow("client", "server", "any", "ICMP"));
    node.apply(&pair.world().rules(&both).unwrap().model)
        .unwrap();
    for ip in &pair.server_ips {
        assert!(pair.client.ping(*ip, PATIENT).unwrap().replied(), "{ip}");
    }
}

#[test]
fn a_mapped_address_is_the_address_it_maps() {
    let pair = Pair::new();
    let IpAddr::V4(v4) = pair.server_ips[0] else {
        panic!("the first address is IPv4");
    };
    let mapped: SocketAddr = (v4.to_ipv6_mapped(), PORT).into();
    assert!(pair.client.tcp(mapped, PATIENT).unwrap().replied());
    let mut node = pair.node(&pair.world().rules("[]").unwrap());
    let tcp = pair.client.tcp(mapped, SHORT).unwrap();
    assert_eq!(tcp.errno.as_deref(), Some("EPERM"));
    let udp = pair.client.udp(mapped, Udp::SendTo, SHORT).unwrap();
    assert_eq!(udp.errno.as_deref(), Some("EPERM"));
    let events = node.events();
    assert_eq!(denials(&events)[0], (Hook::Connect6, Reason::NoPolicy));
    let server = node.number(&zt_tests::node::identity("server")).unwrap();
    assert!(events.iter().all(|event| event.destination == server));
    let rules = format!("[{}]", allow("client", "server", "[8080]", "[TCP, UDP]"));
    node.apply(&pair.world().rules(&rules).unwrap().model)
        .unwrap();
    assert!(pair.client.tcp(mapped, PATIENT).unwrap().replied());
    assert!(
        pair.client
            .udp(mapped, Udp::SendTo, PATIENT)
            .unwrap()
            .replied()
    );
}

#[test]
fn loopback_is_free_in_a_namespace_of_ones_own() {
    let pair = Pair::new();
    let local: SocketAddr = "127.0.0.1:8081".parse().unwrap();
    let local6: SocketAddr = "[::1]:8081".parse().unwrap();
    let own: SocketAddr = (pair.server_ips[0], 8081).into();
    let all = [local, local6, own];
    let serving = pair.server.serve(&all, &all).unwrap();
    let mut node = pair.node(&pair.world().rules("[]").unwrap());
    // The server's sockets were made before the programs were there: nothing
    // is known of their namespace.
    for to in all {
        assert!(pair.server.tcp(to, PATIENT).unwrap().replied(), "{to}");
        assert!(
            pair.server.udp(to, Udp::SendTo, PATIENT).unwrap().replied(),
            "{to}"
        );
    }
    drop(serving);
    let serving = pair.server.serve(&all, &all).unwrap();
    for to in all {
        assert!(pair.server.tcp(to, PATIENT).unwrap().replied(), "{to}");
        assert!(
            pair.server.udp(to, Udp::SendTo, PATIENT).unwrap().replied(),
            "{to}"
        );
    }
    assert_eq!(denials(&node.events()), []);
    drop(serving);
}

#[test]
fn unknown_addresses_of_the_cluster_conflicts_and_the_world_are_told_apart() {
    let pair = Pair::new();
    let mut world = World::default().enrol(&pair.client, &pair.client_ips);
    world = world
        .enrol_cgroup("server", pair.server.cgroup(), None)
        .rules("[{from: {spiffe: \"spiffe://test/**\"}, to: [{reserved: world, ports: any}]}]")
        .unwrap();
    let mut node = pair.node(&world);
    let seen = |node: &mut Node| {
        let events = node.events();
        let event = events
            .iter()
            .find(|event| event.hook == Hook::Connect4 as u8);
        event.map(|event| (event.destination, event.verdict))
    };
    let _ = pair.client.tcp(pair.v4(), SHORT).unwrap();
    assert_eq!(
        seen(&mut node),
        Some((identity::WORLD, Verdict::Allow as u8))
    );

    world.model.cluster_ranges = vec!["10.0.0.0/8".parse().unwrap()];
    node.apply(&world.model).unwrap();
    let _ = pair.client.tcp(pair.v4(), SHORT).unwrap();
    assert_eq!(
        seen(&mut node),
        Some((identity::UNKNOWN_PEER, Verdict::Deny as u8))
    );

    for name in ["a", "b"] {
        world = world.claim(Endpoint {
            ip: pair.server_ips[0],
            party: party(name),
            cgroup: None,
            ports: None,
            target: None,
        });
    }
    node.apply(&world.model).unwrap();
    let _ = pair.client.tcp(pair.v4(), SHORT).unwrap();
    assert_eq!(
        seen(&mut node),
        Some((identity::CONFLICT, Verdict::Deny as u8))
    );
    assert!(node.counters.totals().unwrap().decisions > 0);
}

#[test]
fn a_services_address_is_asked_for_with_the_port_behind_it() {
    let mut pair = Pair::new();
    pair.passes_without_programs();
    let service = pair.v4();
    let nobodys = SocketAddr::new(service.ip(), 9);
    let mut world = World::default().enrol(&pair.client, &pair.client_ips);
    world.model.cluster_ranges = vec!["10.0.0.0/8".parse().unwrap()];
    let world = world
        .enrol_cgroup("server", pair.server.cgroup(), None)
        .claim(Endpoint {
            ip: service.ip(),
            party: party("behind"),
            cgroup: None,
            ports: Some(vec![(Protocol::Tcp, service.port())]),
            target: Some(5432),
        });
    // What the server's own end wants.
    let incoming = allow("client", "server", "[8080]", "TCP");
    let told = |to| {
        let attempt = pair.client.tcp(to, PATIENT).unwrap();
        attempt.errno.unwrap_or_else(|| "replied".to_owned())
    };
    for (ports, expected) in [
        ("[5432]", "replied"),
        ("[8080]", "EPERM"),
        ("[\"5000-6000\"]", "replied"),
        ("any", "replied"),
    ] {
        let rules = format!("[{}, {incoming}]", allow("client", "behind", ports, "TCP"));
        let mut node = pair.node(&world.clone().rules(&rules).unwrap());
        assert_eq!(told(service), expected, "{ports}");
        assert_eq!(told(nobodys), "EPERM", "{ports}");
        let mut denied = vec![(Hook::Connect4, Reason::UnknownPeer)];
        if expected == "EPERM" {
            denied.insert(0, (Hook::Connect4, Reason::NoPolicy));
        }
        assert_eq!(denials(&node.events()), denied, "{ports}");
    }
}

#[test]
fn a_process_deeper_in_an_enrolled_cgroup_belongs_to_it() {
    let pair = Pair::new();
    let deeper = pair.client.cgroup().child("a").unwrap().child("b").unwrap();
    let nested = Workload::sharing("client", deeper, pair.client.netns().cloned());
    let rules = format!("[{}]", allow("client", "server", "[8080]", "TCP"));
    let node = pair.node(&pair.world().rules(&rules).unwrap());
    assert!(nested.tcp(pair.v4(), PATIENT).unwrap().replied());
    assert!(pair.client.tcp(pair.v4(), PATIENT).unwrap().replied());
    drop(node);
}

#[test]
fn decisions_are_counted_exactly_and_each_has_its_event() {
    let pair = Pair::new();
    let rules = format!("[{}]", allow("client", "server", "[8080]", "TCP"));
    let mut node = pair.node(&pair.world().rules(&rules).unwrap());
    for _ in 0..5 {
        assert!(pair.client.tcp(pair.v4(), PATIENT).unwrap().replied());
        assert!(
            !pair
                .client
                .udp(pair.v4(), Udp::SendTo, SHORT)
                .unwrap()
                .replied()
        );
    }
    sleep(Duration::from_millis(100));
    let events = node.events();
    let totals = node.counters.totals().unwrap();
    assert_eq!(totals.decisions, events.len() as u64);
    assert_eq!((totals.lost_ring, totals.uncounted), (0, 0));
    let counted: u64 = node.counters.counts().unwrap().values().sum();
    assert_eq!(counted, totals.decisions);
    // One connection is one decision at each end, not one per packet or hook.
    let tcp = events.iter().filter(|event| event.protocol == 6).count();
    assert_eq!(tcp, 10, "{events:#?}");
    let rule = events.iter().find(|event| event.rule != 0).unwrap().rule;
    assert_eq!(node.counters.hits(rule).unwrap(), 10);
    let mut next = std::collections::BTreeMap::<u16, u64>::new();
    for event in &events {
        let expected = next.entry(event.cpu).or_default();
        assert_eq!(event.sequence, *expected, "no gap on cpu {}", event.cpu);
        *expected += 1;
    }
}

#[test]
fn both_ends_of_a_connection_keep_its_verdict_with_the_socket() {
    let pair = Pair::new();
    let rules = format!("[{}]", allow("client", "server", "[8080]", "TCP"));
    let mut node = pair.node(&pair.world().rules(&rules).unwrap());
    let mut held = pair.client.tcp_held(pair.v4(), PATIENT).unwrap();
    assert!(held.again().unwrap().replied());
    node.forget_flows().unwrap();
    node.events();
    assert!(held.again().unwrap().replied());
    sleep(Duration::from_millis(100));
    assert_eq!(node.events(), [], "nothing is decided again");
}

/// Whose a socket is that is older than the programs is written down once; a
/// packet that came by before must not be in the way.
#[test]
fn an_older_socket_that_met_a_packet_is_adopted_all_the_same() {
    use zt_agent::kernel::elders;

    let sandbox = Sandbox::new().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let cgroup = sandbox.cgroup().child("static").unwrap();
    let listener = Workload::sharing("static", cgroup, None);
    let at = zt_tests::agent::free_port().unwrap();
    let _listening = listener.serve(&[at], &[]).unwrap();
    node.attach().unwrap();
    // From a process that nobody governs. It is denied, as nothing is in force.
    assert!(std::net::TcpStream::connect_timeout(&at, SHORT).is_err());
    let adopted = elders::adopt(&node.root, &node.pins).unwrap();
    assert!(
        adopted.sockets > 0 && adopted.refused.is_none(),
        "{adopted:?}"
    );
    assert_eq!(elders::adopt(&node.root, &node.pins).unwrap().sockets, 0);
}
