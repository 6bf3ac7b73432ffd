//! socket(2) and connect(2).

use aya_ebpf::{
    helpers::generated::bpf_get_current_cgroup_id,
    programs::{SockAddrContext, SockContext},
};
use zt_common::{
    address::{AddressKey, mapped},
    policy::PolicyKey,
    state::CountKey,
};

use crate::maps::{
    floor_address, floor_control, floor_count, floor_policy, floor_rulehits, floor_socket,
    floor_totals, floor_workload, quarantined,
};

#[inline(always)]
pub fn create(ctx: &SockContext) {
    if let Some(stored) = floor_socket.of(ctx.sock.cast(), true) {
        // SAFETY: no arguments.
        stored.owner.leaf = unsafe { bpf_get_current_cgroup_id() };
    }
}

/// Up to the first lookup that finds nothing.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext) -> Option<()> {
    let addr = ctx.sock_addr;
    // SAFETY: fields of the context, each read with the width of its type.
    let (sk, ip, port, protocol) = unsafe {
        (
            (*addr).__bindgen_anon_1.sk,
            (&raw const (*addr).user_ip4).read_volatile(),
            (&raw const (*addr).user_port).read_volatile(),
            (&raw const (*addr).protocol).read_volatile(),
        )
    };
    let stored = floor_socket.of(sk.cast(), false)?;
    let control = floor_control.get(0)?;
    // SAFETY: nobody deletes a row while this runs, here and below.
    let workload = unsafe { floor_workload.get(stored.owner.leaf) }?;
    let source = workload.versions[0].value.identity;
    let remote = AddressKey {
        ip: mapped(ip.to_ne_bytes()),
        port: 0,
        protocol: 0,
        zero: 0,
    };
    // SAFETY: as above.
    let peer = unsafe { floor_address.get(remote) }?;
    let destination = peer.versions[0].value.identity;
    if quarantined(source, destination) {
        return None;
    }
    let asked = PolicyKey {
        source,
        destination,
        port: u16::from_be(port as u16),
        protocol: protocol as u8,
        zero: 0,
    };
    // SAFETY: as above.
    let entry = &unsafe { floor_policy.get(asked) }?.versions[0].value.now;
    stored.cached.generation = (control.active >> 32) as u32;
    stored.cached.source = source;
    stored.cached.destination = destination;
    stored.cached.rule = entry.rule;
    stored.cached.verdict = entry.action;
    stored.remote = remote.ip;
    stored.remote_port = asked.port;
    stored.protocol = asked.protocol;
    stored.seen = 0;
    count(source, destination, entry.rule)
}

#[inline(always)]
fn count(source: u32, destination: u32, rule: u32) -> Option<()> {
    let key = CountKey {
        source,
        destination,
        verdict: 1,
        reason: 1,
        direction: 1,
        zero: 0,
    };
    let totals = floor_totals.get_ptr_mut(0)?;
    // SAFETY: values of this CPU; a program that interrupts this one may make
    // a count too small, which nobody reads.
    unsafe { (*totals).decisions += 1 };
    let counter = floor_count.get_ptr_mut(key)?;
    // SAFETY: as above.
    unsafe { *counter += 1 };
    let hits = floor_rulehits.get_ptr_mut(rule)?;
    // SAFETY: as above.
    unsafe { *hits += 1 };
    Some(())
}
