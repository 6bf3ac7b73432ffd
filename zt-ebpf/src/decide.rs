//! The one decision: gather the facts, let [`zt_common::verdict::judge`] say.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use core::ffi::c_void;
use zt_common::{
    address::{Peer, Workload, peer_flags, workload_flags},
    codes::{Direction, Protocol, Reason, Verdict},
    flow::Owner,
    identity,
    policy::{Entry, PolicyKey},
    state::{Control, control_flags},
    verdict::{Facts, Judgement, judge},
    version::Generation,
};

use crate::{
    case::{Case, outcome},
    log, owner, peer, record, rows,
};

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The active generation and the last narrowing one, read in one load.
#[inline(always)]
pub fn generations(control: &Control) -> (Generation, Generation) {
    // SAFETY: an aligned field of a valid reference; volatile because the
    // agent writes it while we run.
    Control::unpack(unsafe { core::ptr::read_volatile(&raw const control.active) })
}

/// What kind of program decides: it says what can be asked of the kernel.
pub mod layer {
    /// A socket call.
    pub const CALL: u8 = 0;
    /// A packet of a socket (`cgroup_skb`).
    pub const PACKET: u8 = 1;
    /// A frame on the host side of a veth (`tc`).
    pub const FRAME: u8 = 2;
}

/// Decides, counts and records. `LAYER`: one of [`layer`].
///
/// `owner`: whose the socket is; without one `case.cgroup` says it.
///
/// A denial is looked at twice: while a row is overwritten in place a lookup
/// can miss it for an instant (a few in millions).
#[inline(never)]
pub fn decide<const LAYER: u8>(ctx: *mut c_void, case: &mut Case, owner: Option<&Owner>) -> u32 {
    let Some(control) = owner::control() else {
        // Cannot happen: the array has one element. Deny if it does.
        case.cached.verdict = Verdict::Deny as u8;
        return outcome::DECIDED;
    };
    case.start = now();
    let (generation, _) = generations(control);
    case.cached.generation = generation;
    if generation == 0 {
        // Before the first generation nothing is known, so nothing passes.
        if let Some(owner) = owner {
            case.cgroup = owner.leaf;
        }
        zt_not_ready(&raw mut *case);
        record::zt_record(case);
        log::decision(ctx, case);
        return outcome::DECIDED;
    }
    for _ in 0..2 {
        match once::<LAYER>(ctx, case, owner) {
            outcome::DECIDED => {}
            other => {
                exempt(case);
                return other;
            }
        }
        if is_allow(case) {
            break;
        }
    }
    record::zt_record(case);
    log::decision(ctx, case);
    outcome::DECIDED
}

/// Denies because no policy was ever active. A function of its own, for its
/// stack.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_not_ready(case: *mut Case) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    if let Some(case) = unsafe { case.as_mut() } {
        let judgement = Judgement::denied(Reason::NotReady, true);
        apply(case, case.direction, &judgement);
    }
    0
}

/// What is exempt can be cached like an allow; it has no reason and no ends,
/// and is neither counted nor recorded.
#[inline(always)]
fn exempt(case: &mut Case) {
    case.cached.deadline = 0;
    case.cached.source = identity::NOBODY;
    case.cached.destination = identity::NOBODY;
    case.cached.rule = 0;
    case.cached.verdict = Verdict::Allow as u8;
    case.cached.reason = 0;
    case.cached.opened = case.direction as u8;
    case.cached.owed = 0;
}

#[inline(always)]
fn is_allow(case: &Case) -> bool {
    case.cached.verdict == Verdict::Allow as u8
}

#[inline(always)]
fn once<const LAYER: u8>(ctx: *mut c_void, case: &mut Case, owner: Option<&Owner>) -> u32 {
    let mut local = Workload::default();
    let netns = if let Some(owner) = owner {
        case.cgroup = owner::zt_local(owner, case.cached.generation, &raw mut local);
        owner.netns
    } else {
        owner::zt_enrolled(case.cgroup, case.cached.generation, &raw mut local);
        0
    };
    let mut peer = Peer::default();
    match peer::find::<LAYER>(ctx, case, &local, netns, &mut peer) {
        outcome::DECIDED => {}
        other => return other,
    }
    if peer.cgroup != 0 {
        // Its own end is cut as well, and needs no reset.
        case.cached.owed = 0;
    }
    zt_weigh(
        case,
        &raw const local,
        &raw const peer,
        case.direction as u32,
    );
    if case.either && !is_allow(case) {
        peer::turn(&mut peer, case.direction.reverse());
        zt_weigh(
            case,
            &raw const local,
            &raw const peer,
            case.direction.reverse() as u32,
        );
        if is_allow(case) {
            case.cached.reason = Reason::AllowedReverse as u8;
        } else {
            // The denial that is recorded is the one of its own direction.
            peer::turn(&mut peer, case.direction);
            zt_weigh(
                case,
                &raw const local,
                &raw const peer,
                case.direction as u32,
            );
        }
    }
    outcome::DECIDED
}

/// Looks up what the policy says of `local` and `peer` in `direction` (a
/// [`Direction`]) and judges.
///
/// A global function, as are the others with a `zt_` name that are no entry
/// points: the verifier looks at it once, not once per path that leads to it.
/// That is why its pointers can be null as far as it knows.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_weigh(
    case: *mut Case,
    local: *const Workload,
    peer: *const Peer,
    direction: u32,
) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (case, local, peer) = unsafe { (case.as_mut(), local.as_ref(), peer.as_ref()) };
    let (Some(case), Some(local), Some(peer)) = (case, local, peer) else {
        return 0;
    };
    let Some(control) = owner::control() else {
        return 0;
    };
    let generation = case.cached.generation;
    let direction = if direction == Direction::Egress as u32 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    let quarantined = rows::quarantined(local.identity) || rows::quarantined(peer.identity);
    let mut key = key(case, local, peer, direction);
    case.cached.source = key.source;
    case.cached.destination = key.destination;
    if case.fault != 0 && !quarantined {
        let reason = Reason::from_code(case.fault).unwrap_or(Reason::Unparseable);
        let enforce = is_enforced(local, peer);
        apply(case, direction, &Judgement::denied(reason, enforce));
        return 0;
    }
    let mut entry = Entry::default();
    rows::zt_entry(&raw mut key, generation, &raw mut entry);
    let mut class = Entry::default();
    if peer.class != 0 {
        match direction {
            Direction::Egress => {
                key.destination = peer.class;
                // A CIDR means what this end sees.
                key.port = seen_port(case);
            }
            Direction::Ingress => key.source = peer.class,
        }
        rows::zt_entry(&raw mut key, generation, &raw mut class);
    }
    // Late: what is kept over a call needs stack, of which kernels before 6.6 round
    // every function's share up to 32 bytes.
    let facts = facts(case, local, peer, direction, control, quarantined);
    apply(case, direction, &judge(&facts, &entry, &class));
    0
}

#[inline(always)]
fn is_enforced(local: &Workload, peer: &Peer) -> bool {
    local.flags & workload_flags::ENFORCE != 0 || peer.flags & peer_flags::ENFORCE != 0
}

#[inline(always)]
fn facts(
    case: &Case,
    local: &Workload,
    peer: &Peer,
    direction: Direction,
    control: &Control,
    quarantined: bool,
) -> Facts {
    Facts {
        quarantined,
        host: local.identity == identity::HOST,
        unenrolled: local.identity == identity::UNENROLLED,
        shut: local.is_shut(),
        peer: peer.identity,
        host_may_reach: control.flags & control_flags::HOST_MAY_REACH != 0
            && peer.identity == identity::HOST
            && direction as u8 == Direction::Ingress as u8,
        enforce: is_enforced(local, peer),
        now: case.start,
    }
}

#[inline(always)]
fn key(case: &Case, local: &Workload, peer: &Peer, direction: Direction) -> PolicyKey {
    let icmp = case.protocol == Protocol::Icmp as u8;
    let (source, destination, port) = match direction {
        Direction::Egress if peer.port != 0 => (local.identity, peer.identity, peer.port),
        Direction::Egress => (local.identity, peer.identity, seen_port(case)),
        Direction::Ingress if icmp => (peer.identity, local.identity, 0),
        Direction::Ingress => (peer.identity, local.identity, case.local_port),
    };
    PolicyKey {
        source,
        destination,
        port,
        protocol: case.protocol,
        zero: 0,
    }
}

/// The destination port of what this end sends, as rules have it.
#[inline(always)]
fn seen_port(case: &Case) -> u16 {
    if case.protocol == Protocol::Icmp as u8 {
        0
    } else {
        case.remote_port
    }
}

/// Writes a judgement into the case.
#[inline(always)]
pub fn apply(case: &mut Case, direction: Direction, judgement: &Judgement) {
    case.cached.deadline = judgement.deadline;
    case.cached.rule = judgement.rule;
    case.cached.verdict = judgement.verdict as u8;
    case.cached.reason = judgement.reason as u8;
    case.cached.opened = direction as u8;
    if judgement.passes() {
        case.cached.owed = 0;
    }
    case.would_verdict = match (judgement.reason.is_allow(), judgement.would.is_allow()) {
        (true, false) => Verdict::Deny as u8,
        (false, true) => Verdict::Allow as u8,
        _ => 0,
    };
    case.would_rule = if case.would_verdict == 0 {
        0
    } else {
        judgement.would_rule
    };
}
