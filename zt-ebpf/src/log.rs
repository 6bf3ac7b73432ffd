//! Debug logging through aya-log: denials at `info`, every decision at
//! `debug`. Off unless asked for; then the verifier sees a constant level and
//! removes all of it.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::{debug, info};
use core::{ffi::c_void, net::Ipv6Addr};
use zt_common::codes::Verdict;

use crate::case::Case;

/// The context of whichever program decides.
struct Context(*mut c_void);

impl EbpfContext for Context {
    fn as_ptr(&self) -> *mut c_void {
        self.0
    }
}

/// Says what was decided. A subprogram of its own, so that its stack is used
/// only while it runs.
#[inline(never)]
pub fn decision(ctx: *mut c_void, case: &Case) -> u32 {
    let ctx = Context(ctx);
    let remote = Ipv6Addr::from(case.remote);
    if case.cached.verdict == Verdict::Allow as u8 {
        debug!(
            &ctx,
            "allow {} -> {}: remote {:i}, port {} -> {}, protocol {}, reason {}, rule {}",
            case.cached.source,
            case.cached.destination,
            remote,
            case.local_port,
            case.remote_port,
            case.protocol,
            case.cached.reason,
            case.cached.rule
        );
    } else {
        info!(
            &ctx,
            "deny {} -> {}: remote {:i}, port {} -> {}, protocol {}, reason {}, rule {}",
            case.cached.source,
            case.cached.destination,
            remote,
            case.local_port,
            case.remote_port,
            case.protocol,
            case.cached.reason,
            case.cached.rule
        );
    }
    0
}
