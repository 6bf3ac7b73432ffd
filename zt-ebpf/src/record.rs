//! Counts a decision and sends its event.
//!
//! A packet's program can interrupt a socket hook on the same CPU, so even
//! per-CPU numbers need atomic adds.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_get_smp_processor_id};
use zt_common::{
    event::Event,
    state::{CountKey, Totals},
};

use crate::{
    case::Case,
    decide::now,
    maps::{zt_count_v1, zt_events_v1, zt_rulehits_v1, zt_totals_v1},
};

/// Adds 1 and returns what was there before.
#[inline(always)]
pub fn add_one(counter: *mut u64) -> u64 {
    // SAFETY: points into a map value of this CPU.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::SeqCst }>(
            counter, 1,
        )
    }
}

#[inline(always)]
pub fn totals() -> Option<*mut Totals> {
    zt_totals_v1.get_ptr_mut(0)
}

/// Counts the decision per pair and per rule, and sends its event or counts
/// that as lost.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_record(case: *const Case) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(case), Some(totals)) = (unsafe { case.as_ref() }, totals()) else {
        return 0;
    };
    // SAFETY: a valid map value, see `add_one`.
    let sequence = add_one(unsafe { &raw mut (*totals).decisions });
    if !count(case) {
        // SAFETY: as above.
        add_one(unsafe { &raw mut (*totals).uncounted });
    }
    if case.cached.rule != 0
        && let Some(hits) = zt_rulehits_v1.get_ptr_mut(case.cached.rule)
    {
        add_one(hits);
    }
    let Some(mut slot) = zt_events_v1.reserve(0) else {
        // SAFETY: as above.
        add_one(unsafe { &raw mut (*totals).lost_ring });
        return 0;
    };
    fill(slot.as_mut_ptr(), case, sequence);
    slot.submit(0);
    0
}

#[inline(always)]
fn count(case: &Case) -> bool {
    let key = CountKey {
        source: case.cached.source,
        destination: case.cached.destination,
        verdict: case.cached.verdict,
        reason: case.cached.reason,
        direction: case.cached.opened,
        zero: 0,
    };
    if let Some(counter) = zt_count_v1.get_ptr_mut(key) {
        add_one(counter);
        return true;
    }
    // Insert a zero and look again, so that two first decisions both count.
    let _ = zt_count_v1.insert(key, 0, u64::from(BPF_NOEXIST));
    match zt_count_v1.get_ptr_mut(key) {
        Some(counter) => {
            add_one(counter);
            true
        }
        None => false,
    }
}

/// Writes the event where it is sent from: the stack has no room for it.
#[inline(always)]
fn fill(event: *mut Event, case: &Case, sequence: u64) {
    // SAFETY: `event` is room that was just reserved in the ring.
    unsafe {
        (*event).time = case.start;
        (*event).sequence = sequence;
        (*event).cgroup = case.cgroup;
        (*event).remote = case.remote;
        (*event).source = case.cached.source;
        (*event).destination = case.cached.destination;
        (*event).generation = case.cached.generation;
        (*event).rule = case.cached.rule;
        (*event).would_rule = case.would_rule;
        (*event).latency_ns = (now() - case.start) as u32;
        (*event).remote_port = case.remote_port;
        (*event).local_port = case.local_port;
        (*event).cpu = bpf_get_smp_processor_id() as u16;
        (*event).protocol = case.protocol;
        (*event).hook = case.hook as u8;
        (*event).direction = case.cached.opened;
        (*event).verdict = case.cached.verdict;
        (*event).reason = case.cached.reason;
        (*event).would_verdict = case.would_verdict;
        (*event).interface = case.interface;
    }
}
