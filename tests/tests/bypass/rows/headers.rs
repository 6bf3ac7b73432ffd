//! Options, extension headers and packets inside packets.

use std::net::IpAddr;

use crate::{
    packet::{IPV4, IPV6, TCP, UDP, V4, hex, udp, v6},
    rig::{A, A6, B, B6, C, C6, Stage},
    row::{Rule, Said, rows},
};

const ALL: &[Rule] = &[
    ("a", "b", "any", "[TCP, UDP]"),
    ("a", "c", "any", "[TCP, UDP]"),
];
const ONE_PORT: &[Rule] = &[("a", "b", "[8080]", "UDP")];

/// Room for seven addresses, recorded on the way.
const RECORD_ROUTE: &[u8] = &[7, 7, 4, 0, 0, 0, 0, 0];

fn datagram() -> Vec<u8> {
    udp((A.into(), 4000), (B.into(), 8080), b"headers")
}

fn datagram6() -> Vec<u8> {
    udp((A6.into(), 4000), (B6.into(), 8080), b"headers")
}

fn plain(stage: &mut Stage) -> Said {
    stage.send(IPV4, &V4::new(A, B, UDP).packet(&datagram()))
}

fn plain6(stage: &mut Stage) -> Said {
    stage.send(IPV6, &v6(A6, B6, UDP, &datagram6()))
}

fn with_options(stage: &mut Stage, options: &[u8]) -> Said {
    stage.send(
        IPV4,
        &V4::new(A, B, UDP).options(options).packet(&datagram()),
    )
}

/// A packet with extension headers before what it carries.
fn extended(stage: &mut Stage, first: u8, extensions: &[&[u8]]) -> Said {
    let payload = [&extensions.concat()[..], &datagram6()].concat();
    stage.send(IPV6, &v6(A6, B6, first, &payload))
}

/// By way of `b` to `c`: the header of an ordinary packet names `b`.
fn routed(stage: &mut Stage, kind: &str, call: &str) -> Said {
    let [a, b, c, d] = B.octets();
    let route = hex(&[131, 7, 4, a, b, c, d, 0]);
    let socket = stage.a.act(&format!("socket {kind}"))?;
    stage.a.act(&format!("options {socket} {route}"))?;
    let said = stage.a.act(&call.replace("{}", &socket));
    stage.a.act(&format!("abortive {socket}"))?;
    stage.a.act(&format!("close {socket}"))?;
    said
}

fn inside(stage: &Stage) -> Vec<u8> {
    V4::new(C, B, TCP)
        .identification(stage.number(9000))
        .packet(&[0; 20])
}

/// A packet of another protocol, by a raw socket with a grant.
fn carried(stage: &mut Stage, protocol: u8, payload: &[u8]) -> Said {
    stage.call(
        &format!("raw4:{protocol}"),
        &format!("sendhex {{}} {B}:0 {}", hex(payload)),
    )
}

fn framed(stage: &mut Stage, protocol: u8) -> Said {
    let payload = inside(stage);
    stage.send(IPV4, &V4::new(A, B, protocol).packet(&payload))
}

rows! {
    a_source_route_is_refused => Row {
        name: "source route (`IP_OPTIONS`), UDP",
        rules: ALL,
        attack: |stage| routed(stage, "udp4", &format!("sendto {{}} {C}:8080 x")),
        sockets: refused(EGRESS, "ip-options"),
        interface: dropped(FROM, "ip-options"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    a_source_routed_connection_is_refused => Row {
        name: "source route (`IP_OPTIONS`), TCP",
        rules: ALL,
        attack: |stage| routed(stage, "tcp4", &format!("connect {{}} {C}:8080")),
        sockets: unanswered(EGRESS, "ip-options"),
        interface: unanswered(FROM, "ip-options"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    a_recorded_route_is_refused => Row {
        name: "record route, in a frame",
        rules: ALL,
        attack: |stage| with_options(stage, RECORD_ROUTE),
        interface: dropped(FROM, "ip-options"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    a_router_alert_is_refused => Row {
        name: "router alert before UDP",
        rules: ALL,
        attack: |stage| with_options(stage, &[148, 4, 0, 0]),
        interface: dropped(FROM, "ip-options"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    options_of_nothing_are_refused => Row {
        name: "options that only fill",
        rules: ALL,
        attack: |stage| with_options(stage, &[1; 40]),
        interface: dropped(FROM, "ip-options"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    a_header_shorter_than_any_is_refused => Row {
        name: "IPv4 header that says it is shorter than any",
        rules: ALL,
        attack: |stage| {
            let mut packet = V4::new(A, B, UDP).packet(&datagram());
            packet[0] = 0x44;
            stage.send(IPV4, &packet)
        },
        interface: dropped(FROM, "unparseable"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    hop_by_hop_options_hide_nothing => Row {
        name: "IPv6 hop-by-hop options before forbidden UDP",
        attack: |stage| extended(stage, 0, &[&[UDP, 0, 1, 4, 0, 0, 0, 0]]),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(ONE_PORT),
        ..USUAL
    };

    destination_options_hide_nothing => Row {
        name: "IPv6 destination options before forbidden UDP",
        attack: |stage| extended(stage, 60, &[&[60, 0, 1, 4, 0, 0, 0, 0], &[UDP, 0, 1, 4, 0, 0, 0, 0]]),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(ONE_PORT),
        ..USUAL
    };

    a_chain_of_fragment_headers_hides_nothing => Row {
        name: "IPv6 chain of fragment headers before forbidden UDP",
        attack: |stage| {
            let next = |next| [next, 0, 0, 0, 0, 0, 0, 9];
            extended(stage, 44, &[&next(60), &[44, 0, 1, 4, 0, 0, 0, 0], &next(UDP)])
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Instead(ALL, plain6),
        ..USUAL
    };

    a_routing_header_is_refused => Row {
        name: "IPv6 routing header",
        rules: ALL,
        attack: |stage| {
            let header = [&[UDP, 2, 4, 1, 0, 0, 0, 0][..], &C6.octets()].concat();
            extended(stage, 43, &[&header])
        },
        interface: dropped(FROM, "ip-options"),
        allowed: Allowed::Instead(ALL, plain6),
        ..USUAL
    };

    a_routing_header_by_a_raw_socket_is_refused => Row {
        name: "IPv6 routing header, raw socket with a grant",
        raw_sockets: true,
        rules: ALL,
        attack: |stage| {
            let header = [&[UDP, 2, 4, 1, 0, 0, 0, 0][..], &C6.octets()].concat();
            let payload = [&header[..], &datagram6()].concat();
            stage.send_raw(IpAddr::V6(B6), &v6(A6, B6, 43, &payload))
        },
        sockets: refused(EGRESS, "ip-options"),
        interface: dropped(FROM, "ip-options"),
        allowed: Allowed::Instead(ALL, plain6),
        ..USUAL
    };

    too_many_extension_headers_are_refused => Row {
        name: "more IPv6 extension headers than are looked at",
        rules: ALL,
        attack: |stage| {
            let more = [60, 0, 1, 4, 0, 0, 0, 0];
            let last = [UDP, 0, 1, 4, 0, 0, 0, 0];
            extended(stage, 60, &[&more, &more, &more, &more, &more, &more, &more, &last])
        },
        interface: dropped(FROM, "unparseable"),
        allowed: Allowed::Instead(ALL, plain6),
        ..USUAL
    };

    an_encrypted_payload_is_refused => Row {
        name: "IPv6 ESP",
        rules: ALL,
        attack: |stage| stage.send(IPV6, &v6(A6, B6, 50, &datagram6())),
        interface: dropped(FROM, "unsupported-protocol"),
        allowed: Allowed::Instead(ALL, plain6),
        ..USUAL
    };

    no_next_header_is_refused => Row {
        name: "IPv6 without a next header, and data",
        rules: ALL,
        attack: |stage| stage.send(IPV6, &v6(A6, B6, 59, &datagram6())),
        interface: dropped(FROM, "unsupported-protocol"),
        allowed: Allowed::Instead(ALL, plain6),
        ..USUAL
    };

    a_packet_in_a_packet_is_refused => Row {
        name: "IPIP, raw socket with a grant",
        raw_sockets: true,
        rules: ALL,
        attack: |stage| carried(stage, 4, &inside(stage)),
        sockets: refused(EGRESS, "tunnel"),
        interface: dropped(FROM, "tunnel"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    ipv6_in_ipv4_is_refused => Row {
        name: "6in4, raw socket with a grant",
        raw_sockets: true,
        rules: ALL,
        attack: |stage| carried(stage, 41, &v6(C6, B6, UDP, &datagram6())),
        sockets: refused(EGRESS, "tunnel"),
        interface: dropped(FROM, "tunnel"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    generic_encapsulation_is_refused => Row {
        name: "GRE, raw socket with a grant",
        raw_sockets: true,
        rules: ALL,
        attack: |stage| carried(stage, 47, &[&[0, 0, 8, 0][..], &inside(stage)].concat()),
        sockets: refused(EGRESS, "tunnel"),
        interface: dropped(FROM, "tunnel"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    ethernet_in_ip_is_refused => Row {
        name: "EtherIP, in a frame",
        rules: ALL,
        attack: |stage| framed(stage, 97),
        interface: dropped(FROM, "tunnel"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    layer_two_tunnels_are_refused => Row {
        name: "L2TP, in a frame",
        rules: ALL,
        attack: |stage| framed(stage, 115),
        interface: dropped(FROM, "tunnel"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    labels_in_ip_are_refused => Row {
        name: "MPLS in IP, in a frame",
        rules: ALL,
        attack: |stage| framed(stage, 137),
        interface: dropped(FROM, "tunnel"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    ipv6_in_ipv6_is_refused => Row {
        name: "IPv6 in IPv6, in a frame",
        rules: ALL,
        attack: |stage| {
            let inner = v6(C6, B6, UDP, &datagram6());
            stage.send(IPV6, &v6(A6, B6, 41, &inner))
        },
        interface: dropped(FROM, "tunnel"),
        allowed: Allowed::Instead(ALL, plain6),
        ..USUAL
    };

    a_tunnel_behind_an_extension_header_is_refused => Row {
        name: "IPv4 in IPv6 behind destination options, in a frame",
        rules: ALL,
        attack: |stage| {
            let payload = [&[4, 0, 1, 4, 0, 0, 0, 0][..], &inside(stage)].concat();
            stage.send(IPV6, &v6(A6, B6, 60, &payload))
        },
        interface: dropped(FROM, "tunnel"),
        allowed: Allowed::Instead(ALL, plain6),
        ..USUAL
    };
}
