//! The first frame: a process that sends from before its interface exists, by
//! every way past the sockets that the hooks see. Interfaces appear many at a
//! time, on the bridge and routed, and what arrives is counted where it would
//! arrive: at somebody who is governed by nobody, and at the node itself.
//!
//! | kind | made by | to |
//! |---|---|---|
//! | `icmp` | a raw ICMP socket, by IP | the watcher |
//! | `udp` | a UDP socket, by IP | the watcher |
//! | `node` | a UDP socket, by IP | the node |
//! | `frame` | a packet socket: Ethernet, IPv4, UDP | the watcher |
//! | `experiment` | a packet socket: an ethertype of nobody's, to everybody | the watcher, only on the bridge |

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{IoSlice, Write as _},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn,
        sendmsg, socket,
    },
};
use zt_tests::{
    netns::Netns,
    packet::{IPV4, UDP, V4, frame, icmp, udp},
    patience,
    wire::{BROADCAST, Wire, contains},
};

use crate::stage::{PATIENT, Settings, Stage, wait};

/// Interfaces that appear at once, half of them on the bridge.
const TOGETHER: usize = 16;
/// How often they do, idle and busy each: with [`TOGETHER`], hundreds of first
/// frames on the bridge and hundreds routed.
const ROUNDS: usize = 14;
/// How often without the agent, to see that the test sees what arrives.
const CONTROLS: usize = 2;

/// How long they stay after every one has sent: about when the agent comes.
const WHILE: Duration = Duration::from_millis(15);

const WATCHER: u8 = 30;
const NODE: u8 = 1;
const PORT: u16 = 4747;
/// An ethertype for local experiments (IEEE 802).
const EXPERIMENT: u16 = 0x88b5;
/// The index of the first interface inside. It is the same in every round, so
/// that packets can be sent to it before it is there.
const FIRST_INDEX: usize = 1000;
/// What all of them are a member of, so that they go at once.
const GROUP: &str = "4747";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Path {
    Bridged,
    Routed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Icmp,
    Udp,
    Node,
    Frame,
    Experiment,
}

const KINDS: [Kind; 5] = [
    Kind::Icmp,
    Kind::Udp,
    Kind::Node,
    Kind::Frame,
    Kind::Experiment,
];

/// What a path carries: routers forward IP only.
fn ways() -> impl Iterator<Item = (Path, Kind)> {
    let all = [Path::Bridged, Path::Routed].into_iter();
    let all = all.flat_map(|path| KINDS.map(|kind| (path, kind)));
    all.filter(|way| *way != (Path::Routed, Kind::Experiment))
}

/// What it has in it: nothing else that is sent here begins so.
fn tag(path: Path, kind: Kind) -> Vec<u8> {
    format!("zt-first-frame {path:?} {kind:?} ").into_bytes()
}

/// One interface and its other end.
#[derive(Clone, Copy)]
struct Slot(usize);

impl Slot {
    fn all() -> impl Iterator<Item = Self> {
        (0..TOGETHER).map(Self)
    }

    fn path(self) -> Path {
        if self.0.is_multiple_of(2) {
            Path::Bridged
        } else {
            Path::Routed
        }
    }

    fn number(self) -> u8 {
        u8::try_from(self.0).unwrap()
    }

    fn inside_index(self) -> usize {
        FIRST_INDEX + self.0
    }

    fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 1, self.number()]
    }

    fn host_mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 2, self.number()]
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs many commands of `ip` as one process.
fn batch(netns: &Netns, lines: &str) {
    let mut child = Command::new("ip")
        .args(["-n", netns.name(), "-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "ip: {lines}");
}

/// Who sends, who watches, and the node between them.
struct Scene {
    stage: Stage,
    pod: Netns,
    watcher: Netns,
    watcher_mac: [u8; 6],
    node_mac: [u8; 6],
    at_node: UdpSocket,
    /// How many interfaces there have been: the node gives every one another
    /// index.
    made: usize,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(Settings {
            on_the_bridge: true,
            managed: "[\"p*\"]",
            ..Settings::default()
        });
        let bridge = stage.network.bridge();
        let address = |host| stage.network.ipv4(host);
        let node = address(NODE);
        bridge
            .ip(&["address", "add", &format!("{node}/24"), "dev", "br0"])
            .unwrap();
        let forward = || Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?);
        bridge.enter(forward).unwrap();
        let watcher = stage.sandbox.netns("watcher").unwrap();
        let name = watcher.name();
        batch(
            bridge,
            &format!(
                "link add watch0 up master br0 type veth peer name eth0 address 02:00:00:00:00:30 netns {name}\n\
                 link set br0 address 02:00:00:00:00:01\n"
            ),
        );
        watcher.add_address(address(WATCHER).into()).unwrap();
        watcher.ip(&["link", "set", "eth0", "up"]).unwrap();
        let bind = || Ok(UdpSocket::bind((node, PORT))?);
        let at_node = bridge.enter(bind).unwrap();
        at_node
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        Self {
            pod: stage.sandbox.netns("newcomer").unwrap(),
            watcher,
            watcher_mac: [2, 0, 0, 0, 0, 0x30],
            node_mac: [2, 0, 0, 0, 0, 1],
            at_node,
            made: 0,
            stage,
        }
    }

    fn ip(&self, slot: Slot) -> Ipv4Addr {
        match slot.path() {
            Path::Bridged => self.stage.network.ipv4(100 + slot.number()),
            Path::Routed => Ipv4Addr::new(10, 88, 9, slot.number()),
        }
    }

    /// Where the slot's frames to the watcher go.
    fn next_hop(&self, slot: Slot) -> [u8; 6] {
        match slot.path() {
            Path::Bridged => self.watcher_mac,
            Path::Routed => slot.host_mac(),
        }
    }

    /// The interfaces appear, on the node's side as the workload's network
    /// would be set up, and then inside.
    fn appear(&mut self) {
        let pod = self.pod.name();
        let (mut outside, mut inside) = (String::new(), String::new());
        for slot in Slot::all() {
            let (n, ip) = (slot.0, self.ip(slot));
            let index = 2 * FIRST_INDEX + self.made;
            let (mac, host_mac) = (text(slot.mac()), text(slot.host_mac()));
            let (port, master, route) = match slot.path() {
                Path::Bridged => (format!("pb{n}"), "master br0", String::new()),
                Path::Routed => {
                    let port = format!("pr{n}");
                    let route = format!("route add {ip}/32 dev {port}\n");
                    (port, "", route)
                }
            };
            let inner = slot.inside_index();
            outside += &format!(
                "link add name {port} index {index} up {master} address {host_mac} group {GROUP} type veth peer name eth{n} index {inner} address {mac} netns {pod}\n{route}"
            );
            let watcher = self.stage.network.ipv4(WATCHER);
            let node = self.stage.network.ipv4(NODE);
            let hop = text(self.next_hop(slot));
            let to_node = match slot.path() {
                Path::Bridged => text(self.node_mac),
                Path::Routed => host_mac,
            };
            inside += &format!(
                "address add {ip}/32 dev eth{n}\n\
                 link set eth{n} up\n\
                 neigh replace {watcher} lladdr {hop} dev eth{n} nud permanent\n\
                 neigh replace {node} lladdr {to_node} dev eth{n} nud permanent\n"
            );
            self.made += 1;
        }
        batch(self.stage.network.bridge(), &outside);
        batch(&self.pod, &inside);
    }

    fn disappear(&self) {
        let bridge = self.stage.network.bridge();
        bridge.ip(&["link", "delete", "group", GROUP]).unwrap();
    }

    /// How many of the interfaces that are there now the agent has covered.
    fn covered(&self) -> usize {
        let status = self.stage.status();
        let list = status["interfaces"].as_array().unwrap();
        let is_new = |name: &str| name.starts_with("pb") || name.starts_with("pr");
        list.iter()
            .filter(|one| is_new(one["name"].as_str().unwrap()))
            .filter(|one| {
                let mut sides = one["sides"].as_array().unwrap().iter();
                sides.all(|side| side["program_id"].is_u64())
            })
            .count()
    }

    /// What the sender sends by a slot.
    fn messages(&self, slot: Slot) -> Vec<(Kind, Message)> {
        let (own, path) = (self.ip(slot), slot.path());
        let watcher = self.stage.network.ipv4(WATCHER);
        let node = self.stage.network.ipv4(NODE);
        let tag = |kind| tag(path, kind);
        let message = |kind| match kind {
            Kind::Icmp => Message::Icmp(watcher, echo(&tag(kind))),
            Kind::Udp => Message::Udp(watcher, tag(kind)),
            Kind::Node => Message::Udp(node, tag(kind)),
            Kind::Frame => {
                let packet = datagram(own, watcher, &tag(kind));
                Message::Frame(frame(self.next_hop(slot), slot.mac(), IPV4, &packet))
            }
            Kind::Experiment => {
                let mut payload = tag(kind);
                payload.resize(46, 0);
                Message::Frame(frame(BROADCAST, slot.mac(), EXPERIMENT, &payload))
            }
        };
        let ways = ways().filter(|way| way.0 == path);
        ways.map(|(_, kind)| (kind, message(kind))).collect()
    }

    /// The interfaces come and go `rounds` times, while one process sends and
    /// two receive.
    fn trials(&mut self, rounds: usize, with_agent: bool) -> Trials {
        let ending = AtomicBool::new(false);
        let messages: Vec<_> = Slot::all()
            .flat_map(|slot| {
                let index = slot.inside_index();
                let of = self.messages(slot).into_iter();
                of.map(move |(_, message)| (index, message))
            })
            .collect();
        let sent: Vec<AtomicUsize> = messages.iter().map(|_| AtomicUsize::new(0)).collect();
        let sockets = self.pod.enter(Sockets::open).unwrap();
        let wire = Wire::open(&self.watcher, "eth0").unwrap();
        let at_node = self.at_node.try_clone().unwrap();
        thread::scope(|scope| {
            let (ending, sent, messages) = (&ending, &sent, &messages);
            let ends = Ending(ending);
            scope.spawn(move || sockets.send_on(messages, sent, ending));
            let seen = scope.spawn(move || see(&wire, ending));
            let taken = scope.spawn(move || take(&at_node, ending));
            let start = Instant::now();
            for round in 1..=rounds {
                let before: Vec<usize> = sent.iter().map(load).collect();
                self.appear();
                // A trial in which nothing was sent would prove nothing.
                wait(PATIENT * 5, || {
                    before.iter().zip(sent).all(|(old, now)| load(now) > *old)
                });
                if with_agent && round == rounds {
                    // The others may go before the agent gets to them.
                    wait(PATIENT * 10, || self.covered() == TOGETHER);
                }
                sleep(WHILE);
                self.disappear();
            }
            let took = start.elapsed();
            sleep(Duration::from_millis(50));
            drop(ends);
            let mut arrived = seen.join().unwrap();
            arrived.extend(taken.join().unwrap());
            Trials {
                interfaces: rounds * TOGETHER,
                sent: sent.iter().map(load).sum(),
                arrived,
                took,
            }
        })
    }
}

/// Ends the threads, also when the test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn load(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

struct Trials {
    interfaces: usize,
    sent: usize,
    arrived: BTreeMap<(Path, Kind), usize>,
    took: Duration,
}

impl fmt::Display for Trials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} interfaces on the bridge and {} routed in {:.1?}; {} packets sent; arrived: {}",
            self.interfaces / 2,
            self.interfaces / 2,
            self.took,
            self.sent,
            self.arrived.values().sum::<usize>(),
        )
    }
}

enum Message {
    Icmp(Ipv4Addr, Vec<u8>),
    Udp(Ipv4Addr, Vec<u8>),
    Frame(Vec<u8>),
}

/// Sockets from before any interface; each message says by which it goes.
struct Sockets {
    icmp: OwnedFd,
    udp: OwnedFd,
    packet: OwnedFd,
}

impl Sockets {
    /// In the caller's network namespace.
    fn open() -> Result<Self> {
        let inet = AddressFamily::Inet;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers. Protocol 0: it sees nothing.
        let packet = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        Ok(Self {
            icmp: socket(inet, SockType::Raw, flags, SockProtocol::Icmp)?,
            udp: socket(inet, SockType::Datagram, flags, SockProtocol::Udp)?,
            // SAFETY: just made, and nobody else has it.
            packet: unsafe { OwnedFd::from_raw_fd(packet) },
        })
    }

    fn send_on(&self, messages: &[(usize, Message)], sent: &[AtomicUsize], ending: &AtomicBool) {
        while !ending.load(Ordering::Relaxed) {
            for ((index, message), sent) in messages.iter().zip(sent) {
                let done = match message {
                    Message::Icmp(to, bytes) => by_ip(&self.icmp, *index, *to, 0, bytes),
                    Message::Udp(to, bytes) => by_ip(&self.udp, *index, *to, PORT, bytes),
                    Message::Frame(bytes) => by_frame(&self.packet, *index, bytes),
                };
                // Until there is such an interface it is an error; the next
                // try may be in time.
                if done.is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

fn by_ip(from: &OwnedFd, index: usize, to: Ipv4Addr, port: u16, bytes: &[u8]) -> Result<()> {
    let info = libc::in_pktinfo {
        ipi_ifindex: i32::try_from(index)?,
        ipi_spec_dst: libc::in_addr { s_addr: 0 },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let to = SockaddrIn::from(SocketAddrV4::new(to, port));
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    let bytes = [IoSlice::new(bytes)];
    let flags = MsgFlags::empty();
    sendmsg(from.as_raw_fd(), &bytes, &control, flags, Some(&to))?;
    Ok(())
}

fn by_frame(from: &OwnedFd, index: usize, bytes: &[u8]) -> Result<()> {
    let to = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: EXPERIMENT.to_be(),
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&to))?;
    // SAFETY: the kernel reads the bytes and `length` bytes of `to`; both outlive
    // the call.
    let sent = unsafe {
        libc::sendto(
            from.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    Errno::result(sent).map(drop).context("sendto")
}

/// An ICMP echo request.
fn echo(payload: &[u8]) -> Vec<u8> {
    icmp(8, 0, &[&[0x47, 0x47, 0, 1], payload].concat())
}

/// An IPv4 packet with a UDP datagram.
fn datagram(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let datagram = udp((from.into(), PORT), (to.into(), PORT), payload);
    V4::new(from, to, UDP).packet(&datagram)
}

/// What of ours is in these bytes.
fn way(bytes: &[u8]) -> Option<(Path, Kind)> {
    ways().find(|(path, kind)| contains(bytes, &tag(*path, *kind)))
}

/// Counts what of ours arrives at an interface.
fn see(wire: &Wire, ending: &AtomicBool) -> BTreeMap<(Path, Kind), usize> {
    let mut seen = BTreeMap::new();
    while !ending.load(Ordering::Relaxed) {
        let frame = wire.next(Duration::from_millis(20)).unwrap();
        if let Some(way) = frame.and_then(|frame| way(&frame)) {
            *seen.entry(way).or_default() += 1;
        }
    }
    seen
}

/// Counts what of ours a socket gets.
fn take(socket: &UdpSocket, ending: &AtomicBool) -> BTreeMap<(Path, Kind), usize> {
    let mut taken = BTreeMap::new();
    let mut bytes = [0; 2048];
    while !ending.load(Ordering::Relaxed) {
        let Ok(length) = socket.recv(&mut bytes) else {
            continue;
        };
        if let Some(way) = way(&bytes[..length]) {
            *taken.entry(way).or_default() += 1;
        }
    }
    taken
}

#[test]
fn nothing_leaves_an_interface_before_it_is_covered() {
    let mut scene = Scene::new();
    let control = scene.trials(CONTROLS, false);
    println!("without the agent: {control} {:?}", control.arrived);
    for way in ways() {
        let arrived = control.arrived.get(&way).copied().unwrap_or(0);
        assert!(arrived > 0, "the test sees what arrives: {way:?}");
    }
    scene.stage.agent.start().unwrap();
    let rounds = patience::fewer(ROUNDS);
    let idle = scene.trials(rounds, true);
    println!("idle: {idle}");
    let ending = AtomicBool::new(false);
    let busy = thread::scope(|scope| {
        let _ends = Ending(&ending);
        for _ in 0..4 {
            scope.spawn(|| {
                while !ending.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        scene.trials(rounds, true)
    });
    println!("busy: {busy}");
    for (how, trials) in [("idle", idle), ("busy", busy)] {
        assert!(trials.arrived.is_empty(), "{how}: {:?}", trials.arrived);
    }
}
