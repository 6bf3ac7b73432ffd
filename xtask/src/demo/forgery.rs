//! A TCP SYN written by hand, as whoever has a packet socket can send it.

use std::net::Ipv4Addr;

use zt_tests::wire;

const ETHERTYPE_IPV4: u16 = 0x0800;
const TCP: u8 = 6;
const SYN: u8 = 2;

/// A SYN that says where it comes from, and where it goes.
pub struct Syn {
    pub from: (Ipv4Addr, u16),
    pub to: (Ipv4Addr, u16),
    /// By which it is known again.
    pub sequence: u32,
}

impl Syn {
    /// The frame that carries it.
    pub fn frame(&self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        wire::frame(to, from, ETHERTYPE_IPV4, &self.packet())
    }

    /// Bytes that are in its frame and in no other.
    pub fn mark(&self) -> Vec<u8> {
        self.segment()[..8].to_vec()
    }

    fn packet(&self) -> Vec<u8> {
        let segment = self.segment();
        let length = u16::try_from(20 + segment.len()).unwrap_or(u16::MAX);
        let mut header = vec![0x45, 0];
        header.extend(length.to_be_bytes());
        // Identification, don't fragment, 64 hops.
        header.extend([0, 1, 0x40, 0, 64, TCP, 0, 0]);
        header.extend(self.from.0.octets());
        header.extend(self.to.0.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header, segment].concat()
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.from.1.to_be_bytes());
        segment.extend(self.to.1.to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        // No acknowledgement, five words of header, a window, no urgent data.
        segment.extend([0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
        let mut pseudo = [self.from.0.octets(), self.to.0.octets()].concat();
        pseudo.extend([0, TCP, 0, 20]);
        let sum = checksum(&[pseudo, segment.clone()].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Syn = Syn {
        from: (Ipv4Addr::new(10, 0, 0, 1), 40000),
        to: (Ipv4Addr::new(10, 0, 0, 2), 5432),
        sequence: 0x1234_5678,
    };

    #[test]
    fn its_checksums_are_right() {
        let packet = ONE.packet();
        assert_eq!(checksum(&packet[..20]), 0);
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, TCP, 0, 20]);
        assert_eq!(checksum(&[&pseudo[..], &packet[20..]].concat()), 0);
        assert_eq!(packet.len(), 40);
    }

    #[test]
    fn it_is_known_again_by_its_mark() {
        let frame = ONE.frame([2; 6], [4; 6]);
        assert!(wire::contains(&frame, &ONE.mark()));
        let other = Syn { sequence: 1, ..ONE };
        assert!(!wire::contains(&frame, &other.mark()));
    }
}
