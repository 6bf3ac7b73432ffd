//! Each property fails for a parser that breaks it.

use super::*;
use zt_common::packet::Bytes;

/// Ports 1000 and 2000, SYN.
fn tcp() -> Vec<u8> {
    let mut header = vec![0x03, 0xe8, 0x07, 0xd0];
    header.extend([0; 8]);
    header.extend([0x50, 0x02]);
    header.extend([0; 6]);
    header
}

fn v4(protocol: u8, fragment: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![0x45, 0, length[0], length[1], 0, 0];
    bytes.extend(fragment);
    bytes.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(payload);
    bytes
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
    bytes.extend([0xfd; 16]);
    bytes.extend([0xfe; 16]);
    bytes.extend(payload);
    bytes
}

/// A destination options header, then a fragment header with the offset 1.
fn later_v6_fragment() -> Vec<u8> {
    let mut payload = vec![44, 0, 1, 4, 0, 0, 0, 0];
    payload.extend([6, 0, 0, 8, 0, 0, 0, 1]);
    payload.extend(tcp());
    v6(60, &payload)
}

/// A packet of which one byte is read as 0.
struct Blank<'a>(&'a Recorder<'a>, u32);

impl Bytes for Blank<'_> {
    fn fill<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        let inside = self.0.fill(offset, into);
        let at = self.1.checked_sub(offset);
        if let Some(byte) = at.and_then(|at| into.get_mut(usize::try_from(at).unwrap())) {
            *byte = 0;
        }
        inside
    }
}

/// A packet without an end.
struct Endless<'a>(&'a Recorder<'a>);

impl Bytes for Endless<'_> {
    fn fill<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        self.0.fill(offset, into);
        true
    }
}

fn parse_changed(recorder: &Recorder<'_>, change: impl FnOnce(&mut Packet)) -> Packet {
    let mut packet = packet::parse(recorder);
    change(&mut packet);
    packet
}

#[test]
fn the_parser_has_every_property() {
    for bytes in [
        v4(TCP, [0, 0], &tcp()),
        v4(TCP, [0, 1], &tcp()),
        v6(TCP, &tcp()),
        later_v6_fragment(),
    ] {
        check(&bytes);
        for length in 0..bytes.len() {
            check(&bytes[..length]);
        }
    }
}

#[test]
#[should_panic(expected = "a later fragment without a fault")]
fn a_fragment_offset_that_is_ignored_is_found() {
    check_parser(&v4(TCP, [0, 1], &tcp()), |recorder| {
        packet::parse(&Blank(recorder, 7))
    });
}

#[test]
#[should_panic(expected = "a later fragment without a fault")]
fn a_fragment_offset_behind_other_extension_headers_that_is_ignored_is_found() {
    check_parser(&later_v6_fragment(), |recorder| {
        packet::parse(&Blank(recorder, 51))
    });
}

#[test]
#[should_panic(expected = "a later fragment with ports")]
fn ports_of_a_later_fragment_are_found() {
    check_parser(&v4(TCP, [0, 1], &tcp()), |recorder| {
        parse_changed(recorder, |packet| packet.source_port = 1000)
    });
}

#[test]
#[should_panic(expected = "bytes behind the packet were used")]
fn a_read_past_the_packet_is_found() {
    check_parser(&v4(TCP, [0, 0], &tcp()[..2]), |recorder| {
        packet::parse(&Endless(recorder))
    });
}

#[test]
#[should_panic(expected = "was refused, yet no fault")]
fn a_refused_read_that_is_forgiven_is_found() {
    check_parser(&v4(TCP, [0, 0], &tcp()[..12]), |recorder| {
        parse_changed(recorder, |packet| packet.fault = None)
    });
}

#[test]
#[should_panic(expected = "the source address")]
fn exchanged_addresses_are_found() {
    check_parser(&v6(TCP, &tcp()), |recorder| {
        parse_changed(recorder, |packet| packet.source = packet.destination)
    });
}

#[test]
#[should_panic(expected = "the header says (0, 0)")]
fn ports_of_an_icmp_error_are_found() {
    let error = v4(ICMP, [0, 0], &[3, 1, 0, 0, 0x07, 0xd0, 0, 0]);
    check_parser(&error, |recorder| {
        parse_changed(recorder, |packet| packet.destination_port = 2000)
    });
}

#[test]
#[should_panic(expected = "led elsewhere without a fault")]
fn a_source_route_that_is_overlooked_is_found() {
    let mut bytes = v4(TCP, [0, 0], &[&[131, 3, 4, 0][..], &tcp()].concat());
    bytes[0] = 0x46;
    check_parser(&bytes, |recorder| {
        parse_changed(recorder, |packet| packet.fault = None)
    });
}

#[test]
#[should_panic(expected = "the offset")]
fn a_later_fragment_that_is_put_elsewhere_is_found() {
    check_parser(&v4(TCP, [0, 1], &tcp()), |recorder| {
        parse_changed(recorder, |packet| packet.fragment = 16)
    });
}

#[test]
#[should_panic(expected = "IGMP to a host")]
fn igmp_to_a_host_is_found() {
    check_parser(&v4(IGMP, [0, 0], &[0; 8]), |recorder| {
        parse_changed(recorder, |packet| packet.fault = None)
    });
}

#[test]
#[should_panic(expected = "the kind")]
fn an_opening_segment_that_is_taken_for_another_is_found() {
    check_parser(&v4(TCP, [0, 0], &tcp()), |recorder| {
        parse_changed(recorder, |packet| packet.kind = Kind::Segment)
    });
}

#[test]
#[should_panic(expected = "a plain packet with a fault")]
fn a_plain_packet_that_is_refused_is_found() {
    check_parser(&v6(TCP, &tcp()), |recorder| {
        parse_changed(recorder, |packet| packet.fault = Packet::UNREAD.fault)
    });
}
