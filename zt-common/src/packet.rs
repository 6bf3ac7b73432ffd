//! Reads the headers of an IP packet, in the kernel and on the host alike.
//!
//! The parser sees bytes only through [`Bytes`], so it cannot read past the
//! packet, and it never takes a non-first fragment for a header.

use crate::{
    address::{Ip, mapped},
    codes::{Protocol, Reason},
};

/// Where the bytes come from: an skb in the kernel, a slice on the host.
pub trait Bytes {
    /// Copies the `N` bytes at `offset` from the start of the IP header;
    /// false past the end.
    fn fill<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool;

    /// The `N` bytes at `offset`, or `None` past the end.
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = Aligned([0; N]);
        self.fill(offset, &mut bytes.0).then_some(bytes.0)
    }
}

/// Bytes that a BPF program can write by words.
#[repr(align(8))]
struct Aligned<const N: usize>([u8; N]);

impl Bytes for [u8] {
    fn fill<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(N)?));
        bytes.is_some_and(|bytes| {
            into.copy_from_slice(bytes);
            true
        })
    }
}

/// Bytes seen from a later one on, such as a packet quoted inside another.
pub struct Inside<'a, B: ?Sized>(pub &'a B, pub u32);

impl<B: Bytes + ?Sized> Bytes for Inside<'_, B> {
    #[inline(always)]
    fn fill<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        self.0.fill(self.1 + offset, into)
    }
}

/// How a packet relates to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// TCP with SYN and without ACK, or ICMP that asks: always decided in its
    /// own direction.
    Opening = 1,
    /// Any other TCP segment.
    Segment = 2,
    /// UDP, and ICMP that answers.
    Datagram = 3,
    /// Neighbour discovery, multicast listener reports, IGMP: keeps the link
    /// itself alive and carries no workload data.
    Plumbing = 4,
    /// A fragment without the transport header; see [`Packet::fragment`].
    Fragment = 5,
    /// An ICMP error: the packet that it quotes starts at
    /// [`Packet::transport`] + 8.
    Error = 6,
    /// A router advertisement or a redirect.
    Router = 7,
}

/// What a decision needs to know of a packet. Aligned, so that a BPF program
/// copies the addresses by words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Packet {
    pub source: Ip,
    pub destination: Ip,
    /// Host byte order. ICMP echo: both are the identifier; other ICMP: 0.
    pub source_port: u16,
    pub destination_port: u16,
    /// IP protocol number; ICMPv6 is given as ICMP.
    pub protocol: u8,
    pub kind: Kind,
    /// Why nothing can be decided by rules; the fields read so far are valid.
    pub fault: Option<Reason>,
    /// It is the first fragment of several.
    pub more: bool,
    /// TCP sequence number of an [`Kind::Opening`]; of ICMP [`ASKS`].
    pub sequence: u32,
    /// Of a fragment, also of the first: the datagram's identification.
    pub identification: u32,
    /// Of a later fragment: where it starts; of a first one: where the
    /// transport header ends. Bytes from the start of what was fragmented.
    pub fragment: u32,
    /// Where the transport header starts, from the start of the IP header.
    pub transport: u32,
}

impl Packet {
    /// Nothing was read yet.
    pub const UNREAD: Self = Self {
        source: [0; 16],
        destination: [0; 16],
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        kind: Kind::Datagram,
        fault: Some(Reason::Unparseable),
        more: false,
        sequence: 0,
        identification: 0,
        fragment: 0,
        transport: 0,
    };
}

/// What ICMP has for a sequence number: one who asks again asks the same.
pub const ASKS: u32 = 1;

const TCP: u8 = Protocol::Tcp as u8;
const UDP: u8 = Protocol::Udp as u8;
const ICMP: u8 = Protocol::Icmp as u8;
const ICMPV6: u8 = 58;
const IGMP: u8 = 2;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// Parses the packet whose IP header starts at offset 0.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B) -> Packet {
    let mut packet = Packet::UNREAD;
    parse_into(bytes, &mut packet);
    packet
}

/// As [`parse`], in place.
#[inline(always)]
pub fn parse_into<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) {
    read::<B, false>(bytes, packet);
}

/// As [`parse_into`], of a packet that an ICMP error quotes: at least 8 bytes
/// of its transport header are there (RFC 792), which is all that is read. It
/// is a datagram or a fault.
#[inline(always)]
pub fn parse_quoted<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) {
    read::<B, true>(bytes, packet);
    if packet.kind as u8 == Kind::Opening as u8 {
        packet.kind = Kind::Datagram;
    }
    if packet.kind as u8 != Kind::Datagram as u8 {
        packet.fault = Some(Reason::StrayError);
    }
}

#[inline(always)]
fn read<B: Bytes + ?Sized, const QUOTED: bool>(bytes: &B, packet: &mut Packet) {
    // The shortest packet of either family.
    let Some(header) = bytes.read::<20>(0) else {
        return;
    };
    match header[0] >> 4 {
        4 => parse_v4::<B, QUOTED>(bytes, packet, &header),
        6 => parse_v6::<B, QUOTED>(bytes, packet, header[6], header[7]),
        _ => {}
    }
}

#[inline(always)]
fn parse_v4<B: Bytes + ?Sized, const QUOTED: bool>(
    bytes: &B,
    packet: &mut Packet,
    header: &[u8; 20],
) {
    packet.source = mapped([header[12], header[13], header[14], header[15]]);
    packet.destination = mapped([header[16], header[17], header[18], header[19]]);
    packet.protocol = header[9];
    let length = u32::from(header[0] & 0x0f) * 4;
    if length < 20 {
        return;
    }
    // Also in a later fragment: it would lead its part elsewhere.
    if length > 20 && !is_report(bytes, header[9], length) {
        packet.fault = Some(Reason::IpOptions);
        return;
    }
    // The lower 13 bits are the offset in units of 8 bytes, above them stands
    // "more fragments".
    let fragment = u16::from_be_bytes([header[6] & 0x3f, header[7]]);
    packet.identification = u32::from(u16::from_be_bytes([header[4], header[5]]));
    if later_fragment(packet, fragment & 0x1fff, fragment & 0x2000 != 0) {
        return;
    }
    // The other family's ICMP has no meaning in this one.
    if packet.protocol == ICMPV6 {
        packet.fault = Some(Reason::UnsupportedProtocol);
        return;
    }
    parse_transport::<B, QUOTED>(bytes, packet, length, 0);
    packet.fragment += packet.transport - length;
}

/// Group reports bear a router alert (RFC 3376, section 4) and nothing else.
#[inline(always)]
fn is_report<B: Bytes + ?Sized>(bytes: &B, protocol: u8, length: u32) -> bool {
    const ROUTER_ALERT: [u8; 2] = [148, 4];
    // All four bytes: one that is cut short is not one.
    protocol == IGMP
        && length == 24
        && matches!(bytes.read::<4>(20), Some([kind, size, ..]) if [kind, size] == ROUTER_ALERT)
}

/// Notes what a fragment header says; whether it is not the first fragment.
#[inline(always)]
fn later_fragment(packet: &mut Packet, offset: u16, more: bool) -> bool {
    packet.more = more && offset == 0;
    if offset == 0 {
        return false;
    }
    packet.fragment = u32::from(offset) * 8;
    packet.kind = Kind::Fragment;
    packet.fault = Some(Reason::Fragment);
    true
}

#[inline(always)]
fn parse_v6<B: Bytes + ?Sized, const QUOTED: bool>(
    bytes: &B,
    packet: &mut Packet,
    next: u8,
    hops: u8,
) {
    if !bytes.fill(8, &mut packet.source) || !bytes.fill(24, &mut packet.destination) {
        return;
    }
    let mut chain = Chain {
        next,
        offset: 40,
        start: 40,
    };
    // Up to six (RFC 8200 knows no more). Not a loop: where the compiler lets
    // one fall through to its beginning, Linux 6.1 refuses it.
    let mut go = true;
    go = go && chain.skip::<B, QUOTED>(bytes, packet);
    go = go && chain.skip::<B, QUOTED>(bytes, packet);
    go = go && chain.skip::<B, QUOTED>(bytes, packet);
    go = go && chain.skip::<B, QUOTED>(bytes, packet);
    go = go && chain.skip::<B, QUOTED>(bytes, packet);
    go = go && chain.skip::<B, QUOTED>(bytes, packet);
    if go || !chain.is_at_transport() {
        return;
    }
    packet.protocol = chain.next;
    // ICMP and IGMP belong to IPv4.
    if matches!(chain.next, ICMP | IGMP) {
        packet.fault = Some(Reason::UnsupportedProtocol);
        return;
    }
    parse_transport::<B, QUOTED>(bytes, packet, chain.offset, hops);
    packet.fragment += packet.transport - chain.start;
}

/// A walk along IPv6 extension headers.
struct Chain {
    /// What is at `offset`.
    next: u8,
    offset: u32,
    /// Where what was fragmented starts.
    start: u32,
}

impl Chain {
    /// Whether it is at a header that is no extension.
    #[inline(always)]
    fn is_at_transport(&self) -> bool {
        !matches!(self.next, 0 | 43 | 44 | 51 | 60)
    }

    #[inline(always)]
    fn end(&mut self) -> bool {
        // A routing header: never taken for a transport.
        self.next = 43;
        false
    }

    /// Skips one extension header; `false` if there is none, or no more is to
    /// be read.
    #[inline(always)]
    fn skip<B: Bytes + ?Sized, const QUOTED: bool>(
        &mut self,
        bytes: &B,
        packet: &mut Packet,
    ) -> bool {
        packet.protocol = self.next;
        // Behind other headers a quoted one is too rare to be looked for.
        if QUOTED || self.is_at_transport() {
            return false;
        }
        if self.next == 43 {
            // Routing: the header's destination is not the last one.
            packet.fault = Some(Reason::IpOptions);
            return false;
        }
        if self.next == 44 {
            return self.fragment(bytes, packet);
        }
        let Some(extension) = bytes.read::<2>(self.offset) else {
            return self.end();
        };
        // Authentication is counted in 4-byte units, two of them implied;
        // hop-by-hop and destination options in 8-byte units, one implied.
        let length = if self.next == 51 {
            (u32::from(extension[1]) + 2) * 4
        } else {
            (u32::from(extension[1]) + 1) * 8
        };
        self.next = extension[0];
        self.offset = forget(self.offset + length);
        true
    }

    #[inline(always)]
    fn fragment<B: Bytes + ?Sized>(&mut self, bytes: &B, packet: &mut Packet) -> bool {
        let Some(header) = bytes.read::<8>(self.offset) else {
            return self.end();
        };
        // The upper 13 bits are the offset, the lowest is "more".
        let field = u16::from_be_bytes([header[2], header[3]]);
        packet.identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if later_fragment(packet, field >> 3, field & 1 != 0) {
            return self.end();
        }
        self.next = header[0];
        self.offset = forget(self.offset + 8);
        self.start = self.offset;
        true
    }
}

/// The same number, of which the kernel's verifier knows nothing any more:
/// bytes on the stack are no number to it. Otherwise it would walk the rest of
/// the chain for every combination of headers before.
#[inline(always)]
fn forget(number: u32) -> u32 {
    #[repr(align(4))]
    struct Hidden([u8; 4]);
    let mut hidden = Hidden([0; 4]);
    let bytes = number.to_ne_bytes();
    let mut index = 0;
    while index < 4 {
        // SAFETY: a field of a local.
        unsafe { (&raw mut hidden.0[index]).write_volatile(bytes[index]) };
        index += 1;
    }
    // SAFETY: four bytes, aligned to four.
    unsafe { (&raw const hidden).cast::<u32>().read_volatile() }
}

/// Leaves the length of the transport header in `packet.fragment`.
#[inline(always)]
fn parse_transport<B: Bytes + ?Sized, const QUOTED: bool>(
    bytes: &B,
    packet: &mut Packet,
    offset: u32,
    hops: u8,
) {
    packet.transport = offset;
    packet.fragment = 8;
    match packet.protocol {
        TCP if !QUOTED => {
            let Some(header) = bytes.read::<20>(offset) else {
                return;
            };
            packet.kind = if header[13] & (TCP_SYN | TCP_ACK) == TCP_SYN {
                packet.sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                Kind::Opening
            } else {
                Kind::Segment
            };
            packet.fragment = 20;
            ports(packet, [header[0], header[1], header[2], header[3]]);
        }
        TCP | UDP => {
            if let Some(header) = bytes.read::<8>(offset) {
                ports(packet, [header[0], header[1], header[2], header[3]]);
            }
        }
        ICMP | ICMPV6 => {
            if let Some(header) = bytes.read::<8>(offset) {
                icmp(packet, &header, hops);
            }
        }
        // Reports go to groups; to a single host it is a tunnel.
        IGMP if packet.destination[12] >> 4 == 0xe => {
            if bytes.read::<8>(offset).is_some() {
                packet.kind = Kind::Plumbing;
                packet.fault = None;
            }
        }
        // IP in IP, IPv6 in IP, GRE, EtherIP, L2TP, MPLS in IP.
        4 | 41 | 47 | 97 | 115 | 137 => packet.fault = Some(Reason::Tunnel),
        _ => packet.fault = Some(Reason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn icmp(packet: &mut Packet, header: &[u8; 8], hops: u8) {
    let v6 = packet.protocol == ICMPV6;
    let kind = header[0];
    packet.protocol = Protocol::Icmp as u8;
    packet.fault = None;
    let (echo, answer, error, router) = if v6 {
        // Echo reply, node information.
        let answer = matches!(kind, 129 | 140);
        let router = matches!(kind, 134 | 137);
        (matches!(kind, 128 | 129), answer, kind < 128, router)
    } else {
        // Unreachable, source quench, time exceeded, parameter problem.
        let error = matches!(kind, 3 | 4 | 11 | 12);
        // Replies: echo, timestamp, information, address mask.
        let answer = matches!(kind, 0 | 14 | 16 | 18);
        (matches!(kind, 0 | 8), answer, error, matches!(kind, 5 | 9))
    };
    // Whoever was asked under an identifier may answer under it, not ask.
    if !answer {
        packet.kind = Kind::Opening;
        packet.sequence = ASKS;
    }
    if echo {
        let identifier = u16::from_be_bytes([header[4], header[5]]);
        packet.source_port = identifier;
        packet.destination_port = identifier;
    } else if error {
        packet.kind = Kind::Error;
    } else if router {
        packet.kind = Kind::Router;
    }
    // Neighbour discovery is sent with 255 hops, so that no router can have
    // passed it on (RFC 4861); listener reports go to groups.
    let discovery = matches!(kind, 133 | 135 | 136) && hops == 255;
    let report = matches!(kind, 130..=132 | 143) && packet.destination[0] == 0xff;
    if v6 && (discovery || report) {
        packet.kind = Kind::Plumbing;
    }
}

#[inline(always)]
fn ports(packet: &mut Packet, ports: [u8; 4]) {
    packet.source_port = u16::from_be_bytes([ports[0], ports[1]]);
    packet.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
    // Port 0 is nobody's; a rule for "any" must not reach it.
    if packet.source_port != 0 && packet.destination_port != 0 {
        packet.fault = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, fragment: [u8; 2], payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![
            0x45,
            0,
            0,
            0,
            0,
            0,
            fragment[0],
            fragment[1],
            64,
            protocol,
            0,
            0,
        ];
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(payload);
        bytes
    }

    fn tcp(flags: u8) -> Vec<u8> {
        let mut header = vec![0x30, 0x39, 0x15, 0x38];
        header.extend([0; 9]);
        header.push(flags);
        header.extend([0; 6]);
        header
    }

    #[test]
    fn tcp_is_told_by_its_flags() {
        for (flags, kind) in [
            (0x02, Kind::Opening),
            (0x12, Kind::Segment),
            (0x10, Kind::Segment),
            (0x04, Kind::Segment),
            (0xc2, Kind::Opening),
        ] {
            let packet = parse(v4(6, [0, 0], &tcp(flags)).as_slice());
            assert_eq!((packet.kind, packet.fault), (kind, None));
            assert_eq!((packet.source_port, packet.destination_port), (12345, 5432));
            assert_eq!(packet.source, mapped([10, 0, 0, 1]));
        }
    }

    #[test]
    fn a_later_fragment_is_never_taken_for_a_header() {
        let packet = parse(v4(6, [0x00, 0x01], &tcp(2)).as_slice());
        assert_eq!(packet.fault, Some(Reason::Fragment));
        assert_eq!(packet.destination_port, 0);
        // The first one carries the header.
        let first = parse(v4(6, [0x20, 0x00], &tcp(2)).as_slice());
        assert_eq!(first.fault, None);
    }

    #[test]
    fn every_truncation_is_unparseable_or_fine_and_never_panics() {
        let whole = v4(6, [0, 0], &tcp(2));
        for length in 0..40 {
            let packet = parse(&whole[..length]);
            assert_eq!(packet.fault, Some(Reason::Unparseable), "{length} bytes");
        }
        let udp = v4(17, [0, 0], &UDP_TO_53);
        assert_eq!(parse(&udp[..27]).fault, Some(Reason::Unparseable));
        let mut report = v4(2, [0, 0], &[0x16, 0, 0, 0, 224, 0, 0]);
        report[16] = 224;
        assert_eq!(parse(report.as_slice()).fault, Some(Reason::Unparseable));
    }

    #[test]
    fn options_are_a_fault_except_for_the_alert_of_a_group_report() {
        let mut bytes = v4(17, [0, 0], &[1, 1, 1, 0, 0x30, 0x39, 0, 53]);
        bytes[0] = 0x46;
        let packet = parse(bytes.as_slice());
        assert_eq!(packet.fault, Some(Reason::IpOptions));
        assert_eq!(packet.destination_port, 0);
        let mut report = v4(2, [0, 0], &[148, 4, 0, 0, 0x16, 0, 0, 0, 224, 0, 0, 1]);
        (report[0], report[16]) = (0x46, 224);
        assert_eq!(parse(report.as_slice()).kind, Kind::Plumbing);
        report[20] = 131;
        assert_eq!(parse(report.as_slice()).fault, Some(Reason::IpOptions));
        // An alert, and a source route behind it.
        let options = [148, 4, 0, 0, 131, 3, 4, 0];
        let mut report = v4(2, [0, 0], &[&options[..], &[0x16; 8]].concat());
        (report[0], report[16]) = (0x47, 224);
        assert_eq!(parse(report.as_slice()).fault, Some(Reason::IpOptions));
    }

    #[test]
    fn options_of_a_later_fragment_are_a_fault_too() {
        let mut bytes = v4(17, [0, 1], &[131, 3, 4, 0, 0, 0, 0, 0]);
        bytes[0] = 0x46;
        let packet = parse(bytes.as_slice());
        assert_eq!(packet.fault, Some(Reason::IpOptions));
        assert_ne!(packet.kind, Kind::Fragment);
    }

    #[test]
    fn a_routing_header_is_a_fault() {
        let packet = parse(v6(43, &[17, 0, 0, 1, 0, 0, 0, 0, 0x30, 0x39, 0, 53]).as_slice());
        assert_eq!(packet.fault, Some(Reason::IpOptions));
    }

    #[test]
    fn tunnels_are_told_apart_from_other_protocols() {
        for protocol in [4, 41, 47, 97, 115, 137] {
            let packet = parse(v4(protocol, [0, 0], &[0; 24]).as_slice());
            assert_eq!(packet.fault, Some(Reason::Tunnel), "{protocol}");
        }
    }

    #[test]
    fn a_first_fragment_says_where_its_header_ends() {
        let first = parse(v4(6, [0x20, 0x00], &tcp(2)).as_slice());
        assert_eq!((first.more, first.fragment), (true, 20));
        let mut bytes = v4(17, [0x20, 0x00], &[0x30, 0x39, 0, 53, 0, 9, 0, 0]);
        bytes[4..6].copy_from_slice(&[0x12, 0x34]);
        let first = parse(bytes.as_slice());
        assert_eq!((first.more, first.fragment), (true, 8));
        assert_eq!(first.identification, 0x1234);
        let later = parse(v4(17, [0x00, 0x02], &[0; 8]).as_slice());
        assert_eq!((later.kind, later.fragment), (Kind::Fragment, 16));
        // Destination options (8 bytes) after the fragment header.
        let payload = [60, 0, 0, 1, 0, 0, 0, 7, 17, 0, 0, 0, 0, 0, 0, 0];
        let first = parse(v6(44, &[&payload[..], &UDP_TO_53].concat()).as_slice());
        assert_eq!((first.fault, first.more), (None, true));
        assert_eq!((first.fragment, first.identification), (16, 7));
        let whole = parse(v4(6, [0x40, 0x00], &tcp(2)).as_slice());
        assert!(!whole.more, "do not fragment");
    }

    #[test]
    fn an_icmp_error_quotes_a_packet() {
        let mut quoted = v4(6, [0, 0], &[0x15, 0x38, 0x30, 0x39, 0, 0, 0, 9]);
        quoted[8] = 1;
        let bytes = v4(
            1,
            [0, 0],
            &[&[3, 1, 0, 0, 0, 0, 0, 0][..], &quoted].concat(),
        );
        let error = parse(bytes.as_slice());
        assert_eq!((error.kind, error.transport), (Kind::Error, 20));
        let mut packet = Packet::UNREAD;
        parse_quoted(&Inside(bytes.as_slice(), error.transport + 8), &mut packet);
        assert_eq!((packet.source_port, packet.destination_port), (5432, 12345));
        assert_eq!((packet.fault, packet.protocol), (None, 6));
        for kind in [1, 2, 3, 4, 127] {
            assert_eq!(icmpv6(kind, 64, false).kind, Kind::Error, "{kind}");
        }
    }

    #[test]
    fn an_error_that_quotes_no_datagram_is_a_stray_one() {
        let quoted = |bytes: &[u8]| {
            let mut packet = Packet::UNREAD;
            parse_quoted(bytes, &mut packet);
            packet.fault
        };
        let later = v4(17, [0, 1], &[0x30, 0x39, 0, 53, 0, 0, 0, 0]);
        assert_eq!(quoted(&later), Some(Reason::StrayError));
        let error = v4(1, [0, 0], &[3, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(quoted(&error), Some(Reason::StrayError));
        assert!(quoted(&later[..10]).is_some());
    }

    const UDP_TO_53: [u8; 8] = [0x30, 0x39, 0, 53, 0, 8, 0, 0];

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfe; 16]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn extension_headers_are_walked() {
        // hop-by-hop (8 bytes), destination options (16 bytes), UDP
        let mut payload = vec![60, 0, 0, 0, 0, 0, 0, 0, 17, 1];
        payload.extend([0; 14]);
        payload.extend(UDP_TO_53);
        let packet = parse(v6(0, &payload).as_slice());
        assert_eq!((packet.destination_port, packet.fault), (53, None));
    }

    #[test]
    fn too_many_extension_headers_are_unparseable() {
        let mut payload = Vec::new();
        for _ in 0..7 {
            payload.extend([60, 0, 0, 0, 0, 0, 0, 0]);
        }
        let packet = parse(v6(60, &payload).as_slice());
        assert_eq!(packet.fault, Some(Reason::Unparseable));
    }

    #[test]
    fn ipv6_fragments() {
        let fragment = |offset: u8| {
            let header = [17, 0, 0, offset, 0, 0, 0, 0];
            parse(v6(44, &[header, UDP_TO_53].concat()).as_slice())
        };
        let later = fragment(8);
        assert_eq!(later.fault, Some(Reason::Fragment));
        let first = fragment(1);
        assert_eq!((first.fault, first.destination_port), (None, 53));
    }

    /// An ICMPv6 packet of a type, with a hop limit, to a group or to a host.
    fn icmpv6(kind: u8, hops: u8, group: bool) -> Packet {
        let mut bytes = v6(58, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        bytes[7] = hops;
        if group {
            bytes[24] = 0xff;
        }
        parse(bytes.as_slice())
    }

    #[test]
    fn neighbour_discovery_is_plumbing_and_router_advertisements_are_not() {
        for kind in [133, 135, 136] {
            assert_eq!(icmpv6(kind, 255, false).kind, Kind::Plumbing, "{kind}");
            assert_eq!(icmpv6(kind, 254, false).kind, Kind::Opening, "{kind}");
        }
        for kind in [130, 131, 132, 143] {
            assert_eq!(icmpv6(kind, 1, true).kind, Kind::Plumbing, "{kind}");
            assert_eq!(icmpv6(kind, 1, false).kind, Kind::Opening, "{kind}");
        }
        for kind in [134, 137] {
            assert_eq!(icmpv6(kind, 255, true).kind, Kind::Router, "{kind}");
        }
    }

    #[test]
    fn group_membership_is_plumbing_only_towards_a_group() {
        let mut bytes = v4(2, [0, 0], &[0x16, 0, 0, 0, 224, 0, 0, 1]);
        let to_host = parse(bytes.as_slice());
        assert_eq!(to_host.fault, Some(Reason::UnsupportedProtocol));
        bytes[16] = 224;
        let to_group = parse(bytes.as_slice());
        assert_eq!((to_group.kind, to_group.fault), (Kind::Plumbing, None));
    }

    #[test]
    fn icmp_and_igmp_of_the_other_family_are_unsupported() {
        let echo = [128, 0, 0, 0, 0x12, 0x34, 0, 1];
        let mut to_group = v6(2, &[0x16, 0, 0, 0, 224, 0, 0, 1]);
        // Where an IPv4 group would begin.
        to_group[36] = 0xe0;
        for bytes in [v4(58, [0, 0], &echo), v6(1, &echo), to_group] {
            let packet = parse(bytes.as_slice());
            assert_eq!(packet.fault, Some(Reason::UnsupportedProtocol));
            assert_eq!(packet.kind, Kind::Datagram);
        }
    }

    #[test]
    fn an_echo_has_its_identifier_for_ports() {
        let packet = parse(v4(1, [0, 0], &[8, 0, 0, 0, 0x12, 0x34, 0, 1]).as_slice());
        assert_eq!((packet.source_port, packet.protocol), (0x1234, 1));
        assert_eq!((packet.kind, packet.sequence), (Kind::Opening, ASKS));
        let reply = parse(v6(58, &[129, 0, 0, 0, 0x12, 0x34, 0, 1]).as_slice());
        assert_eq!((reply.destination_port, reply.protocol), (0x1234, 1));
        assert_eq!((reply.kind, reply.sequence), (Kind::Datagram, 0));
    }

    #[test]
    fn port_zero_is_a_fault() {
        let packet = parse(v4(17, [0, 0], &[0x30, 0x39, 0, 0, 0, 8, 0, 0]).as_slice());
        assert_eq!(packet.fault, Some(Reason::Unparseable));
    }

    #[test]
    fn other_transports_are_unsupported() {
        let packet = parse(v4(132, [0, 0], &[0; 16]).as_slice());
        assert_eq!(
            (packet.fault, packet.protocol),
            (Some(Reason::UnsupportedProtocol), 132)
        );
    }
}
