//! The packet parser: the code that the kernel runs, on any bytes.
//!
//! What a packet says is read a second time by [`wire`], which shares nothing
//! with the parser but the standards. [`recorder`] watches how it reads.

mod recorder;
mod wire;

use recorder::Recorder;
use wire::{Fragment, Headers, Ip, Rest, Transport};
use zt_common::packet::{self, ASKS, Inside, Kind, Packet};

const ICMP: u8 = 1;
const IGMP: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Parses `bytes` and checks what comes of it.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    check_parser(bytes, |recorder| packet::parse(recorder));
    let packet = packet::parse(bytes);
    check_headers(&packet, &wire::read(bytes));
    if packet.kind == Kind::Error && packet.fault.is_none() {
        check_quoted(bytes, packet.transport + 8);
    }
}

/// The properties of a parser.
fn check_parser(bytes: &[u8], parse: impl Fn(&Recorder<'_>) -> Packet) {
    let packet = check_reads(bytes, parse);
    check_headers(&packet, &wire::read(bytes));
}

/// It uses only what it was given, and what it is refused is a fault.
fn check_reads(bytes: &[u8], parse: impl Fn(&Recorder<'_>) -> Packet) -> Packet {
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
    packet
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
    check_addresses(packet, ip);
    if ip.is_led {
        assert!(packet.fault.is_some(), "led elsewhere without a fault");
        assert_ne!(packet.kind, Kind::Fragment, "led elsewhere as a fragment");
    }
    match &ip.rest {
        Rest::LaterFragment(fragment) => check_later_fragment(packet, fragment),
        Rest::Cut => assert_without_transport(packet, "a packet cut short"),
        Rest::Transport(transport) => check_transport(packet, ip, transport),
    }
}

fn check_addresses(packet: &Packet, ip: &Ip) {
    assert_eq!(packet.source, ip.source, "the source address");
    assert_eq!(packet.destination, ip.destination, "the destination");
}

fn assert_without_transport(packet: &Packet, what: &str) {
    assert!(packet.fault.is_some(), "{what} without a fault");
    let ports = (packet.source_port, packet.destination_port);
    assert_eq!(ports, (0, 0), "{what} with ports");
    assert!(
        matches!(packet.kind, Kind::Datagram | Kind::Fragment),
        "{what} that passes as {:?}",
        packet.kind
    );
}

/// It is known again by where it belongs, and by nothing that it carries.
fn check_later_fragment(packet: &Packet, fragment: &Fragment) {
    assert_without_transport(packet, "a later fragment");
    if packet.kind == Kind::Fragment {
        assert_eq!(packet.fragment, fragment.offset, "the offset");
        assert_eq!(packet.identification, fragment.identification);
        assert!(!packet.more, "a later fragment taken for the first");
    }
}

fn check_transport(packet: &Packet, ip: &Ip, transport: &Transport) {
    assert_ne!(packet.kind, Kind::Fragment, "no later fragment");
    check_ports(packet, transport);
    if packet.fault.is_some() {
        let is_plain = transport.is_plain && is_decidable(transport);
        assert!(!is_plain, "a plain packet with a fault");
        assert_ne!(packet.kind, Kind::Plumbing, "a fault that passes unasked");
        return;
    }
    assert!(transport.is_whole(), "a header cut short without a fault");
    assert_eq!(packet.protocol, transport.protocol, "the protocol");
    assert_eq!(packet.kind, kind(ip, transport), "the kind");
    assert_eq!(offset(packet.transport), transport.at, "where it starts");
    assert_eq!(packet.more, transport.fragment.more, "the first of several");
    assert_eq!(packet.identification, transport.fragment.identification);
    if packet.more {
        assert_eq!(offset(packet.fragment), transport.header_end());
    }
    if packet.kind == Kind::Opening {
        let expected = match transport.protocol {
            TCP => transport.sequence,
            _ => ASKS,
        };
        assert_eq!(packet.sequence, expected, "the sequence number");
    }
}

fn offset(offset: u32) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
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
    matches!(transport.protocol, TCP | UDP) && transport.is_whole() && has_ports
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
        ICMP if transport.is_error => Kind::Error,
        ICMP if transport.is_router => Kind::Router,
        ICMP if !transport.is_answer => Kind::Opening,
        ICMP | UDP => Kind::Datagram,
        other => panic!("protocol {other} without a fault"),
    }
}

/// The packet that an ICMP error quotes, `at` bytes into it.
fn check_quoted(bytes: &[u8], at: u32) {
    let packet = check_reads(bytes, |recorder| {
        let mut packet = Packet::UNREAD;
        packet::parse_quoted(&Inside(recorder, at), &mut packet);
        packet
    });
    if packet.fault.is_some() {
        return;
    }
    let inner = bytes.get(offset(at)..).unwrap_or_default();
    let Headers::Ip(ip) = wire::read(inner) else {
        panic!("what is quoted is no packet");
    };
    let Rest::Transport(transport) = &ip.rest else {
        panic!("what is quoted has no transport header");
    };
    check_addresses(&packet, &ip);
    check_ports(&packet, transport);
    assert!(!ip.is_led, "quoted and led elsewhere");
    assert!(transport.length >= 8, "quoted and cut short");
    assert_eq!(packet.protocol, transport.protocol, "the quoted protocol");
    assert_eq!(packet.kind, Kind::Datagram, "the quoted kind");
    assert!(
        matches!(packet.protocol, ICMP | TCP | UDP),
        "a quoted packet of protocol {}",
        packet.protocol
    );
}

#[cfg(test)]
mod tests;
