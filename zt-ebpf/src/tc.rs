//! Frames on the host side of a workload's veth: the complete layer.
//!
//! Whatever made a frame, it passes here, and the interface says whose it is.
//! `Egress` is what the workload sends: the veth receives it.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use zt_common::{
    address::{AddressKey, Interface, Ip, NOBODYS, is_loopback, is_unspecified},
    claim,
    codes::{Direction, Hook, Protocol, Reason},
    packet::{Bytes, Kind},
    version::{Generation, same},
};

use crate::{
    case::Case,
    decide::{decide, generations, layer},
    flow::{self, hit},
    fragment, headers,
    headers::Skb,
    maps::zt_interface_v1,
    owner::{self, field},
    reset, rows,
};

/// Length of an Ethernet header without a VLAN tag.
const ETHERNET: u32 = 14;

/// What the kernel takes from a program here: go on with the next one, or
/// drop. Both have the same numbers for TCX and for clsact.
#[inline(always)]
pub fn frame(ctx: &TcContext, direction: Direction) -> i32 {
    let skb = ctx.skb.skb;
    let ingress = direction as u8 == Direction::Ingress as u8;
    let verdict = passes(skb, direction as u32);
    if verdict == 0 || verdict != reset::PASSES && !(ingress && reset::make(skb, verdict)) {
        return TC_ACT_SHOT;
    }
    if direction as u8 == Direction::Egress as u8
        && let Some(control) = owner::control()
    {
        // SAFETY: a field of the context that programs may write.
        unsafe { (*skb).mark |= control.mark };
    }
    TC_ACT_UNSPEC
}

/// What [`inspect`] makes of a frame.
mod seen {
    /// It keeps the link itself alive, and says nothing that is not true.
    pub const HARMLESS: u32 = 0;
    pub const OPENING: u32 = 1;
    pub const SEGMENT: u32 = 2;
    pub const DATAGRAM: u32 = 3;
    /// A fragment without its ports.
    pub const FRAGMENT: u32 = 4;
    /// No rule can be asked; the case says why.
    pub const FAULT: u32 = 5;
}

/// Whether the frame may go on: 1 or 0; or as what it may, see
/// [`reset::make`].
#[inline(never)]
fn passes(skb: *mut __sk_buff, direction: u32) -> u32 {
    let mut case = if direction == Direction::Egress as u32 {
        Case::new(Hook::TcFrom, Direction::Egress)
    } else {
        Case::new(Hook::TcTo, Direction::Ingress)
    };
    let Some(control) = owner::control() else {
        return 0;
    };
    case.inside = false;
    case.interface = field!((*skb).ifindex);
    case.cached.generation = generations(control).0;
    let seen = inspect(skb, &mut case);
    match seen {
        seen::HARMLESS => return 1,
        seen::FAULT => {}
        seen::FRAGMENT => {
            if fragment::zt_later_fragment(&raw const case) != 0 {
                return 1;
            }
            case.fault = Reason::Fragment as u8;
        }
        _ => match flow::zt_flow(&raw mut case, u32::from(seen == seen::OPENING)) {
            hit::PASS => {
                fragment::remember(&case);
                return 1;
            }
            hit::DENY => return reset::passes(skb, &case),
            hit::STALE_EGRESS => case.direction = Direction::Egress,
            hit::STALE_INGRESS => case.direction = Direction::Ingress,
            found => {
                if found == hit::CUT {
                    let verdict = reset::passes(skb, &case);
                    if verdict != 0 {
                        return verdict;
                    }
                }
                case.either = seen == seen::SEGMENT;
            }
        },
    }
    decide::<{ layer::FRAME }>(skb.cast(), &mut case, None);
    if case.fault == 0 {
        flow::zt_remember(&raw const case);
        if case.passes() {
            fragment::remember(&case);
        }
    }
    if case.passes() {
        return reset::PASSES;
    }
    reset::passes(skb, &case)
}

/// Reads the frame into the case and checks what can be checked without a
/// policy. The result is one of [`seen`].
#[inline(always)]
fn inspect(skb: *mut __sk_buff, case: &mut Case) -> u32 {
    let kind = ethertype(skb);
    let read = match kind {
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => {
            let v6 = u32::from(kind == ETHERTYPE_IPV6);
            headers::zt_read_frame(skb, &raw mut *case, ETHERNET, v6)
        }
        _ => 0,
    };
    // SAFETY: the row repeats its key, which is looked at again below.
    let row = unsafe { zt_interface_v1.get(case.interface) };
    let version = row.and_then(|row| row.version(&case.interface, case.cached.generation));
    let (Some(row), Some(version)) = (row, version) else {
        return of_nobody(case, read);
    };
    let at = &version.value;
    case.cgroup = at.cgroup;
    let seen = match kind {
        ETHERTYPE_ARP => zt_arp(skb, &raw mut *case, &raw const *at),
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => packet(skb, case, at, read),
        _ => fault(case, Reason::UnknownEthertype),
    };
    if !same(&row.key, &case.interface) {
        // The row has become another interface's while it was read.
        return of_nobody(case, read);
    }
    seen
}

/// Whatever it is: nobody may send it, or be sent it.
#[inline(always)]
fn of_nobody(case: &mut Case, read: u32) -> u32 {
    case.cgroup = NOBODYS | u64::from(case.interface);
    case.fault = 0;
    case.header_end = 0;
    if read == Kind::Opening as u32 {
        seen::OPENING
    } else {
        seen::DATAGRAM
    }
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ARP: u16 = 0x0806;

/// What the frame itself says it is; 0 if that is not to be believed. A
/// function of its own, for its stack.
#[inline(never)]
fn ethertype(skb: *mut __sk_buff) -> u16 {
    let tagged = field!((*skb).vlan_present) != 0;
    match Skb::at(skb, 0).read::<14>(0) {
        Some(header) if !tagged => u16::from_be_bytes([header[12], header[13]]),
        _ => 0,
    }
}

/// Whether the frame bears the MAC address of the other end.
#[inline(never)]
fn has_own_mac(skb: *mut __sk_buff, at: &Interface) -> bool {
    let mac = Skb::at(skb, 0).read::<6>(6);
    mac.is_some_and(|mac| claim::same_mac(&mac, &at.mac))
}

#[inline(always)]
fn fault(case: &mut Case, reason: Reason) -> u32 {
    case.fault = reason as u8;
    seen::FAULT
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_arp(skb: *mut __sk_buff, case: *mut Case, at: *const Interface) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(case), Some(at)) = (unsafe { (case.as_mut(), at.as_ref()) }) else {
        return seen::FAULT;
    };
    let Some(claim) = claim::arp(&Skb::at(skb, ETHERNET), &at.mac) else {
        return fault(case, Reason::Unparseable);
    };
    if case.direction as u8 == Direction::Ingress as u8 {
        case.remote = claim.address;
        case.local = claim.target;
        return seen::HARMLESS;
    }
    case.remote = claim.target;
    case.local = claim.address;
    let own = is_unspecified(&case.local) || owns(at, &case.local, case.cached.generation);
    if own && claim.honest && has_own_mac(skb, at) {
        seen::HARMLESS
    } else {
        fault(case, Reason::Spoofed)
    }
}

#[inline(always)]
fn packet(skb: *mut __sk_buff, case: &mut Case, at: &Interface, kind: u32) -> u32 {
    let generation = case.cached.generation;
    let plumbing = kind == Kind::Plumbing as u32;
    if case.direction as u8 == Direction::Egress as u8 {
        let own = owns(at, &case.local, generation);
        // To look for itself it has no address yet (RFC 4862; RFC 3376).
        let probing = plumbing && is_unspecified(&case.local);
        if !(own || probing) || !has_own_mac(skb, at) {
            // Where the header is cut short no address was read, and so none
            // was forged.
            let cut = case.fault == Reason::Unparseable as u8 && case.local == [0; 16];
            return if cut {
                seen::FAULT
            } else {
                fault(case, Reason::Spoofed)
            };
        }
        if plumbing {
            return zt_discovery(skb, &raw mut *case, &raw const *at);
        }
    } else if plumbing && is_unspecified(&case.remote) {
        // A neighbour looks for an address for itself.
        return seen::HARMLESS;
    } else if is_loopback(&case.remote) || owns(at, &case.remote, generation) {
        return fault(case, Reason::Spoofed);
    } else if plumbing {
        return seen::HARMLESS;
    }
    if kind == Kind::Fragment as u32 {
        seen::FRAGMENT
    } else if case.fault != 0 {
        seen::FAULT
    } else if kind == Kind::Error as u32 {
        zt_error(skb, &raw mut *case, &raw const *at)
    } else if kind == Kind::Opening as u32 {
        seen::OPENING
    } else if kind == Kind::Segment as u32 {
        seen::SEGMENT
    } else {
        seen::DATAGRAM
    }
}

/// What a workload tells its neighbours has to be true.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_discovery(skb: *mut __sk_buff, case: *mut Case, at: *const Interface) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(case), Some(at)) = (unsafe { (case.as_mut(), at.as_ref()) }) else {
        return seen::FAULT;
    };
    const SOLICITATION: u8 = 133;
    const ADVERTISEMENT: u8 = 136;
    let bytes = Skb::at(skb, ETHERNET + u32::from(case.transport));
    let Some([kind, _]) = bytes.read::<2>(0) else {
        return fault(case, Reason::Unparseable);
    };
    if case.protocol != Protocol::Icmp as u8 || !(SOLICITATION..=ADVERTISEMENT).contains(&kind) {
        // A group report.
        return seen::HARMLESS;
    }
    let Some(said) = claim::neighbour(&bytes, &case.local, &at.mac) else {
        return fault(case, Reason::Unparseable);
    };
    let probe = kind != ADVERTISEMENT && is_unspecified(&said.address);
    if said.honest && (probe || owns(at, &said.address, case.cached.generation)) {
        seen::HARMLESS
    } else {
        fault(case, Reason::Spoofed)
    }
}

/// An ICMP error passes if it quotes a packet of a flow that may go on, one
/// that went the other way.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_error(skb: *mut __sk_buff, case: *mut Case, at: *const Interface) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(case), Some(at)) = (unsafe { (case.as_mut(), at.as_ref()) }) else {
        return seen::FAULT;
    };
    let mut about = Case::new(case.hook, case.direction);
    about.cgroup = case.cgroup;
    about.cached.generation = case.cached.generation;
    about.inside = false;
    let quoted = ETHERNET + u32::from(case.transport) + 8;
    let read = headers::zt_read_quoted(skb, &raw mut about, quoted);
    // Whom it is sent to is who sent what it quotes; and that, or whom it
    // was sent to, is the workload.
    let addressee = if case.direction as u8 == Direction::Egress as u8 {
        case.remote == about.remote
    } else {
        case.local == about.local
    };
    let own = owns(at, &about.local, case.cached.generation);
    if read == 0 && addressee && own && flow::zt_flow(&raw mut about, 0) == hit::PASS {
        seen::HARMLESS
    } else {
        fault(case, Reason::StrayError)
    }
}

/// Whether `ip` is an address of the workload behind the interface.
#[inline(always)]
fn owns(at: &Interface, ip: &Ip, generation: Generation) -> bool {
    zt_owns(&raw const *at, &raw const *ip, generation) != 0
}

/// See [`owns`]. A global function: it is asked in many places.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_owns(at: *const Interface, ip: *const Ip, generation: Generation) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(at), Some(ip)) = (unsafe { (at.as_ref(), ip.as_ref()) }) else {
        return 0;
    };
    let ip = words(ip);
    if is_unspecified(&bytes(ip)) {
        return 0;
    }
    for address in &at.addresses {
        if words(address) == ip {
            return 1;
        }
    }
    let key = AddressKey {
        ip: bytes(ip),
        port: 0,
        protocol: 0,
        zero: 0,
    };
    let found = rows::address(&key, generation);
    u32::from(at.cgroup != 0 && found.is_some_and(|peer| peer.cgroup == at.cgroup))
}

/// An address by words: by bytes it takes several times the instructions. Nearly all are
/// aligned to eight, which the compiler cannot see; of what a function is given the
/// verifier does not ask it where the processor does not.
#[inline(always)]
fn words(ip: &Ip) -> [u64; 2] {
    // SAFETY: 16 bytes, read as the comment above says.
    unsafe { core::ptr::from_ref(ip).cast::<[u64; 2]>().read() }
}

#[inline(always)]
fn bytes([first, last]: [u64; 2]) -> Ip {
    let mut ip = [0; 16];
    ip[..8].copy_from_slice(&first.to_ne_bytes());
    ip[8..].copy_from_slice(&last.to_ne_bytes());
    ip
}
