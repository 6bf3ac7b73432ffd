//! Cached verdicts: when one may be used, and where a new one is kept.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use zt_common::{
    codes::{Direction, Protocol, Reason, Verdict},
    flow::{Cached, Flow, SHARE_WINDOW, Share, Socket},
    reset::owed,
    state::Control,
    version::same,
};

use crate::{
    case::Case,
    decide::{generations, now},
    maps::{zt_flow_v1, zt_share_v1, zt_spill_v1},
    record::{add_one, totals},
    rows,
};

const DENY: u8 = Verdict::Deny as u8;

/// Whether `cached` still says what a decision would say now.
///
/// - Everything cached in the active generation holds, and so does an allow
///   that no narrowing change came after.
/// - Quarantine is looked up each time: it takes effect with one map write.
/// - A grant holds until its deadline, by the kernel's own clock.
#[inline(always)]
pub fn is_fresh(cached: &Cached, control: &Control) -> bool {
    let (generation, narrowed) = generations(control);
    let current = cached.generation == generation;
    let allowed = cached.verdict == Verdict::Allow as u8 && cached.generation >= narrowed;
    if cached.verdict == 0 || !(current || allowed) {
        return false;
    }
    let quarantined = rows::quarantined(cached.source) || rows::quarantined(cached.destination);
    if quarantined != (cached.reason == Reason::Quarantined as u8) {
        return false;
    }
    cached.deadline == 0 || now() < cached.deadline
}

/// Keeps the verdict of `case`, which the flow table has just said, with its
/// socket.
#[inline(always)]
pub fn keep(stored: &mut Socket, case: &Case) {
    stored.cached = case.cached;
    stored.remote = case.remote;
    stored.remote_port = case.remote_port;
    stored.local_port = case.local_port;
    stored.protocol = case.protocol;
    stored.seen = coarse_now();
}

/// Whether the socket remembers, perhaps from an earlier generation, what was
/// decided for the peer of `case`.
#[inline(always)]
pub fn is_remembered(case: &Case, stored: &Socket) -> bool {
    case.fault == 0
        && stored.cached.verdict != 0
        && case.may_use(&stored.cached)
        && stored.protocol == case.protocol
        && stored.remote_port == case.remote_port
        && stored.remote == case.remote
}

/// Whether a datagram socket itself knows that this passes. A denial, and what
/// the flow table has not been asked for a while, goes to the table.
#[inline(always)]
pub fn passes_by_socket(case: &Case, stored: &Socket, control: &Control) -> bool {
    is_remembered(case, stored)
        && stored.local_port == case.local_port
        && stored.cached.verdict == Verdict::Allow as u8
        && coarse_now().saturating_sub(stored.seen) < control.datagram_idle / 4
        && is_fresh(&stored.cached, control)
}

/// Coarse monotonic time: cheap, and precise enough for idle timers.
#[inline(always)]
pub fn coarse_now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// What the flow table knows of a packet.
pub mod hit {
    /// Drop it.
    pub const DENY: u32 = 0;
    /// Let it pass.
    pub const PASS: u32 = 1;
    /// Decide; nothing is known.
    pub const MISS: u32 = 2;
    /// Decide; the flow was opened by this end.
    pub const STALE_EGRESS: u32 = 3;
    /// Decide; the flow was opened by the other end.
    pub const STALE_INGRESS: u32 = 4;
    /// Decide as for [`MISS`], unless it is a reset that is owed to the end of
    /// the flow.
    pub const CUT: u32 = 5;
}

/// Whether the SYN was decided already, by another layer or before it was sent
/// again.
#[inline(always)]
fn is_same_syn(case: &Case, flow: &Flow) -> bool {
    case.cached.sequence != 0 && case.cached.sequence == flow.cached.sequence
}

/// Looks up the flow of `case`, which goes in `case.direction`. `opening`: it
/// can only be answered by a denial in the same direction, or by what was said
/// of this very SYN. Anything else that was allowed was another connection,
/// perhaps of somebody else who had the port before.
/// The result is one of [`hit`]; with `PASS` the verdict is in the case, and
/// else what it owes if it is denied.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_flow(case: *mut Case, opening: u32) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return hit::DENY;
    };
    let Some(control) = crate::owner::control() else {
        return hit::DENY;
    };
    let key = case.flow_key();
    let found = match zt_flow_v1.get_ptr_mut(key) {
        Some(flow) => Some(flow),
        None => zt_spill_v1.get_ptr_mut(key),
    };
    // SAFETY: a pointer into a map value; the value repeats its key, which is
    // checked before anything else of it is believed.
    let Some(flow) = found.and_then(|flow| unsafe { flow.as_mut() }) else {
        return hit::MISS;
    };
    if !same(&flow.key, &key) || !case.may_use(&flow.cached) {
        return hit::MISS;
    }
    let same = flow.cached.opened == case.direction as u8;
    let passes = flow.cached.verdict != DENY;
    let at = coarse_now();
    let datagram = case.protocol != Protocol::Tcp as u8;
    if datagram && at.saturating_sub(flow.seen) > control.datagram_idle {
        return hit::MISS;
    }
    // A denial answers only the direction it was made for, or the other end
    // could poison a flow of ours by sending first.
    if !same && !passes || opening != 0 && (!same || passes && !is_same_syn(case, flow)) {
        // Nor by asking under the identifier of what it was asked.
        case.aside = datagram && !same && passes;
        if opening != 0 || flow.cached.owed == 0 {
            return hit::MISS;
        }
        case.cached.owed = flow.cached.owed;
        return hit::CUT;
    }
    if !is_fresh(&flow.cached, control) {
        case.cached.owed = if !passes {
            flow.cached.owed
        } else if opening != 0 || datagram {
            0
        } else {
            owed::ALL
        };
        return if opening != 0 {
            hit::MISS
        } else if flow.cached.opened == Direction::Egress as u8 {
            hit::STALE_EGRESS
        } else {
            hit::STALE_INGRESS
        };
    }
    if !passes {
        // Packets do not keep a denial alive: what it rests on, such as whose
        // socket is behind a shared address, changes without a generation.
        case.cached.owed = flow.cached.owed;
        return hit::DENY;
    }
    flow.seen = at;
    case.cached = flow.cached;
    hit::PASS
}

/// Takes the fresh verdict that the connect hook has for this socket and peer
/// into the case and the flow table; 0: there is none.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_adopt(case: *mut Case, stored: *const Socket) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(case), Some(stored)) = (unsafe { (case.as_mut(), stored.as_ref()) }) else {
        return 0;
    };
    let Some(control) = crate::owner::control() else {
        return 0;
    };
    if !is_remembered(case, stored) || !is_fresh(&stored.cached, control) {
        return 0;
    }
    let sequence = case.cached.sequence;
    case.cached = stored.cached;
    case.cached.sequence = sequence;
    // What is owed is owed where it is spent.
    case.cached.owed = 0;
    zt_remember(&raw const *case);
    1
}

/// Remembers the verdict of `case`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_remember(case: *const Case) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    if case.aside {
        return 0;
    }
    let flow = Flow {
        cached: case.cached,
        seen: coarse_now(),
        key: case.flow_key(),
    };
    let failed = if case.passes() && within_share(case.cgroup, flow.seen) {
        // An entry left in the spill table would hide nothing (the main one
        // is looked up first) but would come back when that is evicted.
        let _ = zt_spill_v1.remove(flow.key);
        zt_flow_v1.insert(flow.key, flow, 0).is_err()
    } else {
        let _ = zt_flow_v1.remove(flow.key);
        zt_spill_v1.insert(flow.key, flow, 0).is_err()
    };
    if failed && let Some(totals) = totals() {
        // SAFETY: a valid map value of this CPU.
        add_one(unsafe { &raw mut (*totals).flow_full });
    }
    0
}

/// Whether this cgroup may put one more flow into the main table in this
/// window: it must not crowd out the flows of the others.
#[inline(always)]
fn within_share(cgroup: u64, at: u64) -> bool {
    let Some(control) = crate::owner::control() else {
        return false;
    };
    let window = at / SHARE_WINDOW;
    // SAFETY: a valid map value; a lost race miscounts by one flow.
    let Some(share) = zt_share_v1
        .get_ptr_mut(cgroup)
        .and_then(|share| unsafe { share.as_mut() })
    else {
        let _ = zt_share_v1.insert(cgroup, Share { window, flows: 1 }, 0);
        return true;
    };
    if share.window != window {
        share.window = window;
        share.flows = 0;
    }
    if add_one(&raw mut share.flows) < control.flow_share {
        return true;
    }
    if let Some(totals) = totals() {
        // SAFETY: a valid map value of this CPU.
        add_one(unsafe { &raw mut (*totals).flow_spilled });
    }
    false
}
