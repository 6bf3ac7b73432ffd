//! What keeps the link alive, in somebody else's name.

use crate::{
    packet::{ARP, ICMPV6, IPV6, Mac, arp, frame, icmpv6, link_local, v6_hops},
    rig::{A, A6, B6, C, C6, Stage},
    row::{Said, rows},
};
use std::net::Ipv6Addr;

/// Nobody's.
const FORGED: Mac = [2, 0, 0, 0, 0, 0x66];
/// The target of every ARP packet here, to know it by.
const TARGET: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 89, 7, 99);

fn asks_or_answers(frame: &[u8]) -> bool {
    frame[12..14] == ARP.to_be_bytes() && frame[38..42] == TARGET.octets()
}

fn honest_arp(stage: &mut Stage) -> Said {
    let packet = arp(2, (stage.a_mac, A), (stage.b_mac, TARGET));
    stage.send(ARP, &packet)
}

/// Neighbour discovery with one option: a hardware address.
fn discovery(from: Ipv6Addr, kind: u8, start: &[u8], option: u8, mac: Mac) -> Vec<u8> {
    let message = [start, &[option, 1], &mac].concat();
    v6_hops(from, B6, ICMPV6, 255, &icmpv6(from, B6, kind, 0, &message))
}

fn advertisement(from: Ipv6Addr, of: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let start = [&[0x20, 0, 0, 0][..], &of.octets()].concat();
    discovery(from, 136, &start, 2, mac)
}

fn solicitation(from: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let start = [&[0; 4][..], &B6.octets()].concat();
    discovery(from, 135, &start, 1, mac)
}

/// What an honest neighbour says is answered by one, too: known by the target.
fn advertises(frame: &[u8]) -> bool {
    frame[12..14] == IPV6.to_be_bytes()
        && frame[20] == ICMPV6
        && frame[54] == 136
        && frame[38..54] == B6.octets()
        && frame[58] == 0x20
}

fn solicits(frame: &[u8]) -> bool {
    frame[12..14] == IPV6.to_be_bytes()
        && frame[20] == ICMPV6
        && frame[54] == 135
        && frame[38..54] == B6.octets()
        && frame[62..78] == B6.octets()
}

fn message(frame: &[u8], kind: u8) -> bool {
    frame[12..14] == IPV6.to_be_bytes() && frame[20] == ICMPV6 && frame[54] == kind
}

rows! {
    an_answer_in_anothers_name_is_refused => Row {
        name: "forged ARP answer",
        attack: |stage| {
            let packet = arp(2, (stage.a_mac, C), (stage.b_mac, TARGET));
            stage.send(ARP, &packet)
        },
        seen: Seen::Frame(asks_or_answers),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], honest_arp),
        ..USUAL
    };

    a_question_in_anothers_name_is_refused => Row {
        name: "forged ARP request",
        attack: |stage| {
            let packet = arp(1, (stage.a_mac, C), ([0; 6], TARGET));
            stage.send_frame(&frame([0xff; 6], stage.a_mac, ARP, &packet))
        },
        seen: Seen::Frame(asks_or_answers),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], honest_arp),
        ..USUAL
    };

    an_answer_with_anothers_hardware_address_is_refused => Row {
        name: "ARP answer with a forged MAC in it",
        attack: |stage| {
            let packet = arp(2, (FORGED, A), (stage.b_mac, TARGET));
            stage.send(ARP, &packet)
        },
        seen: Seen::Frame(asks_or_answers),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], honest_arp),
        ..USUAL
    };

    an_answer_from_anothers_hardware_address_is_refused => Row {
        name: "ARP answer from a forged MAC",
        attack: |stage| {
            let packet = arp(2, (stage.a_mac, A), (stage.b_mac, TARGET));
            stage.send_frame(&frame(stage.b_mac, FORGED, ARP, &packet))
        },
        seen: Seen::Frame(asks_or_answers),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], honest_arp),
        ..USUAL
    };

    an_announcement_in_anothers_name_is_refused => Row {
        name: "forged gratuitous ARP",
        attack: |stage| {
            let packet = arp(2, (stage.a_mac, C), ([0xff; 6], C));
            stage.send_frame(&frame([0xff; 6], stage.a_mac, ARP, &packet))
        },
        seen: Seen::Frame(|frame| {
            frame[12..14] == ARP.to_be_bytes() && (frame[28..32] == C.octets() || asks_or_answers(frame))
        }),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], honest_arp),
        ..USUAL
    };

    an_advertisement_in_anothers_name_is_refused => Row {
        name: "forged neighbour advertisement",
        attack: |stage| stage.send(IPV6, &advertisement(A6, C6, stage.a_mac)),
        seen: Seen::Frame(advertises),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], |stage| {
            stage.send(IPV6, &advertisement(A6, A6, stage.a_mac))
        }),
        ..USUAL
    };

    an_advertisement_from_anothers_address_is_refused => Row {
        name: "neighbour advertisement from a forged address",
        attack: |stage| stage.send(IPV6, &advertisement(C6, C6, stage.a_mac)),
        seen: Seen::Frame(advertises),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], |stage| {
            stage.send(IPV6, &advertisement(A6, A6, stage.a_mac))
        }),
        ..USUAL
    };

    an_advertisement_with_anothers_hardware_address_is_refused => Row {
        name: "neighbour advertisement with a forged MAC in it",
        attack: |stage| stage.send(IPV6, &advertisement(A6, A6, FORGED)),
        seen: Seen::Frame(advertises),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], |stage| {
            stage.send(IPV6, &advertisement(A6, A6, stage.a_mac))
        }),
        ..USUAL
    };

    a_solicitation_in_anothers_name_is_refused => Row {
        name: "forged neighbour solicitation",
        attack: |stage| stage.send(IPV6, &solicitation(C6, stage.a_mac)),
        seen: Seen::Frame(solicits),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], |stage| {
            stage.send(IPV6, &solicitation(A6, stage.a_mac))
        }),
        ..USUAL
    };

    a_solicitation_with_anothers_hardware_address_is_refused => Row {
        name: "neighbour solicitation with a forged MAC in it",
        attack: |stage| stage.send(IPV6, &solicitation(A6, FORGED)),
        seen: Seen::Frame(solicits),
        interface: dropped(FROM, "spoofed"),
        allowed: Allowed::Instead(&[], |stage| {
            stage.send(IPV6, &solicitation(A6, stage.a_mac))
        }),
        ..USUAL
    };

    a_router_advertisement_is_refused => Row {
        name: "router advertisement",
        rules: &[("a", "b", "any", "ICMP")],
        attack: |stage| {
            let from = link_local(stage.a_mac);
            let start = [64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
            stage.send(IPV6, &discovery(from, 134, &start, 1, stage.a_mac))
        },
        seen: Seen::Frame(|frame| message(frame, 134)),
        interface: dropped(FROM, "router-advertisement"),
        allowed: Allowed::Nothing("routers are not workloads"),
        ..USUAL
    };

    a_redirect_is_refused => Row {
        name: "ICMPv6 redirect",
        rules: &[("a", "b", "any", "ICMP")],
        attack: |stage| {
            let from = link_local(stage.a_mac);
            let start = [&[0; 4][..], &A6.octets(), &C6.octets()].concat();
            stage.send(IPV6, &discovery(from, 137, &start, 2, stage.a_mac))
        },
        seen: Seen::Frame(|frame| message(frame, 137)),
        interface: dropped(FROM, "router-advertisement"),
        allowed: Allowed::Nothing("routers are not workloads"),
        ..USUAL
    };
}
