//! What a workload says of itself to its neighbours: ARP, and neighbour
//! discovery (RFC 4861). The kernel programs compare it with what is known of
//! the interface that the frame came from.

use crate::{
    address::{Ip, mapped},
    packet::Bytes,
};

/// A claim of "this address is at this MAC address".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Claim {
    /// All zero: none is claimed (a probe).
    pub address: Ip,
    /// Whom it is about or for: what the sender asks for.
    pub target: Ip,
    /// Every MAC address in it is the one that was asked about.
    pub honest: bool,
}

/// Reads ARP from its first byte; `None` if it is not ARP for IPv4 over
/// Ethernet (RFC 826), a request or a reply.
#[inline(always)]
pub fn arp<B: Bytes + ?Sized>(bytes: &B, mac: &[u8; 6]) -> Option<Claim> {
    // Hardware type Ethernet, protocol IPv4, lengths 6 and 4.
    const START: [u8; 7] = [0, 1, 8, 0, 6, 4, 0];
    let header = bytes.read::<28>(0)?;
    let mut index = 0;
    while index < START.len() {
        if header[index] != START[index] {
            return None;
        }
        index += 1;
    }
    if header[7] != 1 && header[7] != 2 {
        return None;
    }
    let sender = [
        header[8], header[9], header[10], header[11], header[12], header[13],
    ];
    Some(Claim {
        address: mapped([header[14], header[15], header[16], header[17]]),
        target: mapped([header[24], header[25], header[26], header[27]]),
        honest: same_mac(&sender, mac),
    })
}

/// Options in one message; a message with more is not believed.
const MAX_OPTIONS: usize = 4;

/// Reads neighbour discovery from the first byte of ICMPv6. `source` is the
/// IP header's. `None` if it cannot be read to its end.
#[inline(always)]
pub fn neighbour<B: Bytes + ?Sized>(bytes: &B, source: &Ip, mac: &[u8; 6]) -> Option<Claim> {
    const ROUTER_SOLICITATION: u8 = 133;
    const ADVERTISEMENT: u8 = 136;
    let kind = bytes.read::<1>(0)?[0];
    let mut claim = Claim {
        address: *source,
        target: [0; 16],
        honest: true,
    };
    let mut offset = 8;
    if kind != ROUTER_SOLICITATION {
        if !bytes.fill(8, &mut claim.target) {
            return None;
        }
        if kind == ADVERTISEMENT {
            claim.address = claim.target;
        }
        offset = 24;
    }
    for _ in 0..MAX_OPTIONS {
        let Some(option) = bytes.read::<8>(offset) else {
            // Nothing may be left over.
            return bytes.read::<1>(offset).is_none().then_some(claim);
        };
        // Source and target link-layer address.
        if option[0] == 1 || option[0] == 2 {
            let said = [
                option[2], option[3], option[4], option[5], option[6], option[7],
            ];
            claim.honest &= same_mac(&said, mac);
        }
        if option[1] == 0 {
            return None;
        }
        offset += u32::from(option[1]) * 8;
    }
    bytes.read::<1>(offset).is_none().then_some(claim)
}

/// Without a branch per byte, see [`crate::version::same`].
#[inline(always)]
#[must_use]
pub fn same_mac(one: &[u8; 6], other: &[u8; 6]) -> bool {
    let start = |mac: &[u8; 6]| u32::from_ne_bytes([mac[0], mac[1], mac[2], mac[3]]);
    let end = |mac: &[u8; 6]| u32::from(u16::from_ne_bytes([mac[4], mac[5]]));
    (start(one) ^ start(other)) | (end(one) ^ end(other)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];

    fn arp_bytes(operation: u8, mac: [u8; 6]) -> Vec<u8> {
        let start = [0, 1, 8, 0, 6, 4, 0, operation];
        [&start[..], &mac, &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]].concat()
    }

    #[test]
    fn arp_says_who_is_where() {
        let claim = arp(arp_bytes(1, MAC).as_slice(), &MAC).unwrap();
        assert_eq!(claim.address, mapped([10, 0, 0, 1]));
        assert_eq!(claim.target, mapped([10, 0, 0, 2]));
        assert!(claim.honest);
        assert!(!arp(arp_bytes(2, OTHER).as_slice(), &MAC).unwrap().honest);
    }

    #[test]
    fn what_is_no_arp_is_not_believed() {
        assert_eq!(arp(arp_bytes(3, MAC).as_slice(), &MAC), None);
        assert_eq!(arp(&arp_bytes(1, MAC)[..27], &MAC), None);
        let mut reverse = arp_bytes(1, MAC);
        reverse[1] = 6;
        assert_eq!(arp(reverse.as_slice(), &MAC), None);
    }

    fn discovery(kind: u8, options: &[u8]) -> Vec<u8> {
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &[9; 16], options].concat()
    }

    fn option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
        [&[kind, 1][..], &mac].concat()
    }

    #[test]
    fn an_advertisement_claims_its_target_and_a_solicitation_its_source() {
        let read = |bytes: &[u8]| neighbour(bytes, &[5; 16], &MAC).unwrap();
        assert_eq!(read(&discovery(136, &[])).address, [9; 16]);
        let asked = read(&discovery(135, &option(1, MAC)));
        assert_eq!((asked.address, asked.target), ([5; 16], [9; 16]));
        assert!(asked.honest);
    }

    #[test]
    fn every_link_layer_option_has_to_be_honest() {
        let options = [option(2, MAC), option(14, [0; 6]), option(2, OTHER)].concat();
        let claim = neighbour(discovery(136, &options).as_slice(), &[5; 16], &MAC);
        assert!(!claim.unwrap().honest);
    }

    #[test]
    fn what_cannot_be_read_to_its_end_is_not_believed() {
        let read = |options: &[u8]| neighbour(discovery(135, options).as_slice(), &[5; 16], &MAC);
        assert_eq!(read(&[1, 0, 0, 0, 0, 0, 0, 0]), None, "of no length");
        assert_eq!(read(&[1, 1, 2]), None, "cut off");
        assert_eq!(read(&option(14, MAC).repeat(MAX_OPTIONS + 1)), None);
        assert!(read(&option(14, MAC).repeat(MAX_OPTIONS)).is_some());
        // Longer than the packet: nothing after it can be looked at.
        assert!(read(&[14, 9, 0, 0, 0, 0, 0, 0]).is_some());
    }
}
