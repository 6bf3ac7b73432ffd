//! Packets of sockets: `cgroup_skb`, both directions.
//!
//! The usual case is an established TCP socket whose storage holds a fresh
//! verdict: no header is read. Everything else goes by the flow table.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_sk_fullsock,
    programs::SkBuffContext,
};
use zt_common::{
    codes::{Direction, Hook, Protocol, Verdict},
    flow::Socket,
    packet::{Bytes, Kind},
    reset::owed,
    state::Control,
};

use crate::{
    case::Case,
    decide::{decide, layer},
    flow::{self, hit},
    headers::{self, Skb},
    owner::{self, SocketFacts, field},
    reset,
};

const DROP: bool = false;
/// What [`slow`] answers.
const PASSES: u32 = 1;

const AF_INET: u32 = 2;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

#[inline(always)]
pub fn packet(ctx: &SkBuffContext, direction: Direction) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: a pointer field of the context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    let Some(control) = owner::control() else {
        return DROP;
    };
    if sk.is_null() {
        return DROP;
    }
    // SAFETY: `sk` is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return DROP;
    }
    let facts = owner::facts(sk);
    let one_peer = has_one_peer(&facts);
    // Until it is answered, the peer may be opening towards us, and the layer
    // below has to find in the flow table what connect decided.
    let answered = facts.state != TCP_SYN_SENT;
    let known = owner::storage(sk.cast(), false);
    if let Some(stored) = &known
        && one_peer
        && answered
        && is_peer(sk, stored)
        && (!stored.cached.is_exemption() || is_inside(skb))
        && flow::is_fresh(&stored.cached, control)
        && stored.cached.verdict != Verdict::Deny as u8
        && is_plain(skb)
    {
        return true;
    }
    let Some(stored) = known.or_else(|| first_seen(skb, sk, control)) else {
        return DROP;
    };
    // One call: the verifier follows each by itself.
    slow(skb, stored, direction as u32, memory(&facts, one_peer)) == PASSES
}

/// The storage of a socket that was made without us: before our programs, or
/// by the kernel itself. Without room for it: `None`.
#[inline(always)]
fn first_seen<'a>(
    skb: *mut __sk_buff,
    sk: *mut bpf_sock,
    control: &Control,
) -> Option<&'a mut Socket> {
    if let Some(stored) = owner::of_subflow(sk) {
        return Some(stored);
    }
    let stored = owner::storage(sk.cast(), true)?;
    owner::of_packet(skb, control.root_level, &mut stored.owner);
    Some(stored)
}

/// What a socket may remember.
mod remembers {
    /// Nothing: a listener, a raw socket.
    pub const NOTHING: u32 = 0;
    /// The verdict for its one peer.
    pub const PEER: u32 = 1;
    /// The verdict for the peer of its last datagram.
    pub const LAST: u32 = 2;
}

#[inline(always)]
fn memory(facts: &SocketFacts, one_peer: bool) -> u32 {
    if one_peer {
        remembers::PEER
    } else if facts.kind == SOCK_DGRAM && facts.protocol == Protocol::Udp as u32 {
        remembers::LAST
    } else {
        remembers::NOTHING
    }
}

/// A TCP socket past its listen state talks to one peer, and the kernel wrote
/// its headers. A raw socket for TCP does neither, also when it is connected.
#[inline(always)]
fn has_one_peer(facts: &SocketFacts) -> bool {
    facts.kind == SOCK_STREAM
        && facts.protocol == Protocol::Tcp as u32
        && facts.state != TCP_LISTEN
        && facts.state != TCP_CLOSE
}

/// Whether the packet has no IP options and no extension headers. With a
/// source route, which anybody may set, it goes to another address than the
/// socket's peer.
#[inline(always)]
fn is_plain(skb: *mut __sk_buff) -> bool {
    let mut start = [0u8; 8];
    Skb::at(skb, 0).fill(0, &mut start)
        && (start[0] == 0x45 || start[0] >> 4 == 6 && start[6] == Protocol::Tcp as u8)
}

/// Whether the packet is on the loopback interface of its namespace.
#[inline(always)]
fn is_inside(skb: *mut __sk_buff) -> bool {
    /// In every namespace (`LOOPBACK_IFINDEX`).
    const LOOPBACK: u32 = 1;
    field!((*skb).ifindex) == LOOPBACK
}

/// Whether the stored verdict is for the peer that the socket has now.
#[inline(always)]
fn is_peer(sk: *mut bpf_sock, stored: &Socket) -> bool {
    if u16::from_be(field!((*sk).dst_port)) != stored.remote_port {
        return false;
    }
    let word = |at: usize| {
        let ip = &stored.remote;
        u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]])
    };
    if field!((*sk).family) == AF_INET {
        return field!((*sk).dst_ip4) == word(12);
    }
    field!((*sk).dst_ip6[0]) == word(0)
        && field!((*sk).dst_ip6[1]) == word(4)
        && field!((*sk).dst_ip6[2]) == word(8)
        && field!((*sk).dst_ip6[3]) == word(12)
}

/// Everything but the usual case. [`PASSES`] or 0. `memory`: one of
/// [`remembers`].
#[inline(never)]
fn slow(skb: *mut __sk_buff, stored: &mut Socket, direction: u32, memory: u32) -> u32 {
    let mut case = if direction == Direction::Egress as u32 {
        Case::new(Hook::SkbEgress, Direction::Egress)
    } else {
        Case::new(Hook::SkbIngress, Direction::Ingress)
    };
    case.inside = is_inside(skb);
    let kind = headers::zt_read(skb, &raw mut case);
    if kind == Kind::Plumbing as u32 {
        return 1;
    }
    let Some(control) = owner::control() else {
        return 0;
    };
    let opening = u32::from(kind == Kind::Opening as u32);
    let one_peer = memory == remembers::PEER;
    let known = one_peer && opening == 0 && flow::is_remembered(&case, stored);
    if known && flow::is_fresh(&stored.cached, control) {
        if stored.cached.verdict != Verdict::Deny as u8 {
            return PASSES;
        }
        case.cgroup = stored.home;
        case.cached.owed = stored.cached.owed;
        return reset::passes(skb, &case);
    }
    if case.fault == 0 {
        if memory == remembers::LAST && flow::passes_by_socket(&case, stored, control) {
            return PASSES;
        }
        case.cgroup = owner::zt_home(&raw mut *stored);
        match flow::zt_flow(&raw mut case, opening) {
            hit::PASS => {
                // So that the next packet finds the verdict with its socket.
                if memory != remembers::NOTHING && opening == 0 {
                    flow::keep(stored, &case);
                }
                return PASSES;
            }
            hit::DENY => return reset::passes(skb, &case),
            hit::CUT if reset::passes(skb, &case) == PASSES => return PASSES,
            hit::STALE_EGRESS => case.direction = Direction::Egress,
            hit::STALE_INGRESS => case.direction = Direction::Ingress,
            found if known => {
                if found == hit::MISS && stored.cached.verdict != Verdict::Deny as u8 {
                    case.cached.owed = owed::ALL;
                }
                case.direction = if stored.cached.opened == Direction::Egress as u8 {
                    Direction::Egress
                } else {
                    Direction::Ingress
                };
            }
            _ => case.either = kind == Kind::Segment as u32,
        }
        if case.direction as u8 == Direction::Egress as u8
            && flow::zt_adopt(&raw mut case, &raw const *stored) != 0
        {
            return u32::from(case.passes());
        }
    }
    // Decided or exempt: the packet layer never puts off.
    let ingress = case.direction as u8 == Direction::Ingress as u8;
    decide::<{ layer::PACKET }>(skb.cast(), &mut case, Some(&stored.owner));
    // A remote's SYN to a connection says nothing of the connection.
    let stray = one_peer && opening != 0 && ingress;
    if case.fault == 0 && !stray {
        flow::zt_remember(&raw const case);
        // Which side opened it was not found out if neither may.
        let found = case.passes() || one_peer && !case.either;
        if memory != remembers::NOTHING && found {
            flow::keep(stored, &case);
        }
    }
    if case.passes() {
        return PASSES;
    }
    reset::passes(skb, &case)
}
