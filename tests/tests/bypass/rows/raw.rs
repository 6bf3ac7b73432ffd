//! Raw and ICMP sockets.

use crate::{
    packet::{self, ICMP, ICMPV6, UDP, V4, hex, icmp, icmpv6, tcp, udp, v6},
    rig::{A, A6, B, B6, Stage},
    row::{Said, rows},
};

const UDP_ALLOWED: &[crate::row::Rule] = &[("a", "b", "[8080]", "UDP")];
const ICMP_ALLOWED: &[crate::row::Rule] = &[("a", "b", "any", "ICMP")];

fn datagram() -> Vec<u8> {
    udp((A.into(), 4000), (B.into(), 8080), b"raw")
}

/// A UDP datagram by a raw socket that has been opened, or is now.
fn by_raw_socket(stage: &mut Stage) -> Said {
    stage.call(
        "raw4:17",
        &format!("sendhex {{}} {B}:0 {}", hex(&datagram())),
    )
}

fn with_own_header(stage: &mut Stage) -> Said {
    stage.send_raw(B.into(), &V4::new(A, B, UDP).packet(&datagram()))
}

rows! {
    a_raw_socket_is_refused => Row {
        name: "raw socket",
        attack: by_raw_socket,
        sockets: refused("sock_create", "raw-socket"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Granted(UDP_ALLOWED),
        ..USUAL
    };

    a_raw_ipv6_socket_is_refused => Row {
        name: "raw socket, IPv6",
        attack: |stage| {
            let datagram = udp((A6.into(), 4000), (B6.into(), 8080), b"raw");
            stage.call("raw6:17", &format!("sendhex {{}} [{B6}]:0 {}", hex(&datagram)))
        },
        sockets: refused("sock_create", "raw-socket"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Granted(UDP_ALLOWED),
        ..USUAL
    };

    a_raw_socket_from_before_sends_nothing => Row {
        name: "raw socket made before attach",
        before: |stage| stage.hold(|stage| stage.a.get("socket raw4:17")),
        attack: |stage| stage.on_held(&format!("sendhex {{}} {B}:0 {}", hex(&datagram()))),
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_granted_raw_socket_is_held_to_the_policy => Row {
        name: "raw socket with a grant, to a forbidden peer",
        raw_sockets: true,
        attack: by_raw_socket,
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_header_of_ones_own_needs_a_grant => Row {
        name: "`IP_HDRINCL`",
        attack: with_own_header,
        sockets: refused("sock_create", "raw-socket"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Granted(UDP_ALLOWED),
        ..USUAL
    };

    a_header_of_ones_own_is_held_to_the_policy => Row {
        name: "`IP_HDRINCL` with a grant, to a forbidden peer",
        raw_sockets: true,
        attack: with_own_header,
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    an_ipv6_header_of_ones_own_is_held_to_the_policy => Row {
        name: "`IPV6_HDRINCL` with a grant, to a forbidden peer",
        raw_sockets: true,
        attack: |stage| {
            let datagram = udp((A6.into(), 4000), (B6.into(), 8080), b"raw");
            stage.send_raw(B6.into(), &v6(A6, B6, UDP, &datagram))
        },
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_segment_without_a_connection_is_refused => Row {
        name: "raw socket with a grant, TCP segment without a connection",
        raw_sockets: true,
        attack: |stage| {
            let segment = tcp((A.into(), 4000), (B.into(), 8080), packet::ACK, b"stray");
            stage.call("raw4:6", &format!("sendhex {{}} {B}:0 {}", hex(&segment)))
        },
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    a_transport_that_no_rule_names_is_refused => Row {
        name: "raw socket with a grant, SCTP",
        raw_sockets: true,
        rules: &[("a", "b", "any", "[TCP, UDP]")],
        attack: |stage| {
            stage.call("raw4:132", &format!("sendhex {{}} {B}:0 {}", hex(&[0; 16])))
        },
        sockets: refused(EGRESS, "unsupported-protocol"),
        interface: dropped(FROM, "unsupported-protocol"),
        allowed: Allowed::Nothing("no rule can name it"),
        ..USUAL
    };

    a_ping_socket_is_refused => Row {
        name: "ping socket (ICMP datagram)",
        attack: |stage| {
            let request = icmp(8, 0, &[0, 0, 0, 1]);
            stage.call("ping4", &format!("sendhex {{}} {B}:0 {}", hex(&request)))
        },
        seen: Seen::Frame(|frame| packet::is_v4(frame, ICMP) && frame[34] == 8),
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(ICMP_ALLOWED),
        ..USUAL
    };

    a_ping_socket_by_ipv6_is_refused => Row {
        name: "ping socket, IPv6",
        attack: |stage| {
            let request = icmpv6(A6, B6, 128, 0, &[0, 0, 0, 1]);
            stage.call("ping6", &format!("sendhex {{}} [{B6}]:0 {}", hex(&request)))
        },
        seen: Seen::Frame(|frame| frame[20] == ICMPV6 && frame[54] == 128),
        // The kernel keeps the error for itself.
        sockets: dropped(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(ICMP_ALLOWED),
        ..USUAL
    };
}
