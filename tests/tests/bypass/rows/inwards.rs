//! The other way round: somebody outside, towards a governed workload.

use zt_tests::{Workload, actor::Actor};

use crate::{
    packet::{self, ICMP, IPV4, UDP, V4, icmp, udp},
    rig::{A, A6, B, C, Stage},
    row::{Rule, Said, rows},
};

const UDP_ALLOWED: &[Rule] = &[("b", "a", "[9000]", "UDP")];
const ALL: &[Rule] = &[("b", "a", "any", "[TCP, UDP]"), ("b", "a", "any", "ICMP")];

/// One socket of the workload's, for all rounds.
fn serve(stage: &mut Stage, kind: &str) {
    let socket = stage.a.get(&format!("socket {kind}"));
    stage.a.act(&format!("reuse {socket}")).unwrap();
    stage.a.act(&format!("bind {socket} {A}:9000")).unwrap();
    if kind != "udp4" {
        stage.a.act(&format!("listen {socket}")).unwrap();
    }
    stage.held = vec![socket];
}

fn takes(stage: &mut Stage, call: &str) -> bool {
    let socket = stage.held[0];
    stage.a.act(&format!("{call} {socket}")).is_ok()
}

/// A call of the outsider's. `{}` is the socket's number.
fn from_outside(stage: &mut Stage, kind: &str, call: &str) -> Said {
    let socket = stage.b.get(&format!("socket {kind}"));
    let said = stage.b.act(&call.replace("{}", &socket.to_string()));
    let _ = stage.b.act(&format!("abortive {socket}"));
    let _ = stage.b.act(&format!("close {socket}"));
    said
}

fn frame_from_outside(stage: &mut Stage, packet: &[u8]) -> Said {
    let frame = packet::frame(stage.a_mac, stage.b_mac, IPV4, packet);
    let call = format!("frame {{}} {}", packet::hex(&frame));
    from_outside(stage, "packet", &call)
}

fn datagram(stage: &Stage, from: std::net::Ipv4Addr) -> Vec<u8> {
    let ends = ((from.into(), stage.number(4000)), (A.into(), 9000));
    V4::new(from, A, UDP).packet(&udp(ends.0, ends.1, &[b'i'; 40]))
}

fn plain(stage: &mut Stage) -> Said {
    frame_from_outside(stage, &datagram(stage, B))
}

/// Whether a packet reached the workload's interface, whatever its stack does
/// with it.
fn reaches_the_interface(stage: &mut Stage) -> bool {
    let frames = stage.inward.frames();
    frames.iter().any(|frame| !packet::is_plumbing(frame))
}

rows! {
    a_datagram_from_outside_is_refused => Row {
        name: "UDP from outside",
        before: |stage| serve(stage, "udp4"),
        attack: |stage| from_outside(stage, "udp4", &format!("sendto {{}} {A}:9000 x")),
        seen: Seen::Taken(|stage| takes(stage, "recv")),
        sockets: dropped(INGRESS, "no-policy"),
        interface: dropped(TO, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_connection_from_outside_is_refused => Row {
        name: "TCP from outside",
        before: |stage| serve(stage, "tcp4"),
        attack: |stage| from_outside(stage, "tcp4", &format!("connect {{}} {A}:9000")),
        seen: Seen::Taken(|stage| takes(stage, "accept")),
        sockets: unanswered(INGRESS, "no-policy"),
        interface: unanswered(TO, "no-policy"),
        allowed: Allowed::Rules(&[("b", "a", "[9000]", "TCP")]),
        ..USUAL
    };

    a_multipath_connection_from_outside_is_refused => Row {
        name: "MPTCP from outside",
        needs: "socket mptcp4",
        before: |stage| serve(stage, "mptcp4"),
        attack: |stage| from_outside(stage, "mptcp4", &format!("connect {{}} {A}:9000")),
        seen: Seen::Taken(|stage| takes(stage, "accept")),
        sockets: unanswered(INGRESS, "no-policy"),
        interface: unanswered(TO, "no-policy"),
        allowed: Allowed::Rules(&[("b", "a", "[9000]", "TCP")]),
        ..USUAL
    };

    a_stolen_port_gets_nothing => Row {
        name: "`SO_REUSEPORT` against a socket bound before attach",
        rules: &[("b", "a", "[9000]", "TCP")],
        before: |stage| {
            serve(stage, "tcp4");
            let netns = stage.attacker.netns().cloned();
            let thief = Workload::sharing("d", stage.other.clone(), netns);
            stage.a = Actor::member(&thief);
            serve(stage, "tcp4");
            // Whatever comes to either socket goes to the second one.
            let socket = stage.held[0];
            stage.a.act(&format!("prefer {socket} 1")).unwrap();
        },
        attack: |stage| from_outside(stage, "tcp4", &format!("connect {{}} {A}:9000")),
        seen: Seen::Taken(|stage| takes(stage, "accept")),
        sockets: unanswered(INGRESS, "no-policy"),
        // It is the right address: only the socket shows whose it is.
        interface: Expect::Passes,
        allowed: Allowed::Rules(&[("b", "a", "[9000]", "TCP"), ("b", "d", "[9000]", "TCP")]),
        ..USUAL
    };

    an_orphan_from_outside_is_refused => Row {
        name: "later fragment of no datagram, from outside",
        rules: ALL,
        attack: |stage| {
            let header = V4::new(B, A, UDP).identification(stage.number(7000));
            frame_from_outside(stage, &header.fragment(3).packet(&[b'i'; 24]))
        },
        seen: Seen::Taken(reaches_the_interface),
        interface: dropped(TO, "fragment"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    a_tunnel_from_outside_is_refused => Row {
        name: "IPIP from outside",
        rules: ALL,
        attack: |stage| {
            let inner = datagram(stage, C);
            frame_from_outside(stage, &V4::new(B, A, 4).packet(&inner))
        },
        seen: Seen::Taken(reaches_the_interface),
        interface: dropped(TO, "tunnel"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    options_from_outside_are_refused => Row {
        name: "record route from outside",
        rules: ALL,
        attack: |stage| {
            let ends = ((B.into(), 4000), (A.into(), 9000));
            let header = V4::new(B, A, UDP).options(&[7, 7, 4, 0, 0, 0, 0, 0]);
            frame_from_outside(stage, &header.packet(&udp(ends.0, ends.1, b"x")))
        },
        seen: Seen::Taken(reaches_the_interface),
        interface: dropped(TO, "ip-options"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    an_error_from_outside_about_nothing_is_refused => Row {
        name: "ICMP error from outside about a flow that does not exist",
        rules: ALL,
        attack: |stage| {
            let sent = udp((A.into(), 4000), (B.into(), 8080), b"never sent");
            let quoted = V4::new(A, B, UDP).packet(&sent);
            let message = icmp(3, 3, &[&[0; 4][..], &quoted].concat());
            frame_from_outside(stage, &V4::new(B, A, ICMP).packet(&message))
        },
        seen: Seen::Taken(reaches_the_interface),
        interface: dropped(TO, "stray-error"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    an_unknown_ethertype_from_outside_is_refused => Row {
        name: "unknown ethertype from outside",
        rules: ALL,
        attack: |stage| {
            let frame = packet::frame(stage.a_mac, stage.b_mac, 0x88b5, &[b'i'; 60]);
            from_outside(stage, "packet", &format!("frame {{}} {}", packet::hex(&frame)))
        },
        seen: Seen::Taken(reaches_the_interface),
        interface: dropped(TO, "unknown-ethertype"),
        allowed: Allowed::Instead(ALL, plain),
        ..USUAL
    };

    a_neighbour_may_look_for_an_address => Row {
        name: "duplicate address detection by a neighbour",
        attack: |stage| {
            let group = "ff02::1:ff00:10".parse().unwrap();
            let start = [&[0; 4][..], &A6.octets()].concat();
            let nobody = std::net::Ipv6Addr::UNSPECIFIED;
            let message = packet::icmpv6(nobody, group, 135, 0, &start);
            let packet = packet::v6_hops(nobody, group, packet::ICMPV6, 255, &message);
            let to = [0x33, 0x33, 0xff, 0, 0, 0x10];
            let frame = packet::frame(to, stage.b_mac, packet::IPV6, &packet);
            from_outside(stage, "packet", &format!("frame {{}} {}", packet::hex(&frame)))
        },
        seen: Seen::Taken(|stage| {
            let frames = stage.inward.frames();
            let target = |frame: &Vec<u8>| frame[54..].starts_with(&[135]) && frame[62..78] == A6.octets();
            frames.iter().any(|frame| frame.len() >= 78 && target(frame))
        }),
        allowed: Allowed::Nothing("it keeps the link alive"),
        ..USUAL
    };

    a_remote_nodes_word_is_taken => Row {
        name: "forged source address, by a host that no agent governs",
        rules: &[("c", "a", "[9000]", "UDP")],
        attack: |stage| frame_from_outside(stage, &datagram(stage, C)),
        seen: Seen::Taken(reaches_the_interface),
        interface: Expect::Passes,
        allowed: Allowed::Nothing("a remote address is its node's claim"),
        ..USUAL
    };
}
