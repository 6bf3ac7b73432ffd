//! Frames and packets, byte by byte.
//!
//! # Panics
//! Whatever takes a payload, if that is longer than its length field can say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub type Mac = [u8; 6];

/// More fragments follow.
pub const MORE: u16 = 0x2000;

/// Bytes as digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An Ethernet frame.
pub fn frame(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 header; the rest is computed.
#[derive(Clone)]
pub struct V4 {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub protocol: u8,
    pub identification: u16,
    /// Flags and offset, in units of 8 bytes.
    pub fragment: u16,
    pub options: Vec<u8>,
    pub ttl: u8,
}

impl V4 {
    /// Whole, without options.
    pub fn new(from: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Self {
        Self {
            from,
            to,
            protocol,
            identification: 0x1234,
            fragment: 0,
            options: Vec::new(),
            ttl: 64,
        }
    }

    /// With these flags and this offset.
    pub fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    /// With this identification.
    pub fn identification(mut self, identification: u16) -> Self {
        self.identification = identification;
        self
    }

    /// With options, a multiple of 4 bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// The packet, with its checksum.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let words = u8::try_from(header / 4).expect("at most 15");
        let total = length(header + payload.len());
        let mut bytes = vec![0x40 | words, 0];
        bytes.extend(total);
        bytes.extend(self.identification.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.from.octets());
        bytes.extend(self.to.octets());
        bytes.extend(&self.options);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(payload);
        bytes
    }
}

/// An IPv6 packet; `next` is the type of what `payload` starts with.
pub fn v6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    v6_hops(from, to, next, 64, payload)
}

/// As [`v6`], with this hop limit.
pub fn v6_hops(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length(payload.len()));
    bytes.extend([next, hops]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(payload);
    bytes
}

/// The Internet checksum (RFC 1071); an odd last byte is a word's first.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or_default();
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// What a length field says.
fn length(bytes: usize) -> [u8; 2] {
    let length = u16::try_from(bytes).expect("a packet's length");
    length.to_be_bytes()
}

/// Puts the checksum with the pseudo header into a transport header at `at`.
fn seal(from: IpAddr, to: IpAddr, protocol: u8, at: usize, segment: &mut [u8]) {
    let octets = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = length(segment.len());
    let tail = [0, protocol, length[0], length[1]];
    let pseudo = [&octets(from)[..], &octets(to), &tail, segment].concat();
    segment[at..at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
}

/// A UDP datagram between two ends.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.1.to_be_bytes());
    bytes.extend(to.1.to_be_bytes());
    bytes.extend(length(8 + payload.len()));
    bytes.extend([0, 0]);
    bytes.extend(payload);
    seal(from.0, to.0, UDP, 6, &mut bytes);
    bytes
}

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// A TCP segment between two ends, the first of its numbers.
pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    tcp_at(1, from, to, flags, payload)
}

/// As [`tcp`], with this sequence number.
pub fn tcp_at(
    sequence: u32,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.1.to_be_bytes());
    bytes.extend(to.1.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    seal(from.0, to.0, TCP, 16, &mut bytes);
    bytes
}

/// An ICMP message; `rest` begins with the second word of its header.
pub fn icmp(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, code, 0, 0], rest].concat();
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// As [`icmp`], for ICMPv6.
pub fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, code, 0, 0], rest].concat();
    seal(from.into(), to.into(), ICMPV6, 2, &mut bytes);
    bytes
}

/// ARP for IPv4 over Ethernet; `operation`: 1 asks, 2 answers.
pub fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, ip) in [sender, target] {
        bytes.extend(mac);
        bytes.extend(ip.octets());
    }
    bytes
}

/// Whether a frame carries IPv4 with this protocol. (In an ARP frame anything
/// may stand where the protocol would.)
pub fn is_v4(frame: &[u8], protocol: u8) -> bool {
    frame[12..14] == IPV4.to_be_bytes() && frame[23] == protocol
}

/// Whether a frame only keeps the link itself alive: ARP, neighbour discovery,
/// group membership.
pub fn is_plumbing(frame: &[u8]) -> bool {
    let at = |offset: usize| frame.get(offset).copied().unwrap_or_default();
    let reports = |kind: u8| matches!(kind, 130..=136 | 143);
    match u16::from_be_bytes([at(12), at(13)]) {
        ARP => true,
        IPV4 => at(23) == 2,
        // Listener reports have a hop-by-hop header of 8 bytes before them.
        IPV6 => {
            at(20) == ICMPV6 && reports(at(54))
                || at(20) == 0 && at(54) == ICMPV6 && reports(at(62))
        }
        _ => false,
    }
}

/// The link-local address that the kernel makes of a hardware address.
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    let first = (a ^ 2) << 8 | b;
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        first,
        c << 8 | 0xff,
        0xfe00 | d,
        e << 8 | f,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_of_a_segment_and_its_header_are_right() {
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let segment = tcp_at(7, (from.into(), 40_000), (to.into(), 5432), SYN, b"odd");
        let packet = V4::new(from, to, TCP).packet(&segment);
        assert_eq!(packet.len(), 43);
        assert_eq!(checksum(&packet[..20]), 0);
        let pseudo = [&packet[12..20], &[0, TCP, 0, 23]].concat();
        assert_eq!(checksum(&[&pseudo[..], &packet[20..]].concat()), 0);
    }
}
