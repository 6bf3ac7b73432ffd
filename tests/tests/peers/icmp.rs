//! Echoes and their identifiers.

use std::net::IpAddr;

use zt_common::codes::{Hook, Verdict};
use zt_tests::{
    node::allow,
    pool::Lease,
    test_run::{Asker, Packet, Transport, tcp},
};

use crate::lab::{Lab, PATIENT, SHORT};

/// A packet program, with a process in each workload that runs it.
struct Wire {
    node: Lease,
    a: Asker,
    b: Asker,
    egress: std::path::PathBuf,
    ingress: std::path::PathBuf,
}

impl Wire {
    fn new(lab: &Lab, rules: &str) -> Self {
        let mut node = Lease::take(&lab.sandbox).unwrap();
        node.apply(&lab.world().rules(rules).unwrap().model)
            .unwrap();
        Self {
            a: Asker::start(&lab.a).unwrap(),
            b: Asker::start(&lab.b).unwrap(),
            egress: node.pin_program("zt_egress").unwrap(),
            ingress: node.pin_program("zt_ingress").unwrap(),
            node,
        }
    }

    /// Whether `a` may send this.
    fn a_sends(&mut self, to: IpAddr, id: u16, transport: Transport) -> bool {
        let packet = packet(own(to, 10), to, id, transport);
        self.a.run(&self.egress, &packet).unwrap().returned != 0
    }

    /// Whether this arrives at `a`.
    fn a_gets(&mut self, from: IpAddr, id: u16, transport: Transport) -> bool {
        let packet = packet(from, own(from, 10), id, transport);
        self.a.run(&self.ingress, &packet).unwrap().returned != 0
    }

    fn b_sends(&mut self, to: IpAddr, id: u16, transport: Transport) -> bool {
        let packet = packet(own(to, 20), to, id, transport);
        self.b.run(&self.egress, &packet).unwrap().returned != 0
    }
}

/// The address of a host in the family of another.
fn own(like: IpAddr, host: u8) -> IpAddr {
    Lab::ips(host)[usize::from(like.is_ipv6())]
}

fn packet(source: IpAddr, destination: IpAddr, id: u16, transport: Transport) -> Packet {
    Packet {
        source,
        destination,
        source_port: id,
        destination_port: id,
        transport,
    }
}

/// GHSA-c66w-hq56-4q97: what was allowed for one echo was found again by its
/// identifier for something that was not. Here the identifier of an allowed
/// echo opens nothing for another peer, workload, protocol or direction.
#[test]
fn ghsa_c66w_hq56_4q97_an_allowed_echo_lends_its_identifier_to_nobody() {
    const ID: u16 = 777;
    let lab = Lab::new();
    let echo = Transport::Echo;
    let mut wire = Wire::new(&lab, &format!("[{}]", allow("a", "b", "any", "ICMP")));
    for (b, outside) in Lab::ips(20).into_iter().zip(Lab::ips(30)) {
        assert!(wire.a_sends(b, ID, echo), "{b} may be asked");
        assert!(wire.a_gets(b, ID, Transport::EchoReply), "{b} may answer");
        // Another peer with the same identifier, in either direction.
        assert!(!wire.a_sends(outside, ID, echo));
        assert!(!wire.a_gets(outside, ID, Transport::EchoReply));
        assert!(!wire.a_gets(outside, ID, echo));
        // An answer that nobody asked for.
        assert!(!wire.a_gets(b, ID + 1, Transport::EchoReply));
        // Another protocol, with the identifier for its ports.
        let ack = Transport::Tcp { flags: tcp::ACK };
        let syn = Transport::Tcp { flags: tcp::SYN };
        for other in [Transport::Udp, syn, ack] {
            assert!(!wire.a_sends(b, ID, other), "{other:?} to {b}");
            assert!(!wire.a_gets(b, ID, other), "{other:?} from {b}");
        }
        // Another workload of this node.
        assert!(!wire.b_sends(outside, ID, echo));
        assert!(!wire.b_sends(own(b, 10), ID, echo));
        // The peer asks under the identifier of the question that it got.
        wire.node.events();
        assert!(!wire.a_gets(b, ID, echo), "{b} opens a flow of its own");
        let events = wire.node.events();
        assert_eq!(events.len(), 1, "{events:#?}");
        assert_eq!(events[0].hook, Hook::SkbIngress as u8);
        assert_eq!(events[0].verdict, Verdict::Deny as u8);
        // That spoils nothing: the questions and answers go on, undecided anew.
        assert!(wire.a_gets(b, ID, Transport::EchoReply));
        assert!(wire.a_sends(b, ID, echo));
        assert_eq!(wire.node.events(), []);
    }
}

/// The same where both may ask: each question is decided in its own direction.
#[test]
fn ghsa_c66w_hq56_4q97_two_echoes_of_one_identifier_are_two_decisions() {
    const ID: u16 = 778;
    let lab = Lab::new();
    let both = [
        allow("a", "b", "any", "ICMP"),
        allow("b", "a", "any", "ICMP"),
    ];
    let mut wire = Wire::new(&lab, &format!("[{}]", both.join(", ")));
    let b = Lab::ips(20)[0];
    wire.node.events();
    assert!(wire.a_sends(b, ID, Transport::Echo));
    assert!(wire.a_gets(b, ID, Transport::Echo));
    let directions: Vec<u8> = wire.node.events().iter().map(|e| e.direction).collect();
    assert_eq!(
        directions,
        [1, 2].map(|d: u8| d - u8::from(directions[0] == 0))
    );
    // One of them loses its leave, the other one keeps it.
    let one = lab.world().rules(&format!("[{}]", both[0])).unwrap();
    wire.node.apply(&one.model).unwrap();
    assert!(!wire.a_gets(b, ID, Transport::Echo));
    assert!(wire.a_sends(b, ID, Transport::Echo));
    assert!(wire.a_gets(b, ID, Transport::EchoReply));
}

/// With real sockets: the receiver sees nothing of what is not allowed.
#[test]
fn ghsa_c66w_hq56_4q97_a_ping_that_is_not_allowed_is_not_answered() {
    let lab = Lab::new();
    for ip in Lab::ips(20).into_iter().chain(Lab::ips(30)) {
        assert!(
            lab.a.ping(ip, PATIENT).unwrap().replied(),
            "without programs: {ip}"
        );
    }
    let world = lab
        .world()
        .rules(&format!("[{}]", allow("a", "b", "any", "ICMP")))
        .unwrap();
    let _node = lab.node(&world);
    for ip in Lab::ips(20) {
        assert!(lab.a.ping(ip, PATIENT).unwrap().replied(), "{ip}");
    }
    for ip in Lab::ips(30) {
        assert!(!lab.a.ping(ip, SHORT).unwrap().replied(), "{ip}");
    }
    // What is not asked for through a socket of ours the kernel itself answers,
    // without asking the socket layers: the interface's layer decides that.
    for ip in Lab::ips(10) {
        assert!(!lab.b.ping(ip, SHORT).unwrap().replied(), "{ip}");
    }
}
