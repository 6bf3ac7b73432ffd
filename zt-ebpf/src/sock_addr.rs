//! Socket calls that name an address: connect, sendmsg, bind.
//!
//! They give the caller an error at once. Where they cannot be sure whose
//! socket it is, or who is behind an address, they let the packet layer decide.

use aya_ebpf::{bindings::bpf_sock, programs::SockAddrContext};
use zt_common::{
    address::{AddressKey, Ip, Workload, mapped, workload_flags},
    codes::{Direction, Hook, Protocol, Reason, Verdict},
    flow::Socket,
    identity,
    verdict::Judgement,
};

use crate::{
    case::{Case, outcome},
    decide::{apply, decide, generations, layer, now},
    flow::{self, hit},
    owner::{self, field},
    record, rows,
};

const PASS: bool = true;
const DENY: bool = false;

const ICMPV6: u32 = 58;

/// The address that the call names.
#[inline(always)]
fn address(ctx: &SockAddrContext, v6: bool) -> Ip {
    let addr = ctx.sock_addr;
    if !v6 {
        return mapped(field!((*addr).user_ip4).to_ne_bytes());
    }
    let words = [
        field!((*addr).user_ip6[0]).to_ne_bytes(),
        field!((*addr).user_ip6[1]).to_ne_bytes(),
        field!((*addr).user_ip6[2]).to_ne_bytes(),
        field!((*addr).user_ip6[3]).to_ne_bytes(),
    ];
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = words;
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// To the unspecified address means to loopback, as the kernel sees it. A
/// function of its own: the entry point has no stack left.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_unspecified(case: *mut Case) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    let ip = &mut case.remote;
    let word = |at: usize| u32::from_be_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    if word(0) | word(4) | word(12) != 0 {
        return 0;
    }
    match word(8) {
        0 => ip[15] = 1,
        0xffff => (ip[12], ip[15]) = (127, 1),
        _ => {}
    }
    0
}

/// The port that the call names, host byte order.
#[inline(always)]
fn port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(field!((*ctx.sock_addr).user_port) as u16)
}

/// The storage of the socket; `None` if it was made before our programs.
#[inline(always)]
fn storage<'a>(sk: *mut bpf_sock) -> Option<&'a mut Socket> {
    owner::storage(sk.cast(), false).or_else(|| owner::of_subflow(sk))
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: a pointer field of the context, never null in these programs.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// The protocol as rules name it: ICMPv6 is ICMP.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    match field!((*ctx.sock_addr).protocol) {
        ICMPV6 => Protocol::Icmp as u8,
        other => other as u8,
    }
}

/// The case of a call that would open a flow.
#[inline(always)]
fn case(ctx: &SockAddrContext, sk: *mut bpf_sock, hook: Hook, v6: bool) -> Case {
    let mut case = Case::new(hook, Direction::Egress);
    case.remote = address(ctx, v6);
    case.protocol = protocol(ctx);
    case.local_port = owner::facts(sk).local_port;
    let icmp = case.protocol == Protocol::Icmp as u8;
    case.remote_port = if icmp { 0 } else { port(ctx) };
    case.fault = if !matches!(case.protocol, 1 | 6 | 17) {
        Reason::UnsupportedProtocol as u8
    } else if case.remote_port == 0 && !icmp {
        Reason::Unparseable as u8
    } else {
        0
    };
    case
}

/// connect(2): TCP opens, a datagram socket gets its peer.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, hook: Hook) -> bool {
    // getaddrinfo(3) connects UDP sockets to port 0 to learn its own source
    // address. Nothing is sent, and whatever is sent later is decided.
    if protocol(ctx) == Protocol::Udp as u8 && port(ctx) == 0 {
        return PASS;
    }
    let sk = socket(ctx);
    let Some(stored) = storage(sk) else {
        return PASS;
    };
    let v6 = hook as u8 == Hook::Connect6 as u8;
    if may_again(ctx, sk, stored, v6) {
        return PASS;
    }
    let mut case = case(ctx, sk, hook, v6);
    zt_unspecified(&raw mut case);
    if decide::<{ layer::CALL }>(ctx.sock_addr.cast(), &mut case, Some(&stored.owner))
        == outcome::LATER
    {
        // An earlier verdict for this address was about somebody else.
        stored.cached.verdict = 0;
        return PASS;
    }
    stored.cached = case.cached;
    stored.remote = case.remote;
    stored.remote_port = case.remote_port;
    stored.local_port = case.local_port;
    stored.protocol = case.protocol;
    // The flow table does not know it yet.
    stored.seen = 0;
    case.passes()
}

/// Whether a UDP socket asks for the peer that it asked for last, and still may reach
/// it: that opens nothing, and what it sends is looked at anyway.
#[inline(always)]
fn may_again(ctx: &SockAddrContext, sk: *mut bpf_sock, stored: &Socket, v6: bool) -> bool {
    protocol(ctx) == Protocol::Udp as u8
        && stored.protocol == Protocol::Udp as u8
        && stored.cached.verdict == Verdict::Allow as u8
        && stored.cached.opened == Direction::Egress as u8
        && stored.remote_port == port(ctx)
        && stored.local_port == owner::facts(sk).local_port
        && stored.remote == address(ctx, v6)
        && owner::control().is_some_and(|control| flow::is_fresh(&stored.cached, control))
}

/// sendmsg(2) on a UDP socket with an address.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, hook: Hook) -> bool {
    let sk = socket(ctx);
    let Some(stored) = owner::storage(sk.cast(), false) else {
        return PASS;
    };
    let mut case = case(ctx, sk, hook, hook as u8 == Hook::Sendmsg6 as u8);
    zt_unspecified(&raw mut case);
    if case.fault == 0 {
        if let Some(control) = owner::control()
            && flow::passes_by_socket(&case, stored, control)
        {
            return PASS;
        }
        case.cgroup = owner::zt_home(&raw mut *stored);
        match flow::zt_flow(&raw mut case, 0) {
            hit::PASS => {
                flow::keep(stored, &case);
                return PASS;
            }
            hit::DENY => return DENY,
            hit::STALE_INGRESS => case.direction = Direction::Ingress,
            _ => {}
        }
    }
    if decide::<{ layer::CALL }>(ctx.sock_addr.cast(), &mut case, Some(&stored.owner))
        == outcome::LATER
    {
        return PASS;
    }
    if case.fault == 0 {
        flow::zt_remember(&raw const case);
        if case.passes() {
            flow::keep(stored, &case);
        }
    }
    case.passes()
}

/// bind(2): a port that the node model gives to another workload of the same
/// address is refused.
#[inline(always)]
pub fn bind(ctx: &SockAddrContext, hook: Hook) -> bool {
    let port = port(ctx);
    let (Some(stored), Some(control)) = (storage(socket(ctx)), owner::control()) else {
        return PASS;
    };
    if port == 0 {
        return PASS;
    }
    let (generation, _) = generations(control);
    let mut local = Workload::default();
    let cgroup = owner::zt_local(&raw const stored.owner, generation, &raw mut local);
    if local.netns != 0 && local.netns == stored.owner.netns {
        return PASS;
    }
    let mut key = AddressKey {
        ip: address(ctx, hook as u8 == Hook::Bind6 as u8),
        port,
        protocol: protocol(ctx),
        zero: 0,
    };
    // Declared ports stand under the unspecified address of either family.
    if key.ip == mapped([0; 4]) {
        key.ip = [0; 16];
    }
    let Some(declared) = rows::address(&key, generation) else {
        return PASS;
    };
    let nobodys = declared.cgroup == 0 && declared.identity != identity::CONFLICT;
    if declared.cgroup == cgroup || nobodys {
        return PASS;
    }
    let mut case = Case::new(hook, Direction::Ingress);
    case.start = now();
    case.remote = key.ip;
    case.local_port = port;
    case.protocol = key.protocol;
    case.cgroup = cgroup;
    case.cached.generation = generation;
    case.cached.source = declared.identity;
    case.cached.destination = local.identity;
    let enforce = local.flags & workload_flags::ENFORCE != 0;
    let judgement = Judgement::denied(Reason::PortOwned, enforce);
    apply(&mut case, Direction::Ingress, &judgement);
    record::zt_record(&raw const case);
    judgement.passes()
}
