//! The default drop: frames from managed interfaces that no program of ours
//! has marked arrive nowhere, and everything else does.
//!
//! The bridge's namespace stands for the node. Frames are sent and looked for
//! with packet sockets, so no stack of either end has a say.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use zt_agent::{
    kernel::default_drop::{self, DefaultDropError},
    model::InterfacePattern,
    netlink::nftables::Family,
};
use zt_tests::{
    Sandbox,
    netns::{Netns, Network},
    packet::{ARP, IPV4, IPV6, V4, arp, frame, v6},
    patience::scaled,
    wire::{BROADCAST, Wire, contains},
};

const MARK: u32 = 0x10;
/// For what must happen.
const PATIENT: Duration = Duration::from_secs(10);

const LLDP: u16 = 0x88cc;
/// A bridge takes it up and does not forward it.
const NEAREST_BRIDGE: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0e];

fn patterns(texts: &[&str]) -> Vec<InterfacePattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Runs nft with commands on its input.
fn nft(netns: &Netns, commands: &str) {
    let mut child = Command::new("ip")
        .args(["netns", "exec", netns.name(), "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(commands.as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "nft: {commands}");
}

/// The ruleset as a list of objects, each with its kind.
fn ruleset(netns: &Netns) -> Vec<(String, Value)> {
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            netns.name(),
            "nft",
            "-j",
            "list",
            "ruleset",
        ])
        .output()
        .unwrap();
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let objects = listed["nftables"].as_array().unwrap().iter();
    objects
        .map(|object| object.as_object().unwrap().iter().next().unwrap())
        .map(|(kind, value)| (kind.clone(), value.clone()))
        .filter(|(kind, _)| kind != "metainfo")
        .collect()
}

/// The node of the tests: the drop is installed in the bridge's namespace.
struct Node<'a>(&'a Network);

impl Node<'_> {
    fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, DefaultDropError> + Send) -> T {
        self.0.bridge().enter(|| Ok(work()?)).unwrap()
    }

    fn install(&self, names: &[&str]) {
        let patterns = patterns(names);
        self.run(|| default_drop::install(&patterns, MARK));
        assert!(self.is_in_place(names));
    }

    fn is_in_place(&self, names: &[&str]) -> bool {
        let patterns = patterns(names);
        self.run(|| default_drop::is_in_place(&patterns, MARK))
    }

    fn dropped(&self, family: Family) -> u64 {
        let counters = self.run(default_drop::counters);
        let of_family = counters.iter().find(|dropped| dropped.family == family);
        of_family.unwrap().packets
    }

    /// What our program does later: marks what comes in by an interface.
    fn mark(&self, interface: &str) {
        let table = format!(
            "add table netdev program\n\
             add chain netdev program of-{interface} {{ type filter hook ingress device {interface} priority 0; }}\n\
             add rule netdev program of-{interface} meta mark set meta mark or {MARK:#x}\n"
        );
        nft(self.0.bridge(), &table);
    }
}

/// A packet of a protocol that nobody answers, with the text in it.
fn ip(from: IpAddr, to: IpAddr, text: &[u8]) -> (u16, Vec<u8>) {
    const EXPERIMENT: u8 = 253;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (IPV4, V4::new(from, to, EXPERIMENT).packet(text)),
        (IpAddr::V6(from), IpAddr::V6(to)) => (IPV6, v6(from, to, EXPERIMENT, text)),
        _ => panic!("two versions"),
    }
}

fn arp_request(from: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let payload = arp(1, (from, sender), ([0; 6], target));
    frame(BROADCAST, from, ARP, &payload)
}

/// Three on a bridge: one that is managed, one that is not, one that looks.
struct Bridged {
    managed: Wire,
    unmanaged: Wire,
    receiver: Wire,
}

impl Bridged {
    /// On the ports p10, p20 and p30.
    fn make(network: &Network) -> Self {
        let wire = |label: &str, host| {
            let netns = network.join(label, host).unwrap();
            Wire::open(&netns, "eth0").unwrap()
        };
        let bridged = Self {
            managed: wire("managed", 10),
            unmanaged: wire("unmanaged", 20),
            receiver: wire("receiver", 30),
        };
        bridged.unmanaged_arrives();
        bridged
    }

    /// The ports may need a moment until they forward.
    fn unmanaged_arrives(&self) {
        let deadline = Instant::now() + scaled(PATIENT);
        let frame = frame(BROADCAST, self.unmanaged.mac, LLDP, b"is it up?");
        while Instant::now() < deadline {
            self.unmanaged.send(&frame).unwrap();
            let first = self.receiver.next(Duration::from_millis(50)).unwrap();
            if first.is_some_and(|first| contains(&first, b"is it up?")) {
                return;
            }
        }
        panic!("the bridge does not forward");
    }

    /// Whether a broadcast of a protocol from the managed one arrives; one from
    /// the other must.
    fn managed_arrives(&self, protocol: u16) -> bool {
        let send =
            |from: &Wire, text: &[u8]| from.send(&broadcast(from.mac, protocol, text)).unwrap();
        send(&self.managed, b"from the managed one");
        send(&self.unmanaged, b"from the other one");
        self.receiver
            .came_before(b"from the other one", b"from the managed one")
            .unwrap()
    }
}

/// Well formed, because a bridge may look at what it forwards.
fn broadcast(from: [u8; 6], protocol: u16, text: &[u8]) -> Vec<u8> {
    let [first, second] = [Ipv4Addr::new(10, 89, 0, 2), Ipv4Addr::new(10, 89, 0, 3)];
    let v6 = |address: Ipv4Addr| IpAddr::from(address.to_ipv6_mapped());
    let payload = match protocol {
        ARP => return [&arp_request(from, first, second), text].concat(),
        IPV4 => ip(first.into(), second.into(), text).1,
        IPV6 => ip(v6(first), v6(second), text).1,
        _ => text.to_owned(),
    };
    frame(BROADCAST, from, protocol, &payload)
}

const PROTOCOLS: [u16; 4] = [ARP, IPV4, IPV6, LLDP];

#[test]
fn unmarked_frames_of_a_managed_port_are_not_bridged_and_marked_ones_are() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(70).unwrap();
    let node = Node(&network);
    let bridged = Bridged::make(&network);
    for protocol in PROTOCOLS {
        assert!(bridged.managed_arrives(protocol), "{protocol:#x} before");
    }
    node.install(&["p1*"]);
    let before = node.dropped(Family::Bridge);
    for protocol in PROTOCOLS {
        assert!(!bridged.managed_arrives(protocol), "{protocol:#x}");
    }
    assert!(node.dropped(Family::Bridge) >= before + 4);
    node.mark("p10");
    for protocol in PROTOCOLS {
        assert!(bridged.managed_arrives(protocol), "{protocol:#x} marked");
    }
    node.run(default_drop::remove);
    nft(network.bridge(), "delete table netdev program\n");
    assert!(bridged.managed_arrives(IPV4));
    assert_eq!(ruleset(network.bridge()), []);
}

#[test]
fn a_port_that_appears_later_is_managed_by_its_name_and_others_are_not() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(71).unwrap();
    let node = Node(&network);
    // Whole names, one of which begins like the unmanaged port's.
    node.install(&["p10", "p2"]);
    let bridged = Bridged::make(&network);
    assert!(!bridged.managed_arrives(IPV4));
    node.install(&["p1", "p2"]);
    assert!(bridged.managed_arrives(IPV4), "p1 is not p10");
    node.install(&["p1*"]);
    assert!(!bridged.managed_arrives(IPV4));
}

#[test]
fn what_a_bridge_takes_up_before_its_own_chains_is_dropped_by_the_others() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(72).unwrap();
    let node = Node(&network);
    let bridged = Bridged::make(&network);
    let address = format!("{}/24", network.ipv4(1));
    network
        .bridge()
        .ip(&["address", "add", &address, "dev", "br0"])
        .unwrap();
    let (from, to) = (network.ipv4(10), network.ipv4(1));
    let mac = bridged.managed.mac;
    let packet = frame(
        NEAREST_BRIDGE,
        mac,
        IPV4,
        &ip(from.into(), to.into(), b"x").1,
    );
    let mut question = arp_request(mac, from, to);
    question[..6].copy_from_slice(&NEAREST_BRIDGE);
    node.install(&["p1*"]);
    bridged.managed.send(&packet).unwrap();
    bridged.managed.send(&question).unwrap();
    // It is counted where it is dropped: the bridge has not seen it.
    let deadline = Instant::now() + scaled(PATIENT);
    while node.dropped(Family::Inet) == 0 || node.dropped(Family::Arp) == 0 {
        assert!(
            Instant::now() < deadline,
            "{:?}",
            node.run(default_drop::counters)
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// A workload behind a routed veth r10, and one on the bridge.
struct Routed {
    inside: Wire,
    /// The node's side.
    router: [u8; 6],
    receiver: Wire,
    addresses: [(IpAddr, IpAddr); 2],
}

/// Of the routed veth: the node and the workload.
const ROUTED: [(&str, &str); 2] = [
    ("10.89.200.1", "10.89.200.2"),
    ("fd00:89:200::1", "fd00:89:200::2"),
];

impl Routed {
    fn make(sandbox: &Sandbox, network: &Network) -> Self {
        let node = network.bridge();
        let inside = sandbox.netns("routed").unwrap();
        let receiver = network.join("receiver", 30).unwrap();
        let peer = ["peer", "name", "eth0", "netns", inside.name()];
        node.ip(&[&["link", "add", "r10", "type", "veth"], &peer[..]].concat())
            .unwrap();
        for device in ["r10", "br0"] {
            node.ip(&["link", "set", device, "up"]).unwrap();
        }
        inside.ip(&["link", "set", "eth0", "up"]).unwrap();
        let address = |address: &str, device: &str, length: &str| {
            let address = format!("{address}/{length}");
            let nodad = if address.contains(':') {
                &["nodad"][..]
            } else {
                &[]
            };
            node.ip(&[&["address", "add", &address, "dev", device], nodad].concat())
                .unwrap();
        };
        address(ROUTED[0].0, "r10", "24");
        address(ROUTED[1].0, "r10", "64");
        address(&network.ipv4(1).to_string(), "br0", "24");
        address(&network.ipv6(1).to_string(), "br0", "64");
        node.enter(|| {
            for version in ["ipv4", "ipv6"] {
                fs::write(format!("/proc/sys/net/{version}/conf/all/forwarding"), "1")?;
            }
            Ok(())
        })
        .unwrap();
        let wire = Wire::open(&receiver, "eth0").unwrap();
        let to = [network.ipv4(30).into(), network.ipv6(30).into()];
        for address in to {
            neighbour(node, address, wire.mac);
        }
        Self {
            inside: Wire::open(&inside, "eth0").unwrap(),
            router: Wire::open(node, "r10").unwrap().mac,
            receiver: wire,
            addresses: [0, 1].map(|at| (ROUTED[at].1.parse().unwrap(), to[at])),
        }
    }

    fn send(&self, from: IpAddr, to: IpAddr, text: &[u8]) {
        let (protocol, packet) = ip(from, to, text);
        self.inside
            .send(&frame(self.router, self.inside.mac, protocol, &packet))
            .unwrap();
    }

    /// Whether the node answers the question who has its address.
    fn is_answered(&self) -> bool {
        let [node, own] = [ROUTED[0].0, ROUTED[0].1].map(|ip| ip.parse::<Ipv4Addr>().unwrap());
        self.inside
            .send(&arp_request(self.inside.mac, own, node))
            .unwrap();
        let answer = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &self.router].concat();
        let deadline = Instant::now() + scaled(Duration::from_millis(500));
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match self.inside.next(left).unwrap() {
                Some(frame) if contains(&frame, &answer) => return true,
                _ => {}
            }
        }
        false
    }
}

/// Nobody needs to be asked for the address.
fn neighbour(netns: &Netns, address: IpAddr, mac: [u8; 6]) {
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let (address, mac) = (address.to_string(), mac.join(":"));
    let known = [
        "neighbour",
        "replace",
        &address,
        "lladdr",
        &mac,
        "dev",
        "br0",
    ];
    netns.ip(&known).unwrap();
}

#[test]
fn unmarked_packets_of_a_managed_interface_are_not_routed_and_marked_ones_are() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(73).unwrap();
    let node = Node(&network);
    let routed = Routed::make(&sandbox, &network);
    for (from, to) in routed.addresses {
        routed.send(from, to, b"before");
        routed.receiver.await_frame(b"before").unwrap();
    }
    node.install(&["r*"]);
    for (from, to) in routed.addresses {
        routed.send(from, to, b"without it");
    }
    let deadline = Instant::now() + scaled(PATIENT);
    while node.dropped(Family::Inet) < 2 {
        assert!(Instant::now() < deadline, "not dropped");
        thread::sleep(Duration::from_millis(10));
    }
    node.mark("r10");
    for (from, to) in routed.addresses {
        routed.send(from, to, b"with the mark");
        let slipped = routed.receiver.came_before(b"with the mark", b"without it");
        assert!(!slipped.unwrap(), "{from}");
    }
}

#[test]
fn unmarked_arp_of_a_managed_interface_is_not_answered_and_marked_is() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(74).unwrap();
    let node = Node(&network);
    let routed = Routed::make(&sandbox, &network);
    assert!(routed.is_answered());
    node.install(&["r10"]);
    assert!(!routed.is_answered());
    assert!(node.dropped(Family::Arp) >= 1);
    node.mark("r10");
    assert!(routed.is_answered());
}

#[test]
fn nft_lists_what_is_meant() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(75).unwrap();
    let node = Node(&network);
    node.install(&["veth*", "eth0"]);
    let listed = ruleset(network.bridge());
    let of_kind = |kind: &str| {
        let objects = listed.iter().filter(|(of, _)| of == kind);
        objects
            .map(|(_, object)| object.clone())
            .collect::<Vec<_>>()
    };
    let text = |object: &Value, key: &str| object[key].as_str().unwrap().to_owned();
    let mut chains: Vec<_> = of_kind("chain")
        .iter()
        .map(|chain| {
            assert_eq!(text(chain, "table"), default_drop::TABLE);
            assert_eq!(text(chain, "policy"), "accept");
            assert_eq!(chain["prio"], i32::MIN);
            (text(chain, "family"), text(chain, "hook"))
        })
        .collect();
    chains.sort_unstable();
    let expected = [
        ("arp", "input"),
        ("bridge", "prerouting"),
        ("inet", "prerouting"),
    ];
    assert_eq!(chains, expected.map(|(f, h)| (f.to_owned(), h.to_owned())));

    let rules = of_kind("rule");
    assert_eq!(rules.len(), 2 * chains.len());
    for (number, rule) in rules.iter().enumerate() {
        let name = ["veth*", "eth0"][number % 2];
        let is_interface = serde_json::json!({"match": {
            "op": "==", "left": {"meta": {"key": "iifname"}}, "right": name,
        }});
        let is_unmarked = serde_json::json!({"match": {
            "op": "==", "left": {"&": [{"meta": {"key": "mark"}}, MARK]}, "right": 0,
        }});
        let steps = rule["expr"].as_array().unwrap();
        assert_eq!(steps[..2], [is_interface, is_unmarked]);
        assert!(steps[2]["counter"].is_object());
        assert_eq!(steps[3..], [serde_json::json!({"drop": null})]);
    }
}

#[test]
fn to_install_it_again_changes_nothing_and_another_pattern_replaces_it() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(76).unwrap();
    let node = Node(&network);
    let bridged = Bridged::make(&network);
    node.install(&["p1*"]);
    assert!(!bridged.managed_arrives(IPV4));
    let (first, dropped) = (ruleset(network.bridge()), node.dropped(Family::Bridge));
    node.install(&["p1*"]);
    let second = ruleset(network.bridge());
    assert_eq!(first.len(), second.len());
    assert!(
        node.dropped(Family::Bridge) >= dropped,
        "it goes on to count"
    );
    node.install(&["p2*"]);
    assert!(!node.is_in_place(&["p1*"]));
    assert_eq!(ruleset(network.bridge()).len(), first.len());
    node.install(&[]);
    assert_eq!(ruleset(network.bridge()), []);
    node.run(default_drop::remove);
    assert_eq!(node.run(default_drop::counters), []);
}

#[test]
fn what_somebody_changed_is_noticed_and_put_right() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(77).unwrap();
    let node = Node(&network);
    let bridged = Bridged::make(&network);
    let managed = ["p1*"];
    node.install(&managed);
    let rebuilt = "delete table bridge zt-agent\nadd table bridge zt-agent\n";
    let hook =
        "add chain bridge zt-agent prerouting { type filter hook prerouting priority -300; }\n";
    for change in [
        "flush ruleset\n",
        "flush chain bridge zt-agent prerouting\n",
        "flush chain inet zt-agent prerouting\n",
        "delete table arp zt-agent\n",
        "insert rule bridge zt-agent prerouting iifname \"p10\" accept\n",
        "add rule bridge zt-agent prerouting counter\n",
        "add chain bridge zt-agent prerouting { policy drop; }\n",
        "add table bridge zt-agent { flags dormant; }\n",
        // On another hook, and on none.
        &[rebuilt, hook].concat(),
        &[rebuilt, "add chain bridge zt-agent prerouting\n"].concat(),
    ] {
        nft(network.bridge(), change);
        assert!(!node.is_in_place(&managed), "{change}");
        node.install(&managed);
        assert!(!bridged.managed_arrives(IPV4), "{change}");
    }
    let other = "add table bridge somebody\nadd chain bridge somebody x\n";
    nft(network.bridge(), other);
    assert!(
        node.is_in_place(&managed),
        "what is not ours is not our concern"
    );
    node.run(default_drop::remove);
    let left = ruleset(network.bridge());
    assert!(
        left.iter()
            .all(|(_, object)| object["table"] == "somebody" || object["name"] == "somebody")
    );
}

#[test]
fn a_mark_that_is_not_one_bit_is_refused_and_changes_nothing() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(78).unwrap();
    let patterns = patterns(&["p1*"]);
    for mark in [0, 0x30] {
        let result = network
            .bridge()
            .enter(|| Ok(default_drop::install(&patterns, mark)));
        assert!(matches!(result.unwrap(), Err(DefaultDropError::Mark(_))));
    }
    assert_eq!(ruleset(network.bridge()), []);
}

#[test]
fn while_it_is_replaced_nothing_slips_through() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(79).unwrap();
    let node = Node(&network);
    let bridged = Bridged::make(&network);
    node.install(&["p1*"]);
    let start = Instant::now();
    let (usual, longest) = (
        scaled(Duration::from_secs(2)),
        scaled(Duration::from_secs(20)),
    );
    let is_over = AtomicBool::new(false);
    let text = b"slipped through";
    thread::scope(|scope| {
        scope.spawn(|| {
            let flood = broadcast(bridged.managed.mac, IPV4, text);
            while !is_over.load(Ordering::Relaxed) && start.elapsed() < longest {
                bridged.managed.send(&flood).unwrap();
            }
        });
        let (mut replaced, mut dropped) = (0, 0);
        let is_enough = |replaced: u32, dropped: u64| replaced > 10 && dropped > 100;
        // A busy machine replaces it seldom.
        while start.elapsed() < longest
            && (start.elapsed() < usual || !is_enough(replaced, dropped))
        {
            dropped += node.dropped(Family::Bridge);
            node.install(&["p1*", "x"]);
            node.install(&["p1*"]);
            replaced += 2;
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(is_enough(replaced, dropped), "{replaced}, {dropped}");
    });
    bridged
        .unmanaged
        .send(&broadcast(bridged.unmanaged.mac, IPV4, b"the end"))
        .unwrap();
    assert!(!bridged.receiver.came_before(b"the end", text).unwrap());
}
