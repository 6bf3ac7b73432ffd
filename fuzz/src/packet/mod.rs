//! The packet parser: the code that the kernel runs, on any bytes.
//!
//! What a packet says is read a second time by [`wire`], which shares nothing
//! with the parser but the standards. [`recorder`] watches how it reads.

mod recorder;
mod wire;

use recorder::Recorder;
use wire::{Headers, Ip, Rest, Transport};
use zt_common::packet::{self, Kind, Packet};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const IGMP: u8 = 2;

/// Parses `bytes` and checks what comes of it.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    check_parser(bytes, |recorder| packet::parse(recorder));
    let through_slice = packet::parse(bytes);
    let through_recorder = packet::parse(&Recorder::new(bytes, 0));
    assert_eq!(
        without_addresses(&through_slice),
        without_addresses(&through_recorder),
        "a slice is read differently"
    );
    check_headers(&through_slice, &wire::read(bytes));
}

/// The properties of a parser.
fn check_parser(bytes: &[u8], parse: impl Fn(&Recorder<'_>) -> Packet) {
    // What lies behind the packet in memory must not matter.
    let recorder = Recorder::new(bytes, 0);
    let packet = parse(&recorder);
    let again = parse(&Recorder::new(bytes, 0xff));
    assert_eq!(
        without_addresses(&packet),
        without_addresses(&again),
        "bytes behind the packet were used"
    );
    if let Some(read) = recorder.outside() {
        assert!(packet.fault.is_some(), "{read} was refused, yet no fault");
    }
    check_headers(&packet, &wire::read(bytes));
}

/// A packet that ends within its addresses has a fault and no addresses.
fn without_addresses(packet: &Packet) -> Packet {
    Packet {
        source: Packet::UNREAD.source,
        destination: Packet::UNREAD.destination,
        ..*packet
    }
}

fn check_headers(packet: &Packet, headers: &Headers) {
    let Headers::Ip(ip) = headers else {
        return assert_without_transport(packet, "no IP packet");
    };
    if packet.fault.is_none() || packet.source != Packet::UNREAD.source {
        assert_eq!(packet.source, ip.source, "the source address");
        assert_eq!(packet.destination, ip.destination, "the destination");
    }
    match &ip.rest {
        Rest::LaterFragment => assert_without_transport(packet, "a later fragment"),
        Rest::Cut => assert_without_transport(packet, "a packet cut short"),
        Rest::Transport(transport) => check_transport(packet, ip, transport),
    }
}

fn assert_without_transport(packet: &Packet, what: &str) {
    assert!(packet.fault.is_some(), "{what} without a fault");
    let ports = (packet.source_port, packet.destination_port);
    assert_eq!(ports, (0, 0), "{what} with ports");
    assert_ne!(packet.kind, Kind::Opening, "{what} that opens a flow");
    assert_ne!(packet.kind, Kind::Plumbing, "{what} that passes unasked");
}

fn check_transport(packet: &Packet, ip: &Ip, transport: &Transport) {
    check_ports(packet, transport);
    if packet.fault.is_some() {
        assert!(
            !transport.is_plain || !is_decidable(transport),
            "a plain packet with a fault"
        );
        assert_ne!(packet.kind, Kind::Plumbing, "a fault that passes unasked");
        return;
    }
    assert!(transport.is_whole, "a header cut short without a fault");
    assert_eq!(packet.protocol, transport.protocol, "the protocol");
    assert_eq!(packet.kind, kind(ip, transport), "the kind");
}

/// Ports stand where the transport header says, or are 0 with a fault.
fn check_ports(packet: &Packet, transport: &Transport) {
    let ports = (packet.source_port, packet.destination_port);
    let expected = match transport.protocol {
        TCP | UDP => transport.ports,
        ICMP if transport.is_echo => (transport.identifier, transport.identifier),
        _ => (0, 0),
    };
    assert!(
        ports == expected || packet.fault.is_some() && ports == (0, 0),
        "ports {ports:?}, but the header says {expected:?}"
    );
    if packet.fault.is_none() && matches!(transport.protocol, TCP | UDP) {
        assert!(ports.0 != 0 && ports.1 != 0, "port 0 without a fault");
    }
}

/// A transport that rules can name, with all its header.
fn is_decidable(transport: &Transport) -> bool {
    let has_ports = transport.ports.0 != 0 && transport.ports.1 != 0;
    match transport.protocol {
        TCP | UDP => transport.is_whole && has_ports,
        _ => false,
    }
}

/// The kind of a packet without a fault.
fn kind(ip: &Ip, transport: &Transport) -> Kind {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    match transport.protocol {
        TCP if transport.flags & SYN != 0 && transport.flags & ACK == 0 => Kind::Opening,
        TCP => Kind::Segment,
        IGMP => {
            assert!(ip.is_v4, "IGMP in IPv6");
            assert!(ip.is_to_group(), "IGMP to a host");
            Kind::Plumbing
        }
        ICMP if transport.is_discovery(ip) || transport.is_report(ip) => Kind::Plumbing,
        ICMP | UDP => Kind::Datagram,
        other => panic!("protocol {other} without a fault"),
    }
}

#[cfg(test)]
mod tests;
