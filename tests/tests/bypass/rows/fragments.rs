//! Pieces of packets.

use std::net::IpAddr;

use crate::{
    packet::{IPV4, IPV6, MORE, SYN, TCP, UDP, V4, tcp, udp, v6},
    rig::{A, A6, B, B6, C, Stage},
    row::{Rule, Said, rows},
};

const ALL: &[Rule] = &[
    ("a", "b", "any", "[TCP, UDP]"),
    ("a", "c", "any", "[TCP, UDP]"),
];
const ONE_PORT: &[Rule] = &[("a", "b", "[8080]", "UDP")];

/// Where a datagram of these tests is cut: the first piece has 24 bytes.
const CUT: usize = 24;
/// The offset of the second piece, in units of 8 bytes.
const SECOND: u16 = 3;

fn datagram(port: u16) -> Vec<u8> {
    udp((A.into(), 4000), (B.into(), port), &[b'f'; 40])
}

fn datagram6() -> Vec<u8> {
    udp((A6.into(), 4000), (B6.into(), 8080), &[b'f'; 40])
}

fn header(stage: &Stage, fragment: u16) -> V4 {
    let number = stage.number(7000);
    V4::new(A, B, UDP).identification(number).fragment(fragment)
}

fn first(stage: &mut Stage, port: u16) -> Said {
    let packet = header(stage, MORE).packet(&datagram(port)[..CUT]);
    stage.send(IPV4, &packet)
}

fn second(stage: &mut Stage) -> Said {
    let packet = header(stage, SECOND).packet(&datagram(8080)[CUT..]);
    stage.send(IPV4, &packet)
}

fn in_order(stage: &mut Stage) -> Said {
    first(stage, 8080)?;
    second(stage)
}

/// An IPv6 fragment; `offset` as in the header, with the bit for "more".
fn fragment6(stage: &Stage, offset: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = stage.number(7000).to_be_bytes();
    let [a, b] = offset.to_be_bytes();
    let header = [UDP, 0, a, b, 0, 0, high, low];
    v6(A6, B6, 44, &[&header[..], payload].concat())
}

fn in_order6(stage: &mut Stage) -> Said {
    stage.send(IPV6, &fragment6(stage, 1, &datagram6()[..CUT]))?;
    stage.send(IPV6, &fragment6(stage, SECOND << 3, &datagram6()[CUT..]))
}

/// An IPv4 packet's fragment offset.
fn offset(frame: &[u8]) -> u16 {
    if frame[12..14] != IPV4.to_be_bytes() {
        return 0;
    }
    u16::from_be_bytes([frame[20] & 0x1f, frame[21]])
}

fn is_later(frame: &[u8]) -> bool {
    offset(frame) != 0
}

fn is_later6(frame: &[u8]) -> bool {
    frame[12..14] == IPV6.to_be_bytes() && frame[20] == 44 && frame[57] & 0xf8 != 0
}

/// The first 24 bytes of a TCP segment that an allowed connection begins with.
fn segment() -> Vec<u8> {
    tcp((A.into(), 4000), (B.into(), 8080), SYN, &[b'f'; 40])
}

rows! {
    an_orphan_is_refused => Row {
        name: "later fragment of no datagram",
        rules: ALL,
        attack: second,
        seen: Seen::Frame(is_later),
        interface: dropped(FROM, "fragment"),
        allowed: Allowed::Instead(ALL, in_order),
        ..USUAL
    };

    an_orphan_by_a_raw_socket_is_refused => Row {
        name: "later fragment of no datagram, raw socket with a grant",
        raw_sockets: true,
        rules: ALL,
        attack: |stage| {
            let packet = header(stage, SECOND).packet(&datagram(8080)[CUT..]);
            stage.send_raw(IpAddr::V4(B), &packet)
        },
        sockets: refused(EGRESS, "fragment"),
        interface: dropped(FROM, "fragment"),
        allowed: Allowed::Nothing("a first fragment through the same hook does not help"),
        ..USUAL
    };

    fragments_of_a_forbidden_datagram_are_refused => Row {
        name: "both fragments of a forbidden datagram",
        attack: in_order,
        interface: dropped_all(FROM, "no-policy", &["fragment"]),
        allowed: Allowed::Rules(ONE_PORT),
        ..USUAL
    };

    fragments_in_the_wrong_order_are_refused => Row {
        name: "fragments of an allowed datagram, out of order",
        rules: ALL,
        attack: |stage| {
            second(stage)?;
            first(stage, 8080)
        },
        seen: Seen::Frame(is_later),
        interface: dropped(FROM, "fragment"),
        allowed: Allowed::Instead(ALL, in_order),
        ..USUAL
    };

    a_second_first_fragment_is_decided_by_its_own_port => Row {
        name: "overlapping first fragment that names another port",
        rules: ONE_PORT,
        attack: |stage| {
            first(stage, 8080)?;
            first(stage, 22)
        },
        seen: Seen::Frame(|frame| crate::packet::is_v4(frame, UDP) && frame[36..38] == [0, 22]),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[22, 8080]", "UDP")]),
        ..USUAL
    };

    a_tiny_first_fragment_is_refused => Row {
        name: "tiny first fragment (TCP flags in the second)",
        rules: ALL,
        attack: |stage| {
            let header = V4::new(A, B, TCP).fragment(MORE);
            stage.send(IPV4, &header.packet(&segment()[..8]))
        },
        interface: dropped(FROM, "unparseable"),
        allowed: Allowed::Instead(ALL, |stage| {
            let header = V4::new(A, B, TCP).fragment(MORE);
            stage.send(IPV4, &header.packet(&segment()[..CUT]))
        }),
        ..USUAL
    };

    a_fragment_over_the_header_is_refused => Row {
        name: "overlapping fragment that rewrites the TCP flags",
        rules: ALL,
        attack: |stage| {
            let header = V4::new(A, B, TCP).identification(stage.number(7000));
            let start = header.clone().fragment(MORE).packet(&segment()[..CUT]);
            stage.send(IPV4, &start)?;
            stage.send(IPV4, &header.fragment(1 | MORE).packet(&segment()[8..CUT]))
        },
        seen: Seen::Frame(is_later),
        interface: dropped(FROM, "fragment"),
        allowed: Allowed::Instead(ALL, in_order),
        ..USUAL
    };

    a_fragment_of_another_protocol_is_an_orphan => Row {
        name: "later fragment with an allowed datagram's identifier and another protocol",
        rules: ALL,
        attack: |stage| {
            first(stage, 8080)?;
            let header = V4::new(A, B, TCP).identification(stage.number(7000));
            stage.send(IPV4, &header.fragment(SECOND).packet(&datagram(8080)[CUT..]))
        },
        seen: Seen::Frame(is_later),
        interface: dropped(FROM, "fragment"),
        allowed: Allowed::Instead(ALL, in_order),
        ..USUAL
    };

    a_fragment_to_another_peer_is_an_orphan => Row {
        name: "later fragment with an allowed datagram's identifier and another destination",
        rules: &[("a", "c", "[8080]", "UDP")],
        attack: |stage| {
            let to_c = V4::new(A, C, UDP).identification(stage.number(7000));
            let start = to_c.fragment(MORE).packet(&datagram(8080)[..CUT]);
            stage.send(IPV4, &start)?;
            second(stage)
        },
        seen: Seen::Frame(is_later),
        interface: dropped(FROM, "fragment"),
        allowed: Allowed::Instead(ALL, in_order),
        ..USUAL
    };

    an_ipv6_orphan_is_refused => Row {
        name: "later IPv6 fragment of no datagram",
        rules: ALL,
        attack: |stage| {
            let packet = fragment6(stage, SECOND << 3, &datagram6()[CUT..]);
            stage.send(IPV6, &packet)
        },
        seen: Seen::Frame(is_later6),
        interface: dropped(FROM, "fragment"),
        allowed: Allowed::Instead(ALL, in_order6),
        ..USUAL
    };

    an_atomic_fragment_is_held_to_the_policy => Row {
        name: "whole datagram behind an IPv6 fragment header",
        attack: |stage| stage.send(IPV6, &fragment6(stage, 0, &datagram6())),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(ONE_PORT),
        ..USUAL
    };

    a_tiny_first_ipv6_fragment_is_refused => Row {
        name: "tiny first IPv6 fragment (destination options, ports in the second)",
        rules: ALL,
        attack: |stage| {
            let [high, low] = stage.number(7000).to_be_bytes();
            let fragment = [60, 0, 0, 1, 0, 0, high, low];
            let options = [UDP, 0, 1, 4, 0, 0, 0, 0];
            stage.send(IPV6, &v6(A6, B6, 44, &[fragment, options].concat()))
        },
        interface: dropped(FROM, "unparseable"),
        allowed: Allowed::Instead(ALL, in_order6),
        ..USUAL
    };
}
