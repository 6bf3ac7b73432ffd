//! Ordinary sockets by less ordinary calls.

use std::time::Duration;

use zt_tests::patience::scaled;

use crate::{
    rig::{A, B, B6, C},
    row::rows,
};

/// What is asked of the socket layers where a caller names an address.
const TCP_ALLOWED: &[crate::row::Rule] = &[("a", "b", "[8080]", "TCP")];
const UDP_ALLOWED: &[crate::row::Rule] = &[("a", "b", "[8080]", "UDP")];

rows! {
    a_connect_is_refused => Row {
        name: "TCP `connect`",
        attack: |stage| stage.call("tcp4", &format!("connect {{}} {B}:8080")),
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_connect_by_ipv6_is_refused => Row {
        name: "TCP `connect`, IPv6",
        attack: |stage| stage.call("tcp6", &format!("connect {{}} [{B6}]:8080")),
        sockets: refused("connect6", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_connect_by_io_uring_is_refused => Row {
        name: "io_uring connect",
        needs: "uring",
        attack: |stage| stage.call("tcp4", &format!("uring-connect {{}} {B}:8080")),
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    data_in_a_first_segment_is_refused => Row {
        name: "TCP Fast Open (`MSG_FASTOPEN`)",
        before: |stage| stage.send_data_without_a_cookie(),
        attack: |stage| stage.call("tcp4", &format!("fastopen {{}} {B}:8080 early")),
        seen: Seen::Frame(|frame| frame.ends_with(b"early")),
        sockets: refused("connect4", "no-policy"),
        // The data was taken; that nobody has it shows later.
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_multipath_connect_is_refused => Row {
        name: "MPTCP `connect`",
        needs: "socket mptcp4",
        attack: |stage| stage.call("mptcp4", &format!("connect {{}} {B}:8080")),
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    data_in_a_first_multipath_segment_is_refused => Row {
        name: "MPTCP with Fast Open",
        needs: "socket mptcp4",
        unsupported: "EOPNOTSUPP",
        before: |stage| stage.send_data_without_a_cookie(),
        attack: |stage| stage.call("mptcp4", &format!("fastopen {{}} {B}:8080 early")),
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_multipath_socket_stays_with_who_made_it => Row {
        name: "MPTCP socket of a process that moved to a cgroup with a rule",
        needs: "socket mptcp4",
        rules: &[("d", "b", "[8080]", "TCP")],
        attack: |stage| {
            let socket = stage.a.get("socket mptcp4");
            let pid = stage.a.pid();
            stage.other.add(pid).unwrap();
            let said = stage.a.act(&format!("connect {socket} {B}:8080"));
            stage.attacker.cgroup().add(pid).unwrap();
            stage.a.act(&format!("abortive {socket}"))?;
            stage.a.act(&format!("close {socket}"))?;
            said
        },
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_connect_to_a_mapped_address_is_refused => Row {
        name: "TCP to `::ffff:a.b.c.d`",
        attack: |stage| stage.call("tcp6", &format!("connect {{}} [::ffff:{B}]:8080")),
        sockets: refused("connect6", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_datagram_is_refused => Row {
        name: "UDP `sendto`",
        attack: |stage| stage.call("udp4", &format!("sendto {{}} {B}:8080 x")),
        sockets: refused("sendmsg4", "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_datagram_by_ipv6_is_refused => Row {
        name: "UDP `sendto`, IPv6",
        attack: |stage| stage.call("udp6", &format!("sendto {{}} [{B6}]:8080 x")),
        sockets: refused("sendmsg6", "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_datagram_to_a_mapped_address_is_refused => Row {
        name: "UDP to `::ffff:a.b.c.d`",
        attack: |stage| stage.call("udp6", &format!("sendto {{}} [::ffff:{B}]:8080 x")),
        sockets: refused("sendmsg4", "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_connected_datagram_socket_is_refused => Row {
        name: "UDP `connect`, then `send`",
        attack: |stage| {
            let socket = stage.a.get("socket udp4");
            let said = stage.a.act(&format!("connect {socket} {B}:8080"));
            let sent = stage.a.act(&format!("send {socket} x"));
            stage.a.act(&format!("close {socket}"))?;
            said.and(sent)
        },
        sockets: refused("connect4", "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_lite_datagram_is_refused => Row {
        name: "UDP-Lite `sendto`",
        needs: "socket udplite4",
        attack: |stage| stage.call("udplite4", &format!("sendto {{}} {B}:8080 x")),
        sockets: refused("sendmsg4", "unsupported-protocol"),
        interface: dropped(FROM, "unsupported-protocol"),
        allowed: Allowed::Nothing("no rule can name it"),
        ..USUAL
    };

    a_datagram_in_fragments_is_refused => Row {
        name: "UDP, 4000 bytes in fragments",
        attack: |stage| stage.call("udp4", &format!("sendsize {{}} {B}:8080 4000")),
        sockets: refused("sendmsg4", "no-policy"),
        // The later fragments are of a datagram that does not pass.
        interface: dropped_all(FROM, "no-policy", &["fragment", "fragment"]),
        allowed: Allowed::Rules(UDP_ALLOWED),
        ..USUAL
    };

    a_connection_opened_from_both_ends_is_refused => Row {
        name: "TCP simultaneous open, where the other direction is allowed",
        rules: &[("b", "a", "[7001]", "TCP")],
        before: |stage| {
            // A packet that comes is not answered by a reset, which would
            // tell the attacker more than silence does.
            let socket = stage.b.get("socket tcp4");
            stage.b.act(&format!("bind {socket} {B}:7002")).unwrap();
        },
        attack: |stage| {
            let socket = stage.a.get("socket tcp4");
            stage.a.act(&format!("reuse {socket}"))?;
            stage.a.act(&format!("abortive {socket}"))?;
            stage.a.act(&format!("bind {socket} {A}:7001"))?;
            let said = stage.a.act(&format!("connect {socket} {B}:7002"));
            stage.a.act(&format!("close {socket}"))?;
            said
        },
        seen: Seen::Frame(|frame| crate::packet::is_v4(frame, 6) && frame[47] & 0x12 == 0x02),
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[7002]", "TCP")]),
        ..USUAL
    };

    a_path_that_the_peer_offers_is_refused => Row {
        name: "MPTCP subflow to an address that an allowed peer advertises",
        needs: "socket mptcp4",
        rules: &[("a", "b", "[8081]", "TCP")],
        before: |stage| stage.offer_another_path(),
        attack: |stage| {
            let socket = stage.a.get("socket mptcp4");
            stage.a.act(&format!("connect {socket} {B}:8081"))?;
            // What is established tells of other paths.
            let said = stage.a.act(&format!("send {socket} hello"));
            std::thread::sleep(scaled(Duration::from_millis(200)));
            // It would try again, in the next round.
            stage.a.act(&format!("abortive {socket}"))?;
            stage.a.act(&format!("close {socket}"))?;
            said
        },
        seen: Seen::Frame(|frame| crate::packet::is_v4(frame, 6) && frame[30..34] == C.octets()),
        sockets: dropped("connect4", "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8081]", "TCP"), ("a", "c", "[8081]", "TCP")]),
        ..USUAL
    };
}
