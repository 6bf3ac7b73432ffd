//! Every reason there is comes out of a real decision in the kernel. A reason
//! without a case here fails the test.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use zt_agent::model::{Endpoint, InterfaceSpec};
use zt_common::codes::{Protocol, Reason};
use zt_tests::{
    Sandbox, Workload,
    node::{Node, World, allow, identity, party},
    patience::scaled,
    test_run::{Asker, Packet, Transport},
    workload::{Held, Server},
};

/// For what must answer.
const PATIENT: Duration = Duration::from_secs(2);
/// For what need not.
const SHORT: Duration = Duration::from_millis(200);

const PORT: u16 = 8080;
/// What drops a frame (`linux/pkt_cls.h`).
const TC_ACT_SHOT: u32 = 2;

/// A port on loopback that the tenant listens on.
const OPEN: u16 = 9000;
/// A port on loopback that is declared as the tenant's own.
const OWNED: u16 = 9001;

type Case = fn(&mut Stage);

/// The cases in the order in which they must run: the first needs a node that
/// knows nothing, the second a connection older than the programs.
const CASES: &[(Reason, Case)] = &[
    (Reason::NotReady, not_ready),
    (Reason::AllowedReverse, allowed_reverse),
    (Reason::AllowedByRule, allowed_by_rule),
    (Reason::LiveGrant, live_grant),
    (Reason::HostAllowed, host_allowed),
    (Reason::NoPolicy, no_policy),
    (Reason::DeniedByRule, denied_by_rule),
    (Reason::Unenrolled, unenrolled),
    (Reason::Quarantined, quarantined),
    (Reason::GrantExpired, grant_expired),
    (Reason::UnknownPeer, unknown_peer),
    (Reason::Conflict, conflict),
    (Reason::Unparseable, unparseable),
    (Reason::UnsupportedProtocol, unsupported_protocol),
    (Reason::Fragment, fragment),
    (Reason::RawSocket, raw_socket),
    (Reason::PortOwned, port_owned),
    (Reason::Spoofed, spoofed),
    (Reason::UnknownEthertype, unknown_ethertype),
    (Reason::IpOptions, ip_options),
    (Reason::Tunnel, tunnel),
    (Reason::RouterAdvertisement, router_advertisement),
    (Reason::StrayError, stray_error),
    (Reason::NoRoom, no_room),
];

#[test]
fn every_reason_comes_out_of_the_kernel() {
    let mut reasons: Vec<Reason> = CASES.iter().map(|(reason, _)| *reason).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, Reason::ALL, "each reason has one case");

    let mut stage = Stage::new();
    for (reason, case) in CASES {
        stage.node.events();
        case(&mut stage);
        stage.wait_for(*reason);
    }
}

/// A client and a server with namespaces of their own; a tenant and its
/// neighbour that share one.
struct Stage {
    client: Workload,
    server: Workload,
    tenant: Workload,
    neighbour: Workload,
    client_ip: IpAddr,
    server_ip: IpAddr,
    node: Node,
    /// From the client to the server, older than the programs.
    held: Held,
    _serving: [Server; 2],
    // Dropped after the workloads.
    sandbox: Sandbox,
}

impl Stage {
    fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        let network = sandbox.network(8).unwrap();
        let client = sandbox.workload(&network, "client", 10).unwrap();
        let server = sandbox.workload(&network, "server", 20).unwrap();
        let shared = Arc::new(sandbox.netns("shared").unwrap());
        let sharing = |name: &str| {
            let cgroup = sandbox.cgroup().child(name).unwrap();
            Workload::sharing(name, cgroup, Some(Arc::clone(&shared)))
        };
        let (tenant, neighbour) = (sharing("tenant"), sharing("neighbour"));
        let server_ip: IpAddr = network.ipv4(20).into();
        let at = SocketAddr::from((server_ip, PORT));
        let serving = [
            server.serve(&[at], &[at]).unwrap(),
            tenant.serve(&[loopback(OPEN)], &[]).unwrap(),
        ];
        let held = client.tcp_held(at, PATIENT).unwrap();
        assert!(held.first.replied());
        let node = Node::new(&sandbox).unwrap();
        node.attach().unwrap();
        Self {
            client_ip: network.ipv4(10).into(),
            client,
            server,
            tenant,
            neighbour,
            server_ip,
            node,
            held,
            _serving: serving,
            sandbox,
        }
    }

    /// Everybody enrolled, with these rules.
    fn world(&self, rules: &str) -> World {
        let world = World::default()
            .enrol(&self.client, &[self.client_ip])
            .enrol(&self.server, &[self.server_ip])
            .enrol_cgroup("tenant", self.tenant.cgroup(), None)
            .enrol_cgroup("neighbour", self.neighbour.cgroup(), None);
        world.rules(rules).unwrap()
    }

    fn apply(&mut self, world: &World) {
        self.node.apply(&world.model).unwrap();
    }

    /// Makes these rules true, and the client try to reach the server.
    fn connect_under(&mut self, rules: &str) {
        self.apply(&self.world(rules));
        self.connect();
    }

    /// Whether it is let through is for others to test.
    fn connect(&self) {
        let at = (self.server_ip, PORT).into();
        self.client.tcp(at, SHORT).unwrap();
    }

    /// One rule, with a deadline `ahead` of now or in the past.
    fn connect_under_a_grant(&mut self, deadline: SystemTime) {
        let mut world = self.world(&to_server());
        let since = deadline.duration_since(UNIX_EPOCH).unwrap().as_nanos();
        Arc::make_mut(&mut world.model.policies[0].rules)[0].expires =
            Some(u64::try_from(since).unwrap());
        self.apply(&world);
        self.connect();
    }

    /// Claims the server's address for somebody.
    fn claimed_by(&self, name: &str) -> Endpoint {
        Endpoint {
            ip: self.server_ip,
            party: party(name),
            cgroup: None,
            ports: None,
            target: None,
        }
    }

    /// A packet from the client to the server that no ordinary socket sends.
    fn send(&mut self, transport: Transport) {
        let packet = Packet {
            source: self.client_ip,
            destination: self.server_ip,
            source_port: 1234,
            destination_port: PORT,
            transport,
        };
        let program = self.sandbox.directory().join("bpf/zt/zt_egress");
        if !program.exists() {
            assert_eq!(self.node.pin_program("zt_egress").unwrap(), program);
        }
        let mut asker = Asker::start(&self.client).unwrap();
        let ran = asker.run(&program, &packet).unwrap();
        assert_eq!(ran.returned, 0, "{transport:?} passes");
    }

    /// A frame of the client, changed, at what stands for its interface.
    fn send_frame(&mut self, transport: Transport, change: impl FnOnce(&mut Vec<u8>)) {
        const LOOPBACK: u32 = 1;
        let source = self.client_ip;
        let mut world = self.world("[]");
        world.model.interfaces.push(InterfaceSpec {
            index: LOOPBACK,
            name: "lo".into(),
            netns: self.client.netns().unwrap().cookie().unwrap(),
            mac: [2, 0, 0, 0, 0, 2],
            addresses: Vec::new(),
        });
        self.apply(&world);
        self.node.events();
        let program = self.sandbox.directory().join("bpf/zt/zt_tc_from");
        if !program.exists() {
            assert_eq!(self.node.pin_program("zt_tc_from").unwrap(), program);
        }
        let mut frame = Packet {
            source,
            destination: self.server_ip,
            source_port: 1234,
            destination_port: PORT,
            transport,
        }
        .frame();
        change(&mut frame);
        let mut asker = Asker::start(&self.client).unwrap();
        let ran = asker.run_frame(&program, &frame).unwrap();
        assert_eq!(ran.returned, TC_ACT_SHOT, "{transport:?} passes");
    }

    fn wait_for(&mut self, reason: Reason) {
        let deadline = Instant::now() + scaled(PATIENT);
        let mut seen = Vec::new();
        loop {
            seen.extend(self.node.events());
            if seen.iter().any(|event| event.reason == reason as u8) {
                return;
            }
            assert!(Instant::now() < deadline, "no {reason:?} in {seen:#?}");
            sleep(Duration::from_millis(5));
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn to_server() -> String {
    format!("[{}]", allow("client", "server", "any", "[TCP, UDP]"))
}

fn not_ready(stage: &mut Stage) {
    stage.connect();
}

/// A segment of an old connection, allowed only as if the server opened it.
fn allowed_reverse(stage: &mut Stage) {
    let rules = format!("[{}]", allow("server", "client", "any", "TCP"));
    stage.apply(&stage.world(&rules));
    assert!(stage.held.again().unwrap().replied());
}

fn allowed_by_rule(stage: &mut Stage) {
    stage.connect_under(&to_server());
}

fn live_grant(stage: &mut Stage) {
    stage.connect_under_a_grant(SystemTime::now() + Duration::from_secs(600));
}

/// This process is outside the managed root, and so the node's own.
fn host_allowed(stage: &mut Stage) {
    stage.apply(&stage.world("[]"));
    let netns = stage.tenant.netns().unwrap();
    let connected = netns.enter(|| {
        Ok(TcpStream::connect_timeout(
            &loopback(OPEN),
            scaled(PATIENT),
        )?)
    });
    connected.unwrap();
}

fn no_policy(stage: &mut Stage) {
    stage.connect_under("[]");
}

fn denied_by_rule(stage: &mut Stage) {
    let deny = allow("client", "server", "any", "TCP").replacen('{', "{action: deny, ", 1);
    stage.connect_under(&format!("[{deny}]"));
}

fn unenrolled(stage: &mut Stage) {
    stage.apply(&World::default().enrol(&stage.server, &[stage.server_ip]));
    stage.connect();
}

fn no_room(stage: &mut Stage) {
    let world = stage.world(&to_server());
    let number = |name| identity(name).parse().unwrap();
    let client = BTreeSet::from([number("client")]);
    stage.node.apply_shut(&world.model, &client).unwrap();
    stage.connect();
}

fn quarantined(stage: &mut Stage) {
    stage.apply(&stage.world(&to_server()));
    let number = stage.node.number(&identity("client")).unwrap();
    stage.node.trust.set(number, true).unwrap();
    stage.connect();
    stage.node.trust.set(number, false).unwrap();
}

fn grant_expired(stage: &mut Stage) {
    stage.connect_under_a_grant(SystemTime::now() - Duration::from_secs(1));
}

fn unknown_peer(stage: &mut Stage) {
    let mut world = World::default().enrol(&stage.client, &[stage.client_ip]);
    world.model.cluster_ranges = vec!["10.0.0.0/8".parse().unwrap()];
    stage.apply(&world);
    stage.connect();
}

fn conflict(stage: &mut Stage) {
    let world = stage
        .world(&to_server())
        .claim(stage.claimed_by("somebody"));
    stage.apply(&world);
    stage.connect();
}

/// No rule can name port 0.
fn unparseable(stage: &mut Stage) {
    stage.apply(&stage.world(&to_server()));
    let at = (stage.server_ip, 0).into();
    let tcp = stage.client.tcp(at, SHORT).unwrap();
    assert_eq!(tcp.errno.as_deref(), Some("EPERM"));
}

/// UDP-Lite, which not every kernel has sockets for.
fn unsupported_protocol(stage: &mut Stage) {
    stage.send(Transport::Other(136));
}

fn fragment(stage: &mut Stage) {
    stage.send(Transport::Fragment);
}

fn raw_socket(stage: &mut Stage) {
    let raw = stage.client.raw("v4").unwrap();
    assert_eq!(raw.errno.as_deref(), Some("EPERM"));
}

fn port_owned(stage: &mut Stage) {
    let owned = Endpoint {
        ip: loopback(OWNED).ip(),
        party: party("tenant"),
        cgroup: stage.tenant.cgroup().id().ok(),
        ports: Some(vec![(Protocol::Tcp, OWNED)]),
        target: None,
    };
    stage.apply(&stage.world("[]").claim(owned));
    let bind = |who: &Workload| who.bind("tcp", loopback(OWNED)).unwrap().errno;
    assert_eq!(bind(&stage.neighbour).as_deref(), Some("EPERM"));
    assert_eq!(bind(&stage.tenant), None);
}

/// Offsets in a frame with an IPv4 header.
const ETHERTYPE: usize = 12;
const IP: usize = 14;
const ICMP: usize = IP + 20;

fn spoofed(stage: &mut Stage) {
    // The last byte of the source address.
    stage.send_frame(Transport::Udp, |frame| frame[IP + 15] = 99);
}

fn unknown_ethertype(stage: &mut Stage) {
    // A VLAN tag.
    stage.send_frame(Transport::Udp, |frame| {
        frame[ETHERTYPE..IP].copy_from_slice(&[0x81, 0]);
    });
}

fn ip_options(stage: &mut Stage) {
    stage.send_frame(Transport::Udp, |frame| {
        frame[IP] = 0x46;
        // Do nothing, four times.
        frame.splice(ICMP..ICMP, [1, 1, 1, 1]);
    });
}

fn tunnel(stage: &mut Stage) {
    const GRE: u8 = 47;
    stage.send_frame(Transport::Other(GRE), |_| ());
}

/// ICMP router discovery; IPv6's is in the suite of bypasses.
fn router_advertisement(stage: &mut Stage) {
    stage.send_frame(Transport::Echo, |frame| frame[ICMP] = 9);
}

/// "Unreachable", about a packet that the server never sent.
fn stray_error(stage: &mut Stage) {
    stage.send_frame(Transport::Echo, |frame| {
        let mut quoted = frame[IP..ICMP + 8].to_vec();
        // From the server to the client.
        quoted[12..20].rotate_left(4);
        frame[ICMP] = 3;
        frame.extend(quoted);
    });
}
