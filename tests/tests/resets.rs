//! Connections that are cut while nobody ends their sockets: one reset per
//! layer passes, the interface makes one of the first segment to the workload,
//! and nothing else arrives.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::errno::Errno;
use zt_agent::model::Endpoint;
use zt_common::{
    codes::{Direction, Hook, Protocol, Verdict},
    reset::{RST, fold, sum},
};
use zt_tests::{
    Sandbox, Workload,
    actor::Actor,
    netns::{Netns, Network},
    node::{World, allow, party},
    packet::{ACK, V4, checksum, hex, tcp},
    patience::{factor, scaled},
    pool::Lease,
    wire::Wire,
};

const FAR_PORT: u16 = 8080;
const OWN_PORT: u16 = 9000;
const SENTINEL: u16 = 7000;
const TCP: u8 = Protocol::Tcp as u8;
const FIN: u8 = 0x01;
/// How long nothing more may come before it is believed.
const QUIET: Duration = Duration::from_millis(700);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layers {
    Sockets,
    Interface,
    All,
}

/// A governed workload, and one of another node. No agent runs, so nobody ends
/// a socket.
struct Lab {
    a: Actor,
    far: Actor,
    node: Lease,
    world: World,
    /// What is allowed whatever is cut.
    kept: String,
    workload: Workload,
    far_netns: Netns,
    network: Network,
    _sandbox: Sandbox,
}

impl Lab {
    fn new(layers: Layers) -> Self {
        let sandbox = Sandbox::new().unwrap();
        let network = sandbox.network(9).unwrap();
        let workload = sandbox.workload(&network, "a", 10).unwrap();
        let far_netns = network.join("far", 30).unwrap();
        let both = |host| -> [IpAddr; 2] { [network.ipv4(host).into(), network.ipv6(host).into()] };
        let world = World::default()
            .enrol(&workload, &both(10))
            .connect(&network, &workload)
            .unwrap();
        let far = |ip| Endpoint {
            ip,
            party: party("far"),
            cgroup: None,
            ports: None,
            target: None,
        };
        let mut world = both(30).into_iter().map(far).fold(world, World::claim);
        world.model.workloads[0].raw_sockets = true;
        let mut node = Lease::take(&sandbox).unwrap();
        let kept = allow("a", "far", &format!("[{SENTINEL}]"), "UDP");
        node.apply(&world.clone().rules(&format!("[{kept}]")).unwrap().model)
            .unwrap();
        if layers != Layers::Interface {
            node.attach().unwrap();
        }
        if layers != Layers::Sockets {
            node.cover(&network, &workload).unwrap();
        }
        Self {
            a: Actor::member(&workload),
            far: Actor::outside(&far_netns),
            node,
            world,
            kept,
            workload,
            far_netns,
            network,
            _sandbox: sandbox,
        }
    }

    fn ip(&self, v6: bool, host: u8) -> IpAddr {
        if v6 {
            self.network.ipv6(host).into()
        } else {
            self.network.ipv4(host).into()
        }
    }

    fn apply(&mut self, rules: &[String]) {
        let rules = [std::slice::from_ref(&self.kept), rules]
            .concat()
            .join(", ");
        let world = self.world.clone().rules(&format!("[{rules}]")).unwrap();
        self.node.apply(&world.model).unwrap();
    }

    fn open(&mut self) {
        self.apply(&[
            allow("a", "far", &format!("[{FAR_PORT}]"), "TCP"),
            allow("far", "a", &format!("[{OWN_PORT}]"), "TCP"),
        ]);
    }

    /// Nothing of TCP is allowed any more; the events until then are forgotten.
    fn cut(&mut self) {
        self.node.events();
        self.apply(&[]);
    }

    /// The records since [`Self::cut`]: hooks that denied, and in which direction.
    fn denials(&mut self) -> Vec<(Hook, u8)> {
        let events = self.node.events();
        let denied = events
            .iter()
            .filter(|event| event.verdict == Verdict::Deny as u8);
        denied
            // Shown when the test fails.
            .inspect(|event| println!("{event:?}"))
            .filter_map(|event| Some((Hook::from_code(event.hook)?, event.direction)))
            .collect()
    }

    /// A connection over which something was said both ways.
    fn connected(&mut self, v6: bool, by_workload: bool) -> Connection {
        let (a_ip, far_ip) = (self.ip(v6, 10), self.ip(v6, 30));
        let kind = if v6 { "tcp6" } else { "tcp4" };
        let (client, server, at): (_, _, SocketAddr) = if by_workload {
            (&mut self.a, &mut self.far, (far_ip, FAR_PORT).into())
        } else {
            (&mut self.far, &mut self.a, (a_ip, OWN_PORT).into())
        };
        let listener = server.get(&format!("socket {kind}"));
        server.act(&format!("reuse {listener}")).unwrap();
        server.act(&format!("bind {listener} {at}")).unwrap();
        server.act(&format!("listen {listener}")).unwrap();
        let opened = client.get(&format!("socket {kind}"));
        client.act(&format!("connect {opened} {at}")).unwrap();
        let taken = server.get(&format!("accept {listener}"));
        server.act(&format!("close {listener}")).unwrap();
        client.act(&format!("send {opened} hello")).unwrap();
        assert_eq!(server.act(&format!("recv {taken}")).unwrap(), "hello");
        server.act(&format!("send {taken} hello")).unwrap();
        assert_eq!(client.act(&format!("recv {opened}")).unwrap(), "hello");
        let port = client.get(&format!("port {opened}")).try_into().unwrap();
        if by_workload {
            Connection {
                a: opened,
                far: taken,
                ports: [port, FAR_PORT],
            }
        } else {
            Connection {
                a: taken,
                far: opened,
                ports: [OWN_PORT, port],
            }
        }
    }

    /// Sends a segment of the workload's by a raw socket.
    fn forge(&mut self, ports: [u16; 2], flags: u8, payload: &[u8], tag: u16) {
        let (from, to) = (self.network.ipv4(10), self.network.ipv4(30));
        let segment = tcp(
            (from.into(), ports[0]),
            (to.into(), ports[1]),
            flags,
            payload,
        );
        let packet = V4::new(from, to, TCP).identification(tag).packet(&segment);
        let socket = self.a.get("socket raw4:255");
        let to = SocketAddr::from((to, 0));
        // The caller may be told that it is dropped.
        let _ = self
            .a
            .act(&format!("sendhex {socket} {to} {}", hex(&packet)));
        self.a.act(&format!("close {socket}")).unwrap();
    }

    /// Something allowed, after which everything before it has arrived.
    fn sentinel(&mut self) {
        let to = SocketAddr::new(self.ip(false, 30), SENTINEL);
        let socket = self.a.get("socket udp4");
        self.a
            .act(&format!("sendto {socket} {to} sentinel"))
            .unwrap();
        self.a.act(&format!("close {socket}")).unwrap();
    }
}

/// The sockets of both ends, and the ports, the workload's first.
struct Connection {
    a: u32,
    far: u32,
    ports: [u16; 2],
}

/// A TCP segment in a frame.
struct Segment {
    identification: u16,
    ports: [u16; 2],
    flags: u8,
    payload: usize,
    /// The folded sum over pseudo header and segment; 0xffff is right.
    whole: u16,
    /// The checksum as it stands there, and the folded sum of the pseudo header.
    stands: u16,
    pseudo: u16,
    /// Of IPv4.
    header_is_right: bool,
    is_plain: bool,
}

impl Segment {
    fn read(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (ip, length, addresses, identification) = match (frame[12], frame[13]) {
            (8, 0) if packet[9] == TCP => (20, usize::from(word(2)), &packet[12..20], word(4)),
            (0x86, 0xdd) if packet[6] == TCP => (40, 40 + usize::from(word(4)), &packet[8..40], 0),
            _ => return None,
        };
        let segment = packet.get(ip..length)?;
        let size = u16::try_from(segment.len()).unwrap();
        let tail = [0, TCP, size.to_be_bytes()[0], size.to_be_bytes()[1]];
        let pseudo = [addresses, &tail].concat();
        Some(Self {
            identification,
            ports: [word(ip), word(ip + 2)],
            flags: segment[13],
            payload: segment.len() - usize::from(segment[12] >> 4) * 4,
            whole: !checksum(&[&pseudo[..], segment].concat()),
            stands: word(ip + 16),
            pseudo: !checksum(&pseudo),
            header_is_right: ip == 40 || checksum(&packet[..20]) == 0,
            is_plain: segment[12] >> 4 == 5 && packet.len() == length,
        })
    }
}

/// The segments that come to an end until it is quiet, or the sentinel comes.
fn segments(wire: &Wire, ports: [u16; 2]) -> Vec<Segment> {
    let mut found = Vec::new();
    while let Some(frame) = wire.next(scaled(QUIET)).unwrap() {
        if frame.ends_with(b"sentinel") {
            break;
        }
        found.extend(Segment::read(&frame).filter(|segment| segment.ports == ports));
    }
    found
}

#[test]
fn one_bare_reset_of_a_cut_flow_passes_and_nothing_else_of_it() {
    for layers in [Layers::Sockets, Layers::Interface, Layers::All] {
        let mut lab = Lab::new(layers);
        lab.open();
        let cut = lab.connected(false, true);
        let other = lab.connected(false, false);
        let wire = Wire::open(&lab.far_netns, "eth0").unwrap();
        lab.cut();
        lab.forge(cut.ports, RST | ACK, b"data!", 101);
        lab.forge(cut.ports, RST | FIN, &[], 102);
        lab.forge(cut.ports, ACK, b"data!", 103);
        lab.forge(cut.ports, RST, &[], 104);
        lab.forge(cut.ports, RST, &[], 105);
        lab.forge(cut.ports, RST | ACK, &[], 106);
        // Of the flow that the other end opened, too.
        lab.forge(other.ports, RST, &[], 107);
        lab.forge(other.ports, RST, &[], 108);
        // Never allowed, and denied already.
        lab.forge([cut.ports[0], 4444], RST, &[], 109);
        lab.forge([cut.ports[0], 4444], RST, &[], 110);
        let _ = lab.a.act(&format!("send {} late", cut.a));
        lab.sentinel();
        let mut passed = Vec::new();
        while let Some(frame) = wire.next(scaled(QUIET)).unwrap() {
            if frame.ends_with(b"sentinel") {
                break;
            }
            let from = lab.network.ipv4(10).octets();
            if frame[26..30] == from {
                passed.extend(Segment::read(&frame).map(|segment| segment.identification));
            }
        }
        assert_eq!(passed, [104, 107], "{layers:?}");
    }
}

/// Both ends are told, by what is right on the wire; `offload`: the network
/// computes checksums. The flow is recorded once, whatever passes of it.
fn told_at_both_ends(layers: Layers, v6: bool, by_workload: bool, offload: bool) {
    let case = format!("{layers:?}, IPv6: {v6}, by the workload: {by_workload}, {offload}");
    let mut lab = Lab::new(layers);
    if !offload {
        complete_checksums(&lab.far_netns);
    }
    lab.open();
    let connection = lab.connected(v6, by_workload);
    let netns = lab.workload.netns().unwrap();
    let (inward, outward) = (
        Wire::open(netns, "eth0").unwrap(),
        Wire::open(&lab.far_netns, "eth0").unwrap(),
    );
    lab.cut();
    // More than one packet at once, where the network takes it.
    let to = SocketAddr::new(lab.ip(v6, 10), connection.ports[0]);
    let size = if offload { 9000 } else { 5 };
    let [own, port] = connection.ports;
    lab.far
        .act(&format!("sendsize {} {to} {size}", connection.far))
        .unwrap();
    let heard = lab.a.act(&format!("recv {}", connection.a));
    assert_eq!(heard, Err("ECONNRESET".to_owned()), "{case}");
    let heard = lab.far.act(&format!("recv {}", connection.far));
    assert_eq!(heard, Err("ECONNRESET".to_owned()), "{case}");

    let came = segments(&inward, [port, own]);
    let flags: Vec<u8> = came.iter().map(|segment| segment.flags).collect();
    assert_eq!(flags, [RST | ACK, ACK], "{case}");
    for segment in &came {
        assert_eq!(segment.payload, 0, "{case}");
        assert!(segment.header_is_right && segment.is_plain, "{case}");
        if offload {
            assert_eq!(segment.stands, segment.pseudo, "{case}");
        } else {
            assert_eq!(segment.whole, 0xffff, "{case}");
        }
    }
    let left = segments(&outward, [own, port]);
    let flags: Vec<u8> = left.iter().map(|segment| segment.flags).collect();
    assert_eq!(flags, [RST], "{case}");
    let mut denials = lab.denials();
    let by = if by_workload {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    if factor() > 1 {
        // A slow machine may send a third frame before it is told: that one is
        // also asked about in its own direction, once.
        assert!(denials.len() <= 2, "{case}");
        denials.retain(|(hook, direction)| *hook != Hook::TcTo || *direction == by as u8);
    }
    assert_eq!(denials, [(Hook::TcTo, by as u8)], "{case}");
}

#[test]
fn a_segment_to_a_cut_workload_resets_both_ends() {
    for (layers, v6, by_workload) in [
        (Layers::Interface, false, true),
        (Layers::Interface, true, false),
        (Layers::All, false, false),
        (Layers::All, true, true),
    ] {
        told_at_both_ends(layers, v6, by_workload, true);
    }
}

#[test]
fn a_reset_is_right_where_the_checksum_is_complete() {
    for v6 in [false, true] {
        told_at_both_ends(Layers::All, v6, true, false);
    }
}

#[test]
fn what_is_allowed_again_owes_nothing() {
    let mut lab = Lab::new(Layers::All);
    lab.open();
    let connection = lab.connected(false, true);
    lab.cut();
    let _ = lab.a.act(&format!("send {} early", connection.a));
    lab.open();
    assert_eq!(
        lab.far.act(&format!("recv {}", connection.far)),
        Ok("early".to_owned())
    );
    lab.far
        .act(&format!("send {} again", connection.far))
        .unwrap();
    assert_eq!(
        lab.a.act(&format!("recv {}", connection.a)),
        Ok("again".to_owned())
    );
}

#[test]
fn sums_of_the_kernel_are_those_of_the_tests() {
    let bytes: [u8; 20] = std::array::from_fn(|n| u8::try_from(n * 13 % 251).unwrap());
    assert_eq!(fold(sum(&bytes)), !checksum(&bytes));
}

/// The namespace's interface leaves no checksum to others.
fn complete_checksums(netns: &Netns) {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let switch = || {
        // SAFETY: no pointers.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
        let socket = Errno::result(socket)?;
        let mut value = [ETHTOOL_STXCSUM, 0];
        // SAFETY: plain integers and a pointer, all zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
            *to = libc::c_char::try_from(*from)?;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the request and what it points to outlive the call.
        let done = unsafe { libc::ioctl(socket, SIOCETHTOOL as _, &raw mut request) };
        // SAFETY: it is ours.
        unsafe { libc::close(socket) };
        Errno::result(done)?;
        Ok(())
    };
    netns.enter(switch).unwrap();
}
