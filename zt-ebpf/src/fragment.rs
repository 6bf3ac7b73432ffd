//! Fragments: only the first one carries the ports. The others pass if it did.

use zt_common::{
    address::unmapped,
    flow::{FRAGMENT_TIME, Fragment, FragmentKey},
    version::same,
};

use crate::{
    case::Case,
    flow::{coarse_now, is_fresh},
    maps::zt_fragment_v1,
    owner,
    record::{add_one, totals},
};

/// The protocol of every fragment of IPv6: what it says of the next header is
/// not the same in all of them (RFC 8200).
const IPV6_FRAGMENT: u8 = 44;

#[inline(always)]
fn key(case: &Case) -> FragmentKey {
    FragmentKey {
        remote: case.remote,
        cgroup: case.cgroup,
        identification: case.identification,
        protocol: if unmapped(&case.remote).is_some() {
            case.protocol
        } else {
            IPV6_FRAGMENT
        },
        direction: if case.hook as u8 == zt_common::codes::Hook::TcFrom as u8 {
            zt_common::codes::Direction::Egress as u8
        } else {
            zt_common::codes::Direction::Ingress as u8
        },
        zero: [0; 2],
    }
}

/// Remembers that the datagram passes, if `case` is its first fragment.
#[inline(always)]
pub fn remember(case: &Case) {
    if case.header_end != 0 {
        zt_first_fragment(&raw const *case);
    }
}

/// See [`remember`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_first_fragment(case: *const Case) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let key = key(case);
    let fragment = Fragment {
        cached: case.cached,
        seen: coarse_now(),
        key,
        header_end: case.header_end,
        zero: 0,
    };
    if zt_fragment_v1.insert(key, fragment, 0).is_err()
        && let Some(totals) = totals()
    {
        // SAFETY: a valid map value of this CPU.
        add_one(unsafe { &raw mut (*totals).flow_full });
    }
    0
}

/// Whether a later fragment belongs to a datagram that passes: 1 or 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_later_fragment(case: *const Case) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(case), Some(control)) = (unsafe { case.as_ref() }, owner::control()) else {
        return 0;
    };
    let key = key(case);
    let Some(first) = zt_fragment_v1.get_ptr(key) else {
        return 0;
    };
    // SAFETY: a pointer into a map value; the value repeats its key.
    let first = unsafe { &*first };
    let in_time = coarse_now().saturating_sub(first.seen) < FRAGMENT_TIME;
    let passes = in_time
        && case.header_end >= first.header_end
        && is_fresh(&first.cached, control)
        && same(&first.key, &key);
    u32::from(passes)
}
