//! Reads a packet's headers into a case.
//!
//! Global functions, see [`crate::decide::zt_weigh`].

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use zt_common::{
    address::is_mapped,
    codes::{Direction, Reason},
    packet::{self, Bytes, Kind, Packet},
};

use crate::case::Case;

/// The packet of a socket, whose IP header is at offset 0. The result is a
/// [`Kind`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_read(skb: *mut __sk_buff, case: *mut Case) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    let mut packet = Packet::UNREAD;
    packet::parse_into(&Skb::at(skb, 0), &mut packet);
    fill(case, &packet);
    packet.kind as u32
}

/// The packet in a frame, whose IP header is at `base`. The result is a
/// [`Kind`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_read_frame(skb: *mut __sk_buff, case: *mut Case, base: u32, v6: u32) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    let mut packet = Packet::UNREAD;
    packet::parse_into(&Skb::at(skb, base), &mut packet);
    fill(case, &packet);
    case.identification = packet.identification;
    case.header_end = if packet.more || packet.kind as u8 == Kind::Fragment as u8 {
        packet.fragment
    } else {
        0
    };
    let is_v6 = u32::from(!is_mapped(&packet.source));
    if case.fault == 0 && is_v6 != v6 {
        // The frame says one family and the packet another.
        case.fault = Reason::Unparseable as u8;
    }
    packet.kind as u32
}

/// The packet at `base` that an ICMP error quotes, as the flow that it belongs
/// to; it went the other way. 0, or what is wrong with it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_read_quoted(skb: *mut __sk_buff, case: *mut Case, base: u32) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 1;
    };
    let mut packet = Packet::UNREAD;
    packet::parse_quoted(&Skb::at(skb, base), &mut packet);
    let direction = case.direction;
    case.direction = direction.reverse();
    fill(case, &packet);
    case.direction = direction;
    u32::from(case.fault)
}

/// Takes over what a decision needs.
#[inline(always)]
fn fill(case: &mut Case, packet: &Packet) {
    case.protocol = packet.protocol;
    case.fault = packet.fault.map_or(0, |reason| reason as u8);
    case.cached.sequence = packet.sequence;
    case.transport = packet.transport as u16;
    if case.direction as u8 == Direction::Egress as u8 {
        if packet.kind as u8 == Kind::Router as u8 {
            case.fault = Reason::RouterAdvertisement as u8;
        }
        case.local = packet.source;
        case.remote = packet.destination;
        case.local_port = packet.source_port;
        case.remote_port = packet.destination_port;
    } else {
        case.local = packet.destination;
        case.remote = packet.source;
        case.local_port = packet.destination_port;
        case.remote_port = packet.source_port;
    }
}

/// The bytes of a packet, from `base` on.
pub struct Skb {
    skb: *mut __sk_buff,
    base: u32,
}

impl Skb {
    #[inline(always)]
    pub const fn at(skb: *mut __sk_buff, base: u32) -> Self {
        Self { skb, base }
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn fill<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        /// The verifier wants a bound; headers further in are rare.
        const NEAR: u32 = 256;
        let offset = self.base + offset;
        // SAFETY: fields of the context; the verifier knows them as the
        // bounds of the packet's linear part.
        let (start, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        let from = start + (offset & (NEAR - 1)) as usize;
        // Of a comparison for a single byte the verifier makes nothing.
        if N > 1 && offset < NEAR && from + N <= end {
            // SAFETY: inside the packet, as just compared.
            unsafe { copy(from, into) };
            return true;
        }
        // SAFETY: `into` has room for N; the helper checks the packet's end.
        let result = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), offset, into.as_mut_ptr().cast(), N as u32)
        };
        result == 0
    }
}

/// Copies by words, which may lie across those of the memory: on this target the
/// compiler would read what is not aligned byte by byte, and the verifier takes such
/// reads of packets wherever the processor does.
///
/// # Safety
/// `N` bytes from `from` on are the packet's.
#[inline(always)]
unsafe fn copy<const N: usize>(from: usize, into: &mut [u8; N]) {
    let mut at = 0;
    while at + 4 <= N {
        // SAFETY: inside the packet, as the caller says.
        let word = unsafe { core::ptr::read((from + at) as *const u32) };
        into[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        at += 4;
    }
    if at + 2 <= N {
        // SAFETY: as above.
        let half = unsafe { core::ptr::read((from + at) as *const u16) };
        into[at..at + 2].copy_from_slice(&half.to_ne_bytes());
        at += 2;
    }
    if at < N {
        // SAFETY: as above.
        into[at] = unsafe { core::ptr::read((from + at) as *const u8) };
    }
}
