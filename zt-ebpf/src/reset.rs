//! The resets that end a flow which was allowed and is denied now.
//!
//! Each layer lets one pass, and the interface makes one of the first segment
//! to the workload. See [`zt_common::reset::owed`].

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_store_bytes,
    },
};
use core::ffi::c_void;
use zt_common::{
    codes::{Hook, Protocol, Verdict},
    packet::Bytes,
    reset::{ACK, HEADER, RST, emptied, fold, is_bare, owed, sum},
    version::same,
};

use crate::{case::Case, headers::Skb, maps::zt_spill_v1, owner::field};

/// It passes as it is.
pub const PASSES: u32 = 1;
/// It passes as a reset.
const AS_RESET: u32 = 2;
/// It passes as an empty acknowledgement.
const AS_QUESTION: u32 = 3;

/// Length of an Ethernet header without a VLAN tag.
const ETHERNET: u32 = 14;

/// Whether the denied segment passes nevertheless, and as what; 0: no. It is
/// asked of denials only.
#[inline(always)]
pub fn passes(skb: *mut __sk_buff, case: &Case) -> u32 {
    zt_owed(skb, &raw const *case)
}

/// See [`passes`]. A global function, for its stack.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_owed(skb: *mut __sk_buff, case: *const Case) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    if case.cached.owed == 0 || case.fault != 0 {
        return 0;
    }
    let key = case.flow_key();
    // SAFETY: a pointer into a map value; the value repeats its key.
    let found = zt_spill_v1.get_ptr_mut(key);
    let Some(flow) = found.and_then(|flow| unsafe { flow.as_mut() }) else {
        return 0;
    };
    if !same(&flow.key, &key) || flow.cached.verdict != Verdict::Deny as u8 {
        return 0;
    }
    let left = flow.cached.owed;
    let (bit, verdict) = match case.hook {
        Hook::SkbEgress => (owed::EGRESS, PASSES),
        Hook::SkbIngress => (owed::INGRESS, PASSES),
        Hook::TcFrom => (owed::FROM, PASSES),
        _ if left & owed::TO != 0 => (owed::TO, AS_RESET),
        _ => (owed::QUESTION, AS_QUESTION),
    };
    if left & bit == 0 || verdict == PASSES && !is_reset(skb, case) {
        return 0;
    }
    // Two at once may both pass.
    flow.cached.owed = left & !bit;
    verdict
}

#[inline(always)]
fn is_reset(skb: *mut __sk_buff, case: &Case) -> bool {
    let base = if case.hook as u8 == Hook::TcFrom as u8 {
        ETHERNET
    } else {
        0
    };
    let length = field!((*skb).len) - base;
    is_bare(&Skb::at(skb, base), u32::from(case.transport), length)
}

/// Makes the TCP segment in this frame a reset, or an empty acknowledgement, as
/// [`passes`] said. `false`: it cannot be made one.
#[inline(never)]
pub fn make(skb: *mut __sk_buff, verdict: u32) -> bool {
    let flags = if verdict == AS_RESET { RST | ACK } else { ACK };
    let packet = Skb::at(skb, ETHERNET);
    match packet.read::<20>(0) {
        Some(header) if header[0] == 0x45 && header[9] == Protocol::Tcp as u8 => {
            v4(skb, &header, flags)
        }
        Some(header) if header[0] >> 4 == 6 && header[6] == Protocol::Tcp as u8 => v6(skb, flags),
        _ => false,
    }
}

const LENGTH: u16 = HEADER as u16;
/// What the checksum of TCP covers besides addresses and the segment.
const PSEUDO: u32 = LENGTH as u32 + Protocol::Tcp as u32;

#[inline(always)]
fn v4(skb: *mut __sk_buff, header: &[u8; 20], flags: u8) -> bool {
    const IP: u32 = 20;
    const TOTAL: u16 = IP as u16 + LENGTH;
    let was = u16::from_ne_bytes([header[2], header[3]]);
    let mut addresses = [0; 8];
    addresses.copy_from_slice(&header[12..20]);
    if !segment(skb, IP, sum(&addresses), flags) {
        return false;
    }
    let to = TOTAL.to_be();
    // SAFETY: the helper checks the offset, and writes 2 bytes there.
    let checksum =
        unsafe { bpf_l3_csum_replace(skb, ETHERNET + 10, u64::from(was), u64::from(to), 2) };
    checksum == 0 && store(skb, ETHERNET + 2, &to.to_ne_bytes())
}

#[inline(always)]
fn v6(skb: *mut __sk_buff, flags: u8) -> bool {
    const IP: u32 = 40;
    let Some(addresses) = Skb::at(skb, ETHERNET).read::<32>(8) else {
        return false;
    };
    segment(skb, IP, sum(&addresses), flags) && store(skb, ETHERNET + 4, &LENGTH.to_be_bytes())
}

/// Cuts the frame off after a TCP header, which it writes. `addresses`: their
/// sum.
#[inline(always)]
fn segment(skb: *mut __sk_buff, ip: u32, addresses: u32, flags: u8) -> bool {
    let at = ETHERNET + ip;
    let Some(was) = Skb::at(skb, at).read::<HEADER>(0) else {
        return false;
    };
    let end = at + HEADER as u32;
    // Twice: to be cut off a frame has to be longer, and one that was cut off
    // has no checksum of the network card's any more.
    // SAFETY: `skb` is the context; the frame is changed or not.
    if unsafe { bpf_skb_change_tail(skb, end + 1, 0) != 0 || bpf_skb_change_tail(skb, end, 0) != 0 }
    {
        return false;
    }
    let mut header = emptied(&was, flags);
    let (pseudo, own) = (addresses + PSEUDO, sum(&header));
    let checksum = fold(pseudo).to_be_bytes();
    (header[16], header[17]) = (checksum[0], checksum[1]);
    if !store(skb, at, &header) {
        return false;
    }
    // Where the rest of the sum is still to be added on the way, the helper
    // does nothing, and what stands there now is what must. Else it makes the
    // complement of that less 0 plus `more`, of the whole sum.
    let more = fold(2 * u32::from(fold(pseudo)) + own).to_be();
    // SAFETY: the helper checks the offset, and writes 2 bytes there.
    unsafe { bpf_l4_csum_replace(skb, at + 16, 0, u64::from(more), 2) == 0 }
}

#[inline(always)]
fn store(skb: *mut __sk_buff, offset: u32, bytes: &[u8]) -> bool {
    let from = bytes.as_ptr().cast::<c_void>();
    // SAFETY: `bytes` is readable; the helper checks the offset.
    let stored = unsafe {
        bpf_skb_store_bytes(
            skb,
            offset,
            from,
            bytes.len() as u32,
            u64::from(BPF_F_RECOMPUTE_CSUM),
        )
    };
    stored == 0
}
