//! A TCP SYN written by hand, as whoever has a packet socket can send it.

use std::net::Ipv4Addr;

use zt_tests::packet::{IPV4, Mac, SYN, TCP, V4, frame, tcp_at};

/// A SYN that says where it comes from, and where it goes.
pub struct Syn {
    pub from: (Ipv4Addr, u16),
    pub to: (Ipv4Addr, u16),
    /// By which it is known again.
    pub sequence: u32,
}

impl Syn {
    /// The frame that carries it.
    pub fn frame(&self, to: Mac, from: Mac) -> Vec<u8> {
        let packet = V4::new(self.from.0, self.to.0, TCP).packet(&self.segment());
        frame(to, from, IPV4, &packet)
    }

    /// Bytes that are in its frame and in no other.
    pub fn mark(&self) -> Vec<u8> {
        self.segment()[..8].to_vec()
    }

    fn segment(&self) -> Vec<u8> {
        let [from, to] = [self.from, self.to].map(|(ip, port)| (ip.into(), port));
        tcp_at(self.sequence, from, to, SYN, &[])
    }
}

#[cfg(test)]
mod tests {
    use zt_tests::wire::contains;

    use super::*;

    #[test]
    fn it_is_known_again_by_its_mark() {
        let one = Syn {
            from: (Ipv4Addr::new(10, 0, 0, 1), 40000),
            to: (Ipv4Addr::new(10, 0, 0, 2), 5432),
            sequence: 0x1234_5678,
        };
        let frame = one.frame([2; 6], [4; 6]);
        assert!(contains(&frame, &one.mark()));
        let other = Syn { sequence: 1, ..one };
        assert!(!contains(&frame, &other.mark()));
    }
}
