//! Who is at the other end.
//!
//! Usually the address says it. Where several share an address the declared
//! port says it, and else the socket behind it, if it can be seen from here.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_sk_ancestor_cgroup_id, bpf_sk_cgroup_id, bpf_sk_fullsock, bpf_sk_lookup_tcp,
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_ancestor_cgroup_id,
    },
};
use core::ffi::c_void;
use zt_common::{
    MAX_DEPTH,
    address::{AddressKey, Ip, Peer, Workload, is_loopback, peer_flags, unmapped, workload_flags},
    codes::{Direction, Protocol, Reason},
    flow::Owner,
    identity::{self, Number},
};

use crate::{
    case::{Case, outcome},
    decide::layer,
    owner::{self, field},
    rows,
};

/// Finds the peer of `case` for `local`, whose socket is in namespace `netns`
/// (0: not known). `LAYER`: one of [`layer`]. The result is one of [`outcome`].
#[inline(always)]
pub fn find<const LAYER: u8>(
    ctx: *mut c_void,
    case: &mut Case,
    local: &Workload,
    netns: u64,
    peer: &mut Peer,
) -> u32 {
    let own = if local.netns == 0 || LAYER == layer::FRAME {
        namespace::SHARED
    } else if netns == local.netns {
        namespace::OWN
    } else if netns == 0 {
        namespace::UNSEEN
    } else {
        namespace::SHARED
    };
    match zt_by_address(&raw const *case, own, &raw mut *peer) {
        address::KNOWN => return outcome::DECIDED,
        address::EXEMPT => return outcome::EXEMPT,
        address::FORGED => {
            case.fault = Reason::Spoofed as u8;
            return outcome::DECIDED;
        }
        _ => {}
    }
    if own != namespace::OWN {
        let ingress = case.direction as u8 == Direction::Ingress as u8;
        let found = if LAYER == layer::FRAME && ingress {
            if peer.flags & peer_flags::NODE != 0 {
                sender(ctx, case, peer)
            } else {
                NOBODY
            }
        } else {
            behind::<LAYER>(ctx, case, peer)
        };
        match found {
            // Who talks to himself needs nobody's leave.
            PEER if own == namespace::UNSEEN && peer.cgroup == case.cgroup => {
                return outcome::EXEMPT;
            }
            PEER => return outcome::DECIDED,
            UNSEEN => return outcome::LATER,
            _ => {}
        }
    }
    peer.identity = nobody_there(peer.flags & peer_flags::NODE != 0, case.direction);
    outcome::DECIDED
}

/// Whose the network namespace of a socket is.
mod namespace {
    /// Several workloads', or not the workload's own.
    pub const SHARED: u32 = 0;
    /// The workload's alone.
    pub const OWN: u32 = 1;
    /// The workload has one, and the socket was made before our programs, so
    /// its namespace is not known.
    pub const UNSEEN: u32 = 2;
}

/// What an address says of the peer behind it.
mod address {
    /// `peer` is filled in.
    pub const KNOWN: u32 = 0;
    /// Loopback inside a namespace that the workload has for itself.
    pub const EXEMPT: u32 = 1;
    /// Several share it, and nobody declared the port.
    pub const SHARED: u32 = 2;
    /// The workload's own, on a packet that came from outside.
    pub const FORGED: u32 = 3;
}

/// Looks up the address, then the port if it is shared. `own`: one of
/// [`namespace`]. The result is one of [`address`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_by_address(case: *const Case, own: u32, peer: *mut Peer) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(case), Some(peer)) = (unsafe { (case.as_ref(), peer.as_mut()) }) else {
        return address::SHARED;
    };
    let generation = case.cached.generation;
    let mut key = AddressKey {
        ip: case.remote,
        port: 0,
        protocol: 0,
        zero: 0,
    };
    if is_loopback(&case.remote) {
        if own == namespace::OWN && case.inside {
            return address::EXEMPT;
        }
        peer.flags = peer_flags::SHARED;
    } else {
        match rows::address(&key, generation) {
            Some(found) => *peer = found,
            None => *peer = rows::cidr(&case.remote, generation),
        }
        if peer.flags & peer_flags::SHARED == 0 {
            if peer.cgroup != case.cgroup || peer.cgroup == 0 {
                return address::KNOWN;
            }
            return match (own, case.inside) {
                (namespace::OWN, true) => address::EXEMPT,
                (namespace::OWN | namespace::UNSEEN, false)
                    if case.direction as u8 == Direction::Ingress as u8 =>
                {
                    address::FORGED
                }
                // The socket behind it shows who it is.
                (namespace::UNSEEN, true) => address::SHARED,
                _ => address::KNOWN,
            };
        }
    }
    // An ICMP echo's "port" is its identifier, which nobody declares.
    if case.protocol != Protocol::Icmp as u8 {
        key.port = case.remote_port;
    }
    key.protocol = case.protocol;
    match rows::address(&key, generation) {
        Some(declared) => {
            *peer = declared;
            address::KNOWN
        }
        None => address::SHARED,
    }
}

/// The identity of a shared address behind which no socket can be seen.
#[inline(always)]
fn nobody_there(node: bool, direction: Direction) -> Number {
    match (node, direction) {
        (false, _) => identity::UNKNOWN_PEER,
        (true, Direction::Egress) => identity::HOST,
        // It bears the node's address, and nothing shows that the node sent it.
        (true, Direction::Ingress) => identity::MASQUERADED,
    }
}

/// Takes `peer` for one whose flow goes in `direction`: who may be at a node
/// address without a socket depends on that.
#[inline(always)]
pub fn turn(peer: &mut Peer, direction: Direction) {
    const UNSEEN: u32 = peer_flags::NODE | peer_flags::SHARED;
    if peer.flags & UNSEEN == UNSEEN {
        peer.identity = nobody_there(true, direction);
    }
}

/// There is no socket.
const NOBODY: u32 = 0;
/// A socket under the managed root.
const OWNED: u32 = 1;
/// `peer` is filled in.
const PEER: u32 = 2;
/// A socket whose cgroup only a packet program may ask for.
const UNSEEN: u32 = 3;

/// Asks the socket that would receive a packet from this end to the other.
#[inline(never)]
fn behind<const LAYER: u8>(ctx: *mut c_void, case: &Case, peer: &mut Peer) -> u32 {
    let mut owner = Owner::default();
    let sk = lookup(ctx, case);
    if sk.is_null() {
        return NOBODY;
    }
    let answer = owner_of::<LAYER>(sk, &mut owner, peer);
    // SAFETY: `sk` was returned by a lookup that takes a reference.
    unsafe { bpf_sk_release(sk.cast()) };
    if answer == OWNED {
        identify(&owner, case, peer)
    } else {
        answer
    }
}

/// Asks the socket of the node that sent this frame. A forwarded frame has
/// none.
#[inline(never)]
fn sender(ctx: *mut c_void, case: &Case, peer: &mut Peer) -> u32 {
    let skb = ctx.cast::<__sk_buff>();
    // SAFETY: a pointer field of the context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return NOBODY;
    }
    // SAFETY: `sk` is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    let Some(control) = owner::control() else {
        return NOBODY;
    };
    if sk.is_null() {
        return NOBODY;
    }
    if let Some(stored) = owner::storage(sk.cast(), false) {
        return identify(&stored.owner, case, peer);
    }
    // SAFETY: `skb` is the context.
    let root = unsafe { bpf_skb_ancestor_cgroup_id(skb, control.root_level as i32) };
    // A workload's, older than our programs: nobody knows whose. Or one of
    // another network namespace: up to Linux 6.12 at least, a frame keeps its
    // socket across a bridge.
    if root == control.root || !is_of_node(ctx, case) {
        return NOBODY;
    }
    peer.identity = identity::HOST;
    peer.flags = 0;
    PEER
}

/// Whether a socket of the node's own namespace talks to this end. Whoever only
/// listens at that address and port did not send this.
#[inline(always)]
fn is_of_node(ctx: *mut c_void, case: &Case) -> bool {
    const TCP_LISTEN: u32 = 10;
    let sk = lookup(ctx, case);
    if sk.is_null() {
        return false;
    }
    let state = field!((*sk).state);
    // SAFETY: `sk` was returned by a lookup that takes a reference.
    unsafe { bpf_sk_release(sk.cast()) };
    case.protocol != Protocol::Tcp as u8 || state != TCP_LISTEN
}

/// Fills in the peer from whose socket it is.
#[inline(always)]
fn identify(owner: &Owner, case: &Case, peer: &mut Peer) -> u32 {
    let mut workload = Workload::default();
    peer.cgroup = owner::zt_local(&raw const *owner, case.cached.generation, &raw mut workload);
    peer.identity = workload.identity;
    peer.class = 0;
    peer.flags = if workload.flags & workload_flags::ENFORCE != 0 {
        peer_flags::ENFORCE
    } else {
        0
    };
    PEER
}

/// Whose socket `sk` is.
#[inline(always)]
fn owner_of<const LAYER: u8>(sk: *mut bpf_sock, owner: &mut Owner, peer: &mut Peer) -> u32 {
    // Only sockets under the managed root have storage of ours.
    if let Some(stored) = owner::storage(sk.cast(), false) {
        *owner = stored.owner;
        return OWNED;
    }
    if LAYER == layer::CALL {
        return UNSEEN;
    }
    if LAYER == layer::FRAME {
        return NOBODY;
    }
    let Some(control) = owner::control() else {
        return NOBODY;
    };
    let level = control.root_level as i32;
    // SAFETY: `sk` is a referenced full socket.
    unsafe {
        if bpf_sk_ancestor_cgroup_id(sk.cast(), level) != control.root {
            peer.identity = identity::HOST;
            peer.flags = 0;
            return PEER;
        }
        owner.leaf = bpf_sk_cgroup_id(sk.cast());
        for depth in 0..MAX_DEPTH {
            owner.below_root[depth] =
                bpf_sk_ancestor_cgroup_id(sk.cast(), level + 1 + depth as i32);
        }
    }
    OWNED
}

/// The socket of the other end, in the namespace of this one. A function of its
/// own, for its stack.
#[inline(never)]
fn lookup(ctx: *mut c_void, case: &Case) -> *mut bpf_sock {
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: plain integers, all zero is valid.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = fill(&mut tuple, case);
    let tuple = core::ptr::from_mut(&mut tuple);
    // SAFETY: `tuple` is initialised up to `size`.
    unsafe {
        if case.protocol == Protocol::Tcp as u8 {
            if size == V4 {
                bpf_sk_lookup_tcp(ctx, tuple, V4, CURRENT_NETNS, 0)
            } else {
                bpf_sk_lookup_tcp(ctx, tuple, V6, CURRENT_NETNS, 0)
            }
        } else if case.protocol == Protocol::Udp as u8 {
            if size == V4 {
                bpf_sk_lookup_udp(ctx, tuple, V4, CURRENT_NETNS, 0)
            } else {
                bpf_sk_lookup_udp(ctx, tuple, V6, CURRENT_NETNS, 0)
            }
        } else {
            core::ptr::null_mut()
        }
    }
}

/// Sizes of the two forms of a tuple.
const V4: u32 = 12;
const V6: u32 = 36;

/// Fills in the tuple of a packet from this end to the other.
#[inline(always)]
fn fill(tuple: &mut bpf_sock_tuple, case: &Case) -> u32 {
    let (sport, dport) = (case.local_port.to_be(), case.remote_port.to_be());
    let local = if is_unspecified(&case.local) {
        &case.remote
    } else {
        &case.local
    };
    if let (Some(to), Some(from)) = (unmapped(&case.remote), unmapped(local)) {
        let v4 = &mut tuple.__bindgen_anon_1;
        v4.ipv4.saddr = u32::from_ne_bytes(from);
        v4.ipv4.daddr = u32::from_ne_bytes(to);
        v4.ipv4.sport = sport;
        v4.ipv4.dport = dport;
        return V4;
    }
    let v6 = &mut tuple.__bindgen_anon_1;
    v6.ipv6.saddr = words(local);
    v6.ipv6.daddr = words(&case.remote);
    v6.ipv6.sport = sport;
    v6.ipv6.dport = dport;
    V6
}

#[inline(always)]
fn words(ip: &Ip) -> [u32; 4] {
    let word = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

#[inline(always)]
fn is_unspecified(ip: &Ip) -> bool {
    words(ip) == [0; 4]
}
