//! Addresses that are not the workload's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    packet::{ICMP, IPV4, IPV6, Mac, TCP, UDP, V4, frame, icmp, tcp, udp, v6},
    rig::{A, A6, B, B6, C, C6, Stage},
    row::{Rule, Said, rows},
};

/// `c` may as well, so that only the source shows who it is.
const ALL: &[Rule] = &[
    ("a", "b", "any", "[TCP, UDP]"),
    ("c", "b", "any", "[TCP, UDP]"),
    ("a", "b", "any", "ICMP"),
    ("c", "b", "any", "ICMP"),
];

/// Nobody's.
const FORGED: Mac = [2, 0, 0, 0, 0, 0x66];

fn datagram(stage: &Stage, from: Ipv4Addr) -> Vec<u8> {
    let ends = ((from.into(), stage.number(4000)), (B.into(), 8080));
    V4::new(from, B, UDP).packet(&udp(ends.0, ends.1, b"forged"))
}

fn datagram6(stage: &Stage, from: Ipv6Addr) -> Vec<u8> {
    let ends = ((from.into(), stage.number(4000)), (B6.into(), 8080));
    v6(from, B6, UDP, &udp(ends.0, ends.1, b"forged"))
}

fn honest(stage: &mut Stage) -> Said {
    stage.send(IPV4, &datagram(stage, A))
}

fn honest6(stage: &mut Stage) -> Said {
    stage.send(IPV6, &datagram6(stage, A6))
}

rows! {
    another_workloads_address_is_refused => Row {
        name: "forged source address, another workload's",
        rules: ALL,
        attack: |stage| stage.send(IPV4, &datagram(stage, C)),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest),
        ..USUAL
    };

    another_workloads_ipv6_address_is_refused => Row {
        name: "forged source address, IPv6",
        rules: ALL,
        attack: |stage| stage.send(IPV6, &datagram6(stage, C6)),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest6),
        ..USUAL
    };

    the_receivers_own_address_is_refused => Row {
        name: "forged source address, the receiver's own",
        rules: ALL,
        attack: |stage| stage.send(IPV4, &datagram(stage, B)),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest),
        ..USUAL
    };

    a_loopback_address_is_refused => Row {
        name: "forged source address, loopback",
        rules: ALL,
        attack: |stage| stage.send(IPV4, &datagram(stage, Ipv4Addr::LOCALHOST)),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest),
        ..USUAL
    };

    no_address_is_refused => Row {
        name: "forged source address, unspecified",
        rules: ALL,
        attack: |stage| stage.send(IPV4, &datagram(stage, Ipv4Addr::UNSPECIFIED)),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest),
        ..USUAL
    };

    somebody_elses_link_local_address_is_refused => Row {
        name: "forged source address, another's link-local one",
        rules: ALL,
        attack: |stage| {
            let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
            stage.send(IPV6, &datagram6(stage, from))
        },
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest6),
        ..USUAL
    };

    a_mapped_address_on_the_wire_is_refused => Row {
        name: "`::ffff:` addresses inside an IPv6 header",
        rules: ALL,
        attack: |stage| {
            let (from, to) = (A.to_ipv6_mapped(), B.to_ipv6_mapped());
            let datagram = udp((from.into(), stage.number(4000)), (to.into(), 8080), b"mapped");
            stage.send(IPV6, &v6(from, to, UDP, &datagram))
        },
        interface: dropped(FROM, "unparseable"),
        allowed: Allowed::Instead(ALL, honest6),
        ..USUAL
    };

    another_hardware_address_is_refused => Row {
        name: "forged source MAC",
        rules: ALL,
        attack: |stage| stage.send_frame(&frame(stage.b_mac, FORGED, IPV4, &datagram(stage, A))),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest),
        ..USUAL
    };

    another_hardware_address_with_anothers_address_is_refused => Row {
        name: "forged source MAC and address",
        rules: ALL,
        attack: |stage| stage.send_frame(&frame(stage.b_mac, FORGED, IPV4, &datagram(stage, C))),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest),
        ..USUAL
    };

    a_reset_in_anothers_name_is_refused => Row {
        name: "forged TCP reset of another's connection",
        rules: ALL,
        attack: |stage| {
            let reset = tcp((C.into(), 4000), (B.into(), stage.number(8000)), 0x04, b"");
            stage.send(IPV4, &V4::new(C, B, TCP).packet(&reset))
        },
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest),
        ..USUAL
    };

    an_echo_request_in_anothers_name_is_refused => Row {
        name: "forged source of an ICMP echo request",
        rules: ALL,
        attack: |stage| {
            let request = icmp(8, 0, &[0, 9, 0, 1]);
            stage.send(IPV4, &V4::new(C, B, ICMP).packet(&request))
        },
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, honest),
        ..USUAL
    };

    a_granted_raw_socket_still_has_only_its_own_address => Row {
        name: "`IP_HDRINCL` with a grant, forged source address",
        raw_sockets: true,
        rules: ALL,
        attack: |stage| stage.send_raw(IpAddr::V4(B), &datagram(stage, C)),
        // The policy is asked about the workload, whatever address it names.
        sockets: Expect::Passes,
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(ALL, |stage| {
            stage.send_raw(IpAddr::V4(B), &datagram(stage, A))
        }),
        ..USUAL
    };

    a_frame_to_anothers_interface_is_only_as_good_as_its_address => Row {
        name: "allowed address in a frame to another's MAC (the receiver has to play along)",
        rules: &[("a", "c", "[8080]", "UDP")],
        attack: |stage| {
            let ends = ((A.into(), stage.number(4000)), (C.into(), 8080));
            let datagram = udp(ends.0, ends.1, b"astray");
            stage.send(IPV4, &V4::new(A, C, UDP).packet(&datagram))
        },
        // It is the receiver's own interface that refuses it, if governed.
        interface: Expect::Passes,
        allowed: Allowed::Nothing(""),
        ..USUAL
    };
}
