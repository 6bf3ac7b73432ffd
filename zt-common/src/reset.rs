//! TCP resets of flows that may no longer be: which one passes, and how a
//! segment becomes one (RFC 9293, section 3.5.2).

use crate::packet::Bytes;

/// Bits of [`crate::flow::Cached::owed`]: each is one packet of a flow that was
/// allowed and is denied now.
pub mod owed {
    /// A reset that a socket of the workload sends (`cgroup_skb`).
    pub const EGRESS: u8 = 1;
    /// A reset that a socket of the workload receives.
    pub const INGRESS: u8 = 2;
    /// A reset that leaves the workload by its interface (`tc`).
    pub const FROM: u8 = 4;
    /// The first segment to the workload, made a reset.
    pub const TO: u8 = 8;
    /// The second one, made an empty acknowledgement: if nobody is there any
    /// more, the workload's kernel answers with a reset.
    pub const QUESTION: u8 = 16;
    /// Nothing to spend: the flow was cut, whatever else is spent.
    pub const CUT: u8 = 128;

    /// What is owed when a flow is cut.
    pub const ALL: u8 = EGRESS | INGRESS | FROM | TO | QUESTION | CUT;
}

/// Length of a TCP header without options, bytes.
pub const HEADER: usize = 20;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Where a packet's TCP header may start: after an IPv4 or an IPv6 header
/// without anything between.
const STARTS: [u32; 2] = [20, 40];
/// As Linux writes a timestamp: twice nothing, its kind, its length.
const TIMESTAMP: [u8; 4] = [1, 1, 8, 10];

/// Whether the packet of `length` bytes, whose TCP header starts at
/// `transport`, is a reset and carries nothing but timestamps.
#[inline(always)]
pub fn is_bare<B: Bytes + ?Sized>(bytes: &B, transport: u32, length: u32) -> bool {
    /// All flags but those of congestion control, which a reset may bear.
    const FLAGS: u8 = 0x3f;
    let Some([offset, flags]) = bytes.read::<2>(transport + 12) else {
        return false;
    };
    let size = u32::from(offset >> 4) * 4;
    let stamped = size == 32 && bytes.read::<4>(transport + 20) == Some(TIMESTAMP);
    STARTS.contains(&transport)
        && flags & FLAGS & !ACK == RST
        && (size == 20 || stamped)
        && length == transport + size
}

/// The header of a segment like the one with the header `was`, without options
/// or data, and with other flags. Its checksum is 0.
#[inline(always)]
#[must_use]
pub const fn emptied(was: &[u8; HEADER], flags: u8) -> [u8; HEADER] {
    const WORDS: u8 = 5 << 4;
    let mut header = *was;
    header[12] = WORDS;
    header[13] = flags;
    // Window, checksum, urgent pointer.
    let mut at = 14;
    while at < HEADER {
        header[at] = 0;
        at += 1;
    }
    header
}

/// The sum of 16-bit words in network byte order, not folded.
#[inline(always)]
#[must_use]
pub const fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let (mut total, mut at) = (0, 0);
    while at + 1 < N {
        total += (bytes[at] as u32) << 8 | bytes[at + 1] as u32;
        at += 2;
    }
    total
}

/// The ones' complement sum of 16 bits (RFC 1071).
#[inline(always)]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "both carries were added: 16 bits are left"
)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(transport: usize, offset: u8, flags: u8, more: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; transport + HEADER];
        packet[transport + 12] = offset << 4;
        packet[transport + 13] = flags;
        packet.extend(more);
        packet
    }

    fn bare(transport: usize, packet: &[u8]) -> bool {
        let number = |n: usize| u32::try_from(n).unwrap();
        is_bare(packet, number(transport), number(packet.len()))
    }

    #[test]
    fn only_a_reset_with_nothing_in_it_is_bare() {
        let stamp = [&TIMESTAMP[..], &[7; 8]].concat();
        for transport in [20, 40] {
            assert!(bare(transport, &segment(transport, 5, RST, &[])));
            assert!(bare(transport, &segment(transport, 5, RST | ACK, &[])));
            assert!(bare(transport, &segment(transport, 8, RST | ACK, &stamp)));
            for flags in [ACK, RST | 1, RST | 2, RST | 8, RST | 0x20] {
                assert!(!bare(transport, &segment(transport, 5, flags, &[])));
            }
            assert!(!bare(transport, &segment(transport, 5, RST, &[0])));
            assert!(!bare(transport, &segment(transport, 8, RST, &[1; 12])));
            assert!(!bare(transport, &segment(transport, 8, RST, &stamp[1..])));
            assert!(!bare(transport, &segment(transport, 6, RST, &[1; 4])));
            assert!(!bare(transport, &segment(transport, 4, RST, &[])));
            let long = [&stamp[..], &[0]].concat();
            assert!(!bare(transport, &segment(transport, 8, RST, &long)));
            let short = &segment(transport, 5, RST, &[])[..transport + 13];
            assert!(!bare(transport, short));
        }
        // Extension headers are between.
        assert!(!bare(48, &segment(48, 5, RST, &[])));
    }

    #[test]
    fn an_emptied_header_keeps_who_speaks_and_where_it_stands() {
        let was: [u8; HEADER] = core::array::from_fn(|n| u8::try_from(n).unwrap() + 1);
        let header = emptied(&was, RST);
        assert_eq!(header[..12], was[..12]);
        assert_eq!(header[12..], [0x50, RST, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn carries_are_added() {
        // The example of RFC 1071.
        let words = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&words)), 0xddf2);
        assert_eq!(fold(u32::MAX), u16::MAX);
    }
}
