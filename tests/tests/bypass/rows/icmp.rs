//! ICMP that pretends to belong to something.

use crate::{
    packet::{ICMP, ICMPV6, IPV4, IPV6, UDP, V4, hex, icmp, icmpv6, udp, v6, v6_hops},
    rig::{A, A6, B, B6, C, Stage},
    row::{Rule, Said, rows},
};

const ICMP_ALLOWED: &[Rule] = &[("a", "b", "any", "ICMP")];
const ASKED: &[Rule] = &[("b", "a", "any", "[UDP]"), ("b", "a", "any", "ICMP")];

/// The first bytes of a datagram of `b`'s that was never sent.
fn quoted() -> Vec<u8> {
    let datagram = udp((B.into(), 4000), (A.into(), 8080), b"never sent");
    V4::new(B, A, UDP).packet(&datagram)
}

fn error(stage: &mut Stage, kind: u8, code: u8) -> Said {
    let message = icmp(kind, code, &[&[0; 4][..], &quoted()].concat());
    stage.send(IPV4, &V4::new(A, B, ICMP).packet(&message))
}

/// `b` sends to a port of `a` where nobody is: `a`'s kernel says so.
fn real_error(stage: &mut Stage) -> Said {
    let socket = stage.b.get("socket udp4");
    stage.b.act(&format!("sendto {socket} {A}:9 x"))?;
    stage.b.act(&format!("close {socket}"))
}

fn is_unreachable(frame: &[u8]) -> bool {
    crate::packet::is_v4(frame, ICMP) && frame[34] == 3
}

fn echo(kind: u8, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    icmp(kind, 0, &[high, low, 0, 1])
}

rows! {
    an_identifier_in_use_lets_no_request_out => Row {
        name: "ICMP identifier of an allowed echo from the other side, reused",
        raw_sockets: true,
        rules: ASKED,
        before: |stage| stage.hold(|stage| stage.a.get("socket raw4:1")),
        attack: |stage| {
            let identifier = stage.number(600);
            let request = hex(&echo(8, identifier));
            let socket = stage.b.get("socket raw4:1");
            stage.b.act(&format!("sendhex {socket} {A}:0 {request}"))?;
            stage.b.act(&format!("close {socket}"))?;
            // The request is at our socket: whatever remembers it does by now.
            let socket = stage.held.last().copied().unwrap_or_default();
            let _ = stage.a.act(&format!("recv {socket}"));
            stage.on_held(&format!("sendhex {{}} {B}:0 {request}"))
        },
        seen: Seen::Frame(|frame| crate::packet::is_v4(frame, ICMP) && frame[34] == 8),
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("b", "a", "any", "ICMP"), ("a", "b", "any", "ICMP")]),
        ..USUAL
    };

    an_answer_without_a_question_is_refused => Row {
        name: "ICMP echo reply that nobody asked for",
        attack: |stage| {
            let reply = echo(0, stage.number(700));
            stage.send(IPV4, &V4::new(A, B, ICMP).packet(&reply))
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(ICMP_ALLOWED),
        ..USUAL
    };

    other_messages_are_held_to_the_policy => Row {
        name: "ICMP timestamp request",
        attack: |stage| {
            let request = icmp(13, 0, &[0; 16]);
            stage.send(IPV4, &V4::new(A, B, ICMP).packet(&request))
        },
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(ICMP_ALLOWED),
        ..USUAL
    };

    an_error_about_nothing_is_refused => Row {
        name: "ICMP error about a flow that does not exist",
        rules: ASKED,
        attack: |stage| error(stage, 3, 3),
        seen: Seen::Frame(is_unreachable),
        interface: dropped(FROM, "stray-error"),
        allowed: Allowed::Instead(ASKED, real_error),
        ..USUAL
    };

    an_error_about_somebody_elses_flow_is_refused => Row {
        name: "ICMP error about another's flow",
        rules: ASKED,
        attack: |stage| {
            let datagram = udp((B.into(), 4000), (C.into(), 8080), b"of another");
            let quoted = V4::new(B, C, UDP).packet(&datagram);
            let message = icmp(3, 4, &[&[0, 0, 2, 0][..], &quoted].concat());
            stage.send(IPV4, &V4::new(A, B, ICMP).packet(&message))
        },
        seen: Seen::Frame(is_unreachable),
        interface: dropped(FROM, "stray-error"),
        allowed: Allowed::Instead(ASKED, real_error),
        ..USUAL
    };

    an_ipv6_error_about_nothing_is_refused => Row {
        name: "ICMPv6 error about a flow that does not exist",
        rules: ASKED,
        attack: |stage| {
            let datagram = udp((B6.into(), 4000), (A6.into(), 8080), b"never sent");
            let quoted = v6(B6, A6, UDP, &datagram);
            let message = icmpv6(A6, B6, 1, 4, &[&[0; 4][..], &quoted].concat());
            stage.send(IPV6, &v6_hops(A6, B6, ICMPV6, 64, &message))
        },
        seen: Seen::Frame(|frame| {
            is_unreachable(frame) || frame[20] == ICMPV6 && frame[54] == 1
        }),
        interface: dropped(FROM, "stray-error"),
        allowed: Allowed::Instead(ASKED, real_error),
        ..USUAL
    };

    a_redirect_is_refused => Row {
        name: "ICMP redirect",
        rules: ICMP_ALLOWED,
        attack: |stage| error(stage, 5, 1),
        interface: dropped(FROM, "router-advertisement"),
        allowed: Allowed::Nothing("routers are not workloads"),
        ..USUAL
    };
}
