//! Packet sockets: frames that no hook of a socket sees.

use crate::{
    packet::{self, ACK, ICMP, IPV4, IPV6, SYN, TCP, UDP, V4, frame, hex, icmp, tcp, udp},
    rig::{A, A6, B, B6, Stage},
    row::{Rule, rows},
};

const UDP_ALLOWED: &[Rule] = &[("a", "b", "[8080]", "UDP")];
/// Everything that a rule can name, for what is denied in spite of it.
const ALL: &[Rule] = &[("a", "b", "any", "[TCP, UDP]"), ("a", "b", "any", "ICMP")];

fn datagram(stage: &Stage) -> Vec<u8> {
    let from = (A.into(), stage.number(4000));
    V4::new(A, B, UDP).packet(&udp(from, (B.into(), 8080), b"frame"))
}

fn segment(stage: &Stage, flags: u8) -> Vec<u8> {
    let from = (A.into(), stage.number(4000));
    V4::new(A, B, TCP).packet(&tcp(from, (B.into(), 8080), flags, b""))
}

rows! {
    a_frame_is_held_to_the_policy => Row {
        name: "`AF_PACKET`, UDP",
        attack: |stage| stage.send(IPV4, &datagram(stage)),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_frame_past_the_queue_is_held_to_the_policy => Row {
        name: "`AF_PACKET` with `PACKET_QDISC_BYPASS`, UDP",
        attack: |stage| {
            let frame = frame(stage.b_mac, stage.a_mac, IPV4, &datagram(stage));
            let socket = stage.a.act("socket packet")?;
            stage.a.act(&format!("bypass {socket}"))?;
            let said = stage.a.act(&format!("frame {socket} {}", hex(&frame)));
            stage.a.act(&format!("close {socket}"))?;
            said
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_frame_by_a_socket_from_before_is_held_to_the_policy => Row {
        name: "`AF_PACKET` socket made before attach, UDP",
        before: |stage| stage.hold(|stage| stage.a.get("socket packet")),
        attack: |stage| {
            let frame = frame(stage.b_mac, stage.a_mac, IPV4, &datagram(stage));
            stage.on_held(&format!("frame {{}} {}", hex(&frame)))
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_frame_by_an_xdp_socket_is_held_to_the_policy => Row {
        name: "`AF_XDP` in copy mode, UDP",
        needs: "xdp",
        attack: |stage| {
            let frame = frame(stage.b_mac, stage.a_mac, IPV4, &datagram(stage));
            stage.a.act(&format!("xdp {}", hex(&frame)))
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    an_ipv6_frame_is_held_to_the_policy => Row {
        name: "`AF_PACKET`, UDP over IPv6",
        attack: |stage| {
            let from = (A6.into(), stage.number(4000));
            let datagram = udp(from, (B6.into(), 8080), b"frame");
            stage.send(IPV6, &packet::v6(A6, B6, UDP, &datagram))
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_first_segment_in_a_frame_is_held_to_the_policy => Row {
        name: "`AF_PACKET`, TCP SYN",
        attack: |stage| stage.send(IPV4, &segment(stage, SYN)),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    a_later_segment_in_a_frame_is_held_to_the_policy => Row {
        name: "`AF_PACKET`, TCP segment of no connection",
        attack: |stage| stage.send(IPV4, &segment(stage, ACK)),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    an_echo_request_in_a_frame_is_held_to_the_policy => Row {
        name: "`AF_PACKET`, ICMP echo request",
        attack: |stage| {
            let [high, low] = stage.number(500).to_be_bytes();
            let request = icmp(8, 0, &[high, low, 0, 1]);
            stage.send(IPV4, &V4::new(A, B, ICMP).packet(&request))
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "any", "ICMP")]),
        ..USUAL
    };

    a_broadcast_frame_is_held_to_the_policy => Row {
        name: "`AF_PACKET`, forbidden peer's address in a broadcast frame",
        attack: |stage| {
            let frame = frame([0xff; 6], stage.a_mac, IPV4, &datagram(stage));
            stage.send_frame(&frame)
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    an_unknown_ethertype_is_refused => Row {
        name: "unknown ethertype",
        rules: ALL,
        attack: |stage| stage.send(0x88b5, &datagram(stage)),
        interface: dropped(FROM, "unknown-ethertype"),
        allowed: Allowed::Instead(ALL, |stage| stage.send(IPV4, &datagram(stage))),
        ..USUAL
    };

    a_length_for_an_ethertype_is_refused => Row {
        name: "802.3 frame with LLC and SNAP around an IP packet",
        rules: ALL,
        attack: |stage| {
            let snap = [0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
            let payload = [&snap[..], &datagram(stage)].concat();
            stage.send(u16::try_from(payload.len()).unwrap(), &payload)
        },
        interface: dropped(FROM, "unknown-ethertype"),
        allowed: Allowed::Instead(ALL, |stage| stage.send(IPV4, &datagram(stage))),
        ..USUAL
    };

    a_tagged_frame_is_refused => Row {
        name: "VLAN tag (802.1Q) before an allowed packet",
        rules: ALL,
        attack: |stage| {
            let tagged = [&[0, 5, 8, 0][..], &datagram(stage)].concat();
            stage.send(0x8100, &tagged)
        },
        interface: dropped(FROM, "unknown-ethertype"),
        allowed: Allowed::Instead(ALL, |stage| stage.send(IPV4, &datagram(stage))),
        ..USUAL
    };

    a_twice_tagged_frame_is_refused => Row {
        name: "two VLAN tags (802.1ad) before an allowed packet",
        rules: ALL,
        attack: |stage| {
            let tagged = [&[0, 5, 0x81, 0, 0, 6, 8, 0][..], &datagram(stage)].concat();
            stage.send(0x88a8, &tagged)
        },
        interface: dropped(FROM, "unknown-ethertype"),
        allowed: Allowed::Instead(ALL, |stage| stage.send(IPV4, &datagram(stage))),
        ..USUAL
    };

    a_label_switched_frame_is_refused => Row {
        name: "MPLS label before an allowed packet",
        rules: ALL,
        attack: |stage| {
            let labelled = [&[0, 1, 1, 64][..], &datagram(stage)].concat();
            stage.send(0x8847, &labelled)
        },
        interface: dropped(FROM, "unknown-ethertype"),
        allowed: Allowed::Instead(ALL, |stage| stage.send(IPV4, &datagram(stage))),
        ..USUAL
    };

    an_ethertype_that_lies_is_refused => Row {
        name: "ethertype IPv4 before an IPv6 packet",
        rules: ALL,
        attack: |stage| {
            let from = (A6.into(), stage.number(4000));
            let datagram = udp(from, (B6.into(), 8080), b"frame");
            stage.send(IPV4, &packet::v6(A6, B6, UDP, &datagram))
        },
        interface: dropped(FROM, "unparseable"),
        allowed: Allowed::Instead(ALL, |stage| stage.send(IPV4, &datagram(stage))),
        ..USUAL
    };

    a_packet_cut_short_is_refused => Row {
        name: "IPv4 header cut short",
        rules: ALL,
        attack: |stage| stage.send(IPV4, &datagram(stage)[..16]),
        interface: dropped(FROM, "unparseable"),
        allowed: Allowed::Instead(ALL, |stage| stage.send(IPV4, &datagram(stage))),
        ..USUAL
    };

    port_zero_is_refused => Row {
        name: "UDP to port 0",
        rules: ALL,
        attack: |stage| {
            let from = (A.into(), stage.number(4000));
            let datagram = udp(from, (B.into(), 0), b"frame");
            stage.send(IPV4, &V4::new(A, B, UDP).packet(&datagram))
        },
        interface: dropped(FROM, "unparseable"),
        allowed: Allowed::Instead(ALL, |stage| stage.send(IPV4, &datagram(stage))),
        ..USUAL
    };
}
