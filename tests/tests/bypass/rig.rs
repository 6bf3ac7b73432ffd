//! The stage of one row, and the run of it.
//!
//! `a` is the attacker: a workload, in a cgroup and a namespace of its own. `b`
//! is the receiver, on the same network; nothing governs it here, so that only
//! the attacker's own layers can be what stops it. `c` is an address.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread::sleep,
    time::{Duration, Instant},
};

use zt_agent::model::{Endpoint, InterfaceSpec};
use zt_common::{
    codes::{Hook, Protocol, Reason, Verdict},
    event::Event,
};
use zt_tests::{
    Sandbox, Workload,
    actor::Actor,
    cgroup::Cgroup,
    feature,
    netns::Network,
    node::{World, allow, party},
    patience::{factor, scaled},
    pool::Lease,
    stranger::{At, Does, Stranger},
};

use crate::{
    capture::{Capture, show},
    packet::{self, Mac, hex, is_plumbing},
    row::{Allowed, Caller, Expect, Row, Rule, Said, Seen},
    table::{Done, Entry, Place},
};

pub const A: Ipv4Addr = Ipv4Addr::new(10, 89, 7, 10);
pub const B: Ipv4Addr = Ipv4Addr::new(10, 89, 7, 20);
pub const C: Ipv4Addr = Ipv4Addr::new(10, 89, 7, 30);
pub const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x89, 7, 0, 0, 0, 0, 0x10);
pub const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x89, 7, 0, 0, 0, 0, 0x20);
pub const C6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x89, 7, 0, 0, 0, 0, 0x30);

/// How long something may take that must arrive.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long nothing must arrive, at least.
const SILENCE: Duration = Duration::from_millis(250);
/// Until what an earlier round left behind has arrived.
const SETTLE: Duration = Duration::from_millis(40);

/// Detached, the three sets of layers, allowed.
const ROUNDS: usize = 5;

/// See the module.
pub struct Stage {
    pub a: Actor,
    pub b: Actor,
    pub a_mac: Mac,
    pub b_mac: Mac,
    /// Sockets of `a` that [`Row::before`] made, one for each round.
    pub held: Vec<u32>,
    /// Counts the rounds, for ports and identifiers that must not repeat.
    pub round: u16,
    pub attacker: Workload,
    pub receiver: Workload,
    /// The cgroup of workload `d`, which has no interface.
    pub other: Cgroup,
    /// The attacker's, on the side of the node.
    interface: InterfaceSpec,
    covered: bool,
    network: Network,
    /// Programs of somebody else.
    pub strangers: Vec<Stranger>,
    pub node: Lease,
    /// At the receiver's interface.
    pub capture: Capture,
    /// At the attacker's own interface, for what comes to it.
    pub inward: Capture,
    // Dropped after the rest.
    pub sandbox: Sandbox,
}

/// Which programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layers {
    Sockets,
    All,
    Interface,
}

/// Runs a row.
pub fn run(place: Place, row: &Row) {
    let entry = Entry::begin(place, row.name);
    let mut stage = Stage::new();
    if !row.needs.is_empty()
        && let Err(errno) = stage.a.act(row.needs)
    {
        assert!(
            is_lacking(row.needs, &errno),
            "{}: `{}`: {errno}",
            row.name,
            row.needs
        );
        let probed = format!("`{}`: {errno}", row.needs);
        feature::skip(&probed);
        return entry.skipped(probed);
    }
    (row.before)(&mut stage);
    let took = match stage.arrives_detached(row) {
        Ok(took) => took,
        Err(errno) => {
            let probed = format!("the attack, without programs: {errno}");
            feature::skip(&probed);
            return entry.skipped(probed);
        }
    };
    let mut done = Done {
        detached: "arrives".to_owned(),
        ..Done::default()
    };
    stage.attach(Layers::Sockets);
    done.sockets = stage.check(row, Layers::Sockets, &row.sockets, took);
    stage.attach(Layers::All);
    stage.check(row, Layers::All, row.first(), took);
    stage.attach(Layers::Interface);
    done.interface = stage.check(row, Layers::Interface, &row.interface, took);
    stage.attach(Layers::All);
    done.allowed = stage.check_allowed(row);
    entry.done(done);
}

/// Whether an error of the call that a row needs says that the kernel has no such
/// thing, or that it was switched off. Any other is a mistake of ours.
fn is_lacking(needs: &str, errno: &str) -> bool {
    const UNKNOWN: [&str; 6] = [
        "ENOSYS",
        "EAFNOSUPPORT",
        "EPROTONOSUPPORT",
        "ESOCKTNOSUPPORT",
        "EOPNOTSUPP",
        // MPTCP, by `net.mptcp.enabled`.
        "ENOPROTOOPT",
    ];
    // By `kernel.io_uring_disabled`.
    UNKNOWN.contains(&errno) || (needs, errno) == ("uring", "EPERM")
}

impl Stage {
    fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        let network = sandbox.network(7).unwrap();
        network.bridge().enter(bridge_everything).unwrap();
        let attacker = sandbox.workload(&network, "a", 10).unwrap();
        let receiver = sandbox.workload(&network, "b", 20).unwrap();
        let netns = receiver.netns().unwrap();
        let capture = Capture::at(netns).unwrap();
        let mut a = Actor::member(&attacker);
        let mut b = Actor::host(netns);
        let (a_mac, b_mac) = (mac(&mut a), mac(&mut b));
        Self::open(&mut b);
        let node = Lease::take(&sandbox).unwrap();
        Self {
            a,
            b,
            a_mac,
            b_mac,
            held: Vec::new(),
            round: 0,
            receiver,
            other: sandbox.cgroup().child("d").unwrap(),
            interface: interface(&network, &attacker),
            covered: false,
            network,
            strangers: Vec::new(),
            node,
            capture,
            inward: Capture::at(attacker.netns().unwrap()).unwrap(),
            attacker,
            sandbox,
        }
    }

    /// `b` listens on 8080, so that what arrives is not answered by an error.
    fn open(b: &mut Actor) {
        for (kind, address) in [
            ("tcp4", format!("{B}:8080")),
            ("tcp6", format!("[{B6}]:8080")),
            ("udp4", format!("{B}:8080")),
            ("udp6", format!("[{B6}]:8080")),
        ] {
            let socket = b.get(&format!("socket {kind}"));
            b.act(&format!("bind {socket} {address}")).unwrap();
            if kind.starts_with("tcp") {
                b.act(&format!("listen {socket}")).unwrap();
            }
        }
    }

    /// One call of the attacker's on a socket of its own. `{}` is its number.
    pub fn call(&mut self, kind: &str, call: &str) -> Said {
        let socket = self.a.act(&format!("socket {kind}"))?;
        let said = self.a.act(&call.replace("{}", &socket));
        // By a reset: nothing of this round may arrive in the next.
        let _ = self.a.act(&format!("abortive {socket}"));
        let _ = self.a.act(&format!("close {socket}"));
        said
    }

    /// Makes one socket of the attacker's for each round.
    pub fn hold(&mut self, make: impl FnMut(&mut Self) -> u32) {
        let mut make = make;
        self.held = (0..ROUNDS).map(|_| make(self)).collect();
    }

    /// A call on the socket of this round. `{}` is its number.
    pub fn on_held(&mut self, call: &str) -> Said {
        let socket = self.held.pop().unwrap().to_string();
        let said = self.a.act(&call.replace("{}", &socket));
        let _ = self.a.act(&format!("abortive {socket}"));
        let _ = self.a.act(&format!("close {socket}"));
        said
    }

    /// A process of another workload in the attacker's namespace.
    pub fn thief(&self) -> Actor {
        let netns = self.attacker.netns().cloned();
        Actor::member(&Workload::sharing("d", self.other.clone(), netns))
    }

    /// A process in the attacker's namespace, outside the managed cgroups.
    pub fn outsider(&self) -> Actor {
        Actor::outside(self.attacker.netns().unwrap())
    }

    /// Moves the attacker's process so many cgroups deeper.
    pub fn nest(&mut self, levels: u32) {
        let mut cgroup = self.attacker.cgroup().clone();
        for _ in 0..levels {
            cgroup = cgroup.child("nested").unwrap();
        }
        cgroup.add(self.a.pid()).unwrap();
    }

    /// `b` listens by MPTCP on 8081, and has the address of `c` to offer.
    pub fn offer_another_path(&mut self) {
        let netns = self.receiver.netns().unwrap();
        netns.add_address(C.into()).unwrap();
        let address = C.to_string();
        let offer = [
            "mptcp", "endpoint", "add", &address, "dev", "eth0", "signal",
        ];
        netns.ip(&offer).unwrap();
        let limits = [
            "mptcp",
            "limits",
            "set",
            "add_addr_accepted",
            "1",
            "subflows",
            "1",
        ];
        netns.ip(&limits).unwrap();
        self.attacker.netns().unwrap().ip(&limits).unwrap();
        let socket = self.b.get("socket mptcp4");
        self.b.act(&format!("bind {socket} {B}:8081")).unwrap();
        self.b.act(&format!("listen {socket}")).unwrap();
    }

    /// A program of somebody else.
    pub fn stranger(&mut self, cgroup: &Cgroup, at: At, does: Does) {
        let stranger = Stranger::attach_at("stranger", cgroup, at, does);
        self.strangers.push(stranger.unwrap());
    }

    /// As [`Self::stranger`], on a child cgroup that the attacker's process
    /// moves to.
    pub fn stranger_below(&mut self, at: At, does: Does) {
        let number = self.strangers.len();
        let below = self
            .attacker
            .cgroup()
            .child(&format!("below{number}"))
            .unwrap();
        below.add(self.a.pid()).unwrap();
        self.stranger(&below, at, does);
    }

    /// Passes a socket on to the attacker, in a message; gives its new number.
    pub fn hand_over(&mut self, from: &mut Actor, socket: u32) -> u32 {
        let path = self.sandbox.directory().join(format!("pass-{socket}"));
        let path = path.display();
        std::thread::scope(|scope| {
            scope.spawn(|| from.act(&format!("pass {socket} {path}")).unwrap());
            self.a.get(&format!("receive {path}"))
        })
    }

    /// Lets the attacker send data in a first segment to anybody.
    pub fn send_data_without_a_cookie(&mut self) {
        let write = || {
            let file = "/proc/sys/net/ipv4/tcp_fastopen";
            // Client, and without a cookie.
            Ok(std::fs::write(file, "5")?)
        };
        self.attacker.netns().unwrap().enter(write).unwrap();
    }

    /// A frame to `b`, from the attacker's own hardware address.
    pub fn send(&mut self, ethertype: u16, payload: &[u8]) -> Said {
        let frame = packet::frame(self.b_mac, self.a_mac, ethertype, payload);
        self.send_frame(&frame)
    }

    /// A frame of the attacker's, by a packet socket.
    pub fn send_frame(&mut self, frame: &[u8]) -> Said {
        self.call("packet", &format!("frame {{}} {}", hex(frame)))
    }

    /// A packet with its own header, by a raw socket.
    pub fn send_raw(&mut self, to: IpAddr, packet: &[u8]) -> Said {
        let (kind, family) = match to {
            IpAddr::V4(_) => ("raw4:255", "4"),
            IpAddr::V6(_) => ("raw6:255", "6"),
        };
        let socket = self.a.act(&format!("socket {kind}"))?;
        self.a.act(&format!("hdrincl {socket} {family}"))?;
        let to = SocketAddr::new(to, 0);
        let said = self
            .a
            .act(&format!("sendhex {socket} {to} {}", hex(packet)));
        self.a.act(&format!("close {socket}"))?;
        said
    }

    /// A number of this round: for ports and identifiers.
    pub fn number(&self, base: u16) -> u16 {
        base + self.round
    }

    /// What `a` sent since the last call, as `b`'s interface sees it.
    fn arrived(&mut self, seen: Seen) -> (bool, Vec<Vec<u8>>) {
        let frames = self.capture.frames();
        let arrived = match seen {
            Seen::Packet => frames.iter().any(|frame| !is_plumbing(frame)),
            Seen::Frame(knows) => frames.iter().any(|frame| knows(frame)),
            Seen::Taken(finds) => finds(self),
        };
        (arrived, frames)
    }

    /// Waits for the arrival; what it took, or what came instead.
    fn arrives(&mut self, seen: Seen) -> Result<Duration, String> {
        let start = Instant::now();
        let mut others = Vec::new();
        while start.elapsed() < scaled(PATIENCE) {
            let (arrived, frames) = self.arrived(seen);
            if arrived {
                return Ok(start.elapsed());
            }
            others.extend(frames);
            sleep(Duration::from_millis(2));
        }
        Err(show(&others))
    }

    /// Starts a round: nothing of the last one is left.
    fn begin(&mut self, row: &Row) {
        self.round += 1;
        sleep(scaled(SETTLE));
        self.arrived(row.seen);
        self.node.events();
    }

    /// How long it takes, or with which error the kernel does not support it.
    fn arrives_detached(&mut self, row: &Row) -> Result<Duration, String> {
        self.begin(row);
        let start = Instant::now();
        let said = (row.attack)(self);
        if let Err(errno) = &said
            && errno == row.unsupported
        {
            return Err(errno.clone());
        }
        self.arrives(row.seen).unwrap_or_else(|frames| {
            panic!(
                "{}: proves nothing, it does not arrive without programs: {said:?}, got\n{frames}",
                row.name
            )
        });
        Ok(start.elapsed())
    }

    fn attach(&mut self, layers: Layers) {
        if layers == Layers::Interface {
            self.node.detach_all().unwrap();
        } else {
            self.node.attach().unwrap();
        }
        if layers != Layers::Sockets && !self.covered {
            self.node.cover(&self.network, &self.attacker).unwrap();
            self.covered = true;
        }
    }

    /// Makes the rules true, in a generation of their own: nothing that an
    /// earlier round left in a cache answers for this one.
    fn apply(&mut self, raw_sockets: bool, rules: &[Rule]) {
        let remote = |name, ip: IpAddr| Endpoint {
            ip,
            party: party(name),
            cgroup: None,
            ports: None,
            target: None,
        };
        let filler = format!("{0}-{0}", 20_000 + self.round);
        let mut list = vec![allow("x", "y", &format!("[\"{filler}\"]"), "TCP")];
        list.extend(
            rules
                .iter()
                .map(|(from, to, ports, protocol)| allow(from, to, ports, protocol)),
        );
        let mut world = World::default()
            .enrol(&self.attacker, &[A.into(), A6.into()])
            .enrol_cgroup("d", &self.other, None)
            .claim(self.declared(Ipv4Addr::LOCALHOST.into()))
            .claim(self.declared(Ipv6Addr::LOCALHOST.into()))
            .claim(remote("b", B.into()))
            .claim(remote("b", B6.into()))
            .claim(remote("c", C.into()))
            .claim(remote("c", C6.into()))
            .rules(&format!("[{}]", list.join(", ")))
            .unwrap();
        world.model.workloads[0].raw_sockets = raw_sockets;
        world.model.interfaces = vec![self.interface.clone()];
        self.node.apply(&world.model).unwrap();
        self.node.forget_flows().unwrap();
    }

    /// Port 9999 on loopback is the attacked workload's own.
    fn declared(&self, ip: IpAddr) -> Endpoint {
        Endpoint {
            ip,
            party: party("a"),
            cgroup: self.attacker.cgroup().id().ok(),
            ports: Some(vec![(Protocol::Tcp, 9999)]),
            target: None,
        }
    }

    /// Attacks with these layers, and gives the table's cell.
    fn check(&mut self, row: &Row, layers: Layers, expect: &Expect, took: Duration) -> String {
        self.apply(row.raw_sockets, row.rules);
        self.begin(row);
        let said = (row.attack)(self);
        let Expect::Denied {
            hook,
            reason,
            caller,
            then,
        } = *expect
        else {
            let arrived = self.arrives(row.seen);
            let events = self.node.events();
            assert!(
                arrived.is_ok(),
                "{} is stopped by {layers:?}: {said:?} {}",
                row.name,
                brief(&events)
            );
            assert_eq!(
                denials(&events),
                [] as [Seal; 0],
                "{} by {layers:?}",
                row.name
            );
            return "passes".to_owned();
        };
        sleep(scaled(SILENCE).max(took * 4));
        let (arrived, frames) = self.arrived(row.seen);
        let events = self.node.events();
        let context = format!(
            "{} by {layers:?}: {said:?}\n{}{}",
            row.name,
            show(&frames),
            brief(&events)
        );
        assert!(!arrived, "arrives: {context}");
        let reasons = std::iter::once(&reason).chain(then);
        let expected: Vec<Seal> = reasons.map(|reason| Seal::denied(hook, reason)).collect();
        let mut denied = denials(&events);
        if factor() > 1 && caller == Caller::Waits && reason != "no-policy" {
            // The SYN is sent again after a second, which a slow machine takes.
            // What no rule can be asked about is no flow, and is denied anew.
            denied.dedup();
        }
        assert_eq!(denied, expected, "{context}");
        assert_eq!(seen_by_caller(&said), caller, "{context}");
        match caller {
            Caller::Gets(errno) => format!("`{hook}`: {reason}, `{errno}`"),
            Caller::Waits => format!("`{hook}`: {reason}, waits"),
            Caller::Silent => format!("`{hook}`: {reason}"),
        }
    }

    /// The comparison; gives the table's cell.
    fn check_allowed(&mut self, row: &Row) -> String {
        let raw = row.raw_sockets;
        let (raw, rules, attack, cell) = match row.allowed {
            Allowed::Rules(rules) => (raw, rules, row.attack, "with a rule"),
            Allowed::Granted(rules) => (true, rules, row.attack, "with a grant and a rule"),
            Allowed::Instead(rules, instead) => (raw, rules, instead, "without the trick"),
            Allowed::Nothing(why) => return why.to_owned(),
        };
        self.apply(raw, rules);
        self.begin(row);
        let said = attack(self);
        let arrived = self.arrives(row.seen);
        let events = self.node.events();
        assert!(
            arrived.is_ok(),
            "{} is not let through: {said:?} {}",
            row.name,
            brief(&events)
        );
        assert_eq!(
            denials(&events),
            [] as [Seal; 0],
            "{}: {}",
            row.name,
            brief(&events)
        );
        cell.to_owned()
    }
}

/// A bridge may look into the packets for iptables' sake, and then drops what it
/// cannot read: here it shall not hide what the programs must stop.
fn bridge_everything() -> anyhow::Result<()> {
    for what in ["iptables", "ip6tables", "arptables"] {
        let file = format!("/proc/sys/net/bridge/bridge-nf-call-{what}");
        match std::fs::write(file, "0") {
            // Not this kernel's bridge.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn interface(network: &Network, workload: &Workload) -> InterfaceSpec {
    let world = World::default().connect(network, workload).unwrap();
    world.model.interfaces[0].clone()
}

fn mac(actor: &mut Actor) -> Mac {
    let socket = actor.get("socket packet");
    let digits = actor.act(&format!("mac {socket}")).unwrap();
    actor.act(&format!("close {socket}")).unwrap();
    let number = u64::from_str_radix(&digits, 16).unwrap().to_be_bytes();
    number[2..].try_into().unwrap()
}

/// What a record says, as far as a row speaks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal(String, String);

impl Seal {
    pub fn denied(hook: &str, reason: &str) -> Self {
        Self(hook.to_owned(), reason.to_owned())
    }
}

/// The denials among the records, each as often as it was recorded.
pub fn denials(events: &[Event]) -> Vec<Seal> {
    let denied = |event: &&Event| event.verdict == Verdict::Deny as u8;
    let seal = |event: &Event| {
        let hook = Hook::from_code(event.hook).map_or("unknown", Hook::name);
        let reason = Reason::from_code(event.reason).map_or("unknown", Reason::name);
        Seal::denied(hook, reason)
    };
    events.iter().filter(denied).map(seal).collect()
}

/// Records, for a failure's message.
pub fn brief(events: &[Event]) -> String {
    let line = |event: &Event| {
        let hook = Hook::from_code(event.hook).map_or("unknown", Hook::name);
        let reason = Reason::from_code(event.reason).map_or("unknown", Reason::name);
        let verdict = Verdict::from_code(event.verdict).map_or("unknown", Verdict::name);
        let remote = Ipv6Addr::from(event.remote).to_canonical();
        format!(
            "{verdict} {reason} at {hook}: {}>{}, {remote}:{}, own port {}, protocol {}\n",
            event.source, event.destination, event.remote_port, event.local_port, event.protocol
        )
    };
    events.iter().map(line).collect()
}

fn seen_by_caller(said: &Said) -> Caller {
    const ERRORS: &[&str] = &["EPERM", "EACCES", "ECONNREFUSED", "EHOSTUNREACH"];
    match said {
        Ok(_) => Caller::Silent,
        Err(errno) => match errno.as_str() {
            "EINPROGRESS" | "EALREADY" | "EAGAIN" | "ETIMEDOUT" => Caller::Waits,
            errno => ERRORS.iter().find(|known| **known == errno).map_or_else(
                || panic!("an error that no row expects: {errno}"),
                |known| Caller::Gets(known),
            ),
        },
    }
}
