//! Sockets from before: made before the programs came, or somewhere else.

use crate::{rig::B, row::rows};

rows! {
    a_connection_from_before_ends => Row {
        name: "TCP, connected before attach",
        before: |stage| stage.hold(|stage| {
            let socket = stage.a.get("socket tcp4");
            stage.a.act(&format!("connect {socket} {B}:8080")).unwrap();
            socket
        }),
        attack: |stage| stage.on_held("send {} late"),
        seen: Seen::Frame(|frame| frame.ends_with(b"late")),
        sockets: dropped(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    a_stream_socket_from_before_opens_nothing => Row {
        name: "TCP socket made before attach",
        before: |stage| stage.hold(|stage| stage.a.get("socket tcp4")),
        attack: |stage| stage.on_held(&format!("connect {{}} {B}:8080")),
        sockets: unanswered(EGRESS, "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    a_datagram_socket_from_before_sends_nothing => Row {
        name: "UDP socket made before attach",
        before: |stage| stage.hold(|stage| stage.a.get("socket udp4")),
        attack: |stage| stage.on_held(&format!("sendto {{}} {B}:8080 x")),
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "UDP")]),
        ..USUAL
    };

    a_datagram_socket_connected_before_sends_nothing => Row {
        name: "UDP socket connected before attach",
        before: |stage| stage.hold(|stage| {
            let socket = stage.a.get("socket udp4");
            stage.a.act(&format!("connect {socket} {B}:8080")).unwrap();
            socket
        }),
        attack: |stage| stage.on_held("send {} x"),
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "UDP")]),
        ..USUAL
    };

    a_socket_inherited_over_exec_opens_nothing => Row {
        name: "TCP socket made before attach, inherited over exec",
        before: |stage| {
            stage.hold(|stage| stage.a.get("socket tcp4"));
            stage.a.act("exec").unwrap();
        },
        attack: |stage| stage.on_held(&format!("connect {{}} {B}:8080")),
        sockets: unanswered(EGRESS, "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    an_exec_takes_no_verdict_away => Row {
        name: "TCP socket inherited over exec",
        attack: |stage| {
            let socket = stage.a.get("socket tcp4");
            stage.a.act("exec")?;
            stage.a.act(&format!("abortive {socket}"))?;
            let said = stage.a.act(&format!("connect {socket} {B}:8080"));
            stage.a.act(&format!("close {socket}"))?;
            said
        },
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    a_socket_made_before_a_move_is_seen_at_the_interface => Row {
        name: "TCP socket made before the process moved into the cgroup",
        before: |stage| {
            stage.a = stage.outsider();
            stage.hold(|stage| stage.a.get("socket tcp4"));
            let pid = stage.a.pid();
            stage.attacker.cgroup().add(pid).unwrap();
        },
        attack: |stage| stage.on_held(&format!("connect {{}} {B}:8080")),
        sockets: Expect::Passes,
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    a_datagram_socket_made_before_a_move_is_seen_at_the_interface => Row {
        name: "UDP socket made before the process moved into the cgroup",
        before: |stage| {
            stage.a = stage.outsider();
            stage.hold(|stage| stage.a.get("socket udp4"));
            let pid = stage.a.pid();
            stage.attacker.cgroup().add(pid).unwrap();
        },
        attack: |stage| stage.on_held(&format!("sendto {{}} {B}:8080 x")),
        sockets: Expect::Passes,
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "UDP")]),
        ..USUAL
    };

    a_socket_that_was_passed_is_seen_at_the_interface => Row {
        name: "TCP socket of an outsider, passed by SCM_RIGHTS",
        before: |stage| {
            let mut outsider = stage.outsider();
            stage.hold(|stage| {
                let socket = outsider.get("socket tcp4");
                stage.hand_over(&mut outsider, socket)
            });
        },
        attack: |stage| stage.on_held(&format!("connect {{}} {B}:8080")),
        sockets: Expect::Passes,
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };
}
