//! Packets of sockets.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_fullsock, bpf_skb_cgroup_id},
    programs::SkBuffContext,
};
use zt_common::{
    address::Ip,
    flow::{Flow, FlowKey, Socket},
};

use crate::{
    frame::{addresses, flow, ports},
    maps::{
        floor_control, floor_flow, floor_share, floor_socket, floor_spill, floor_workload,
        quarantined,
    },
};

#[inline(always)]
pub fn received(ctx: &SkBuffContext) -> Option<()> {
    known(ctx.skb.skb).map(drop)
}

#[inline(always)]
pub fn sent(ctx: &SkBuffContext) -> Option<()> {
    let skb = ctx.skb.skb;
    let stored = known(skb)?;
    if stored.seen == 0 {
        remember(skb, stored)?;
        stored.seen = 1;
    }
    Some(())
}

#[inline(always)]
pub fn sent_by_new(ctx: &SkBuffContext) -> Option<()> {
    let skb = ctx.skb.skb;
    let (_, remote, protocol) = addresses(skb, 0)?;
    let (local_port, remote_port) = ports(skb, 0)?;
    of_new(skb, remote, remote_port, local_port, protocol)
}

#[inline(always)]
pub fn received_by_new(ctx: &SkBuffContext) -> Option<()> {
    let skb = ctx.skb.skb;
    let (remote, _, protocol) = addresses(skb, 0)?;
    let (remote_port, local_port) = ports(skb, 0)?;
    of_new(skb, remote, remote_port, local_port, protocol)
}

/// What a packet looks up of a socket that is not known, and of a flow that is.
#[inline(always)]
fn of_new(
    skb: *mut __sk_buff,
    remote: Ip,
    remote_port: u16,
    local_port: u16,
    protocol: u8,
) -> Option<()> {
    let sk = socket(skb)?;
    floor_control.get(0)?;
    let stored = floor_socket.of(sk.cast(), true)?;
    // SAFETY: `skb` is the context.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    stored.owner.leaf = cgroup;
    // SAFETY: nobody deletes a row while this runs.
    unsafe { floor_workload.get(cgroup) }?;
    flow(&FlowKey {
        remote,
        cgroup,
        remote_port,
        local_port,
        protocol,
        zero: [0; 3],
    })
}

/// What every packet looks up.
#[inline(always)]
fn known<'a>(skb: *mut __sk_buff) -> Option<&'a mut Socket> {
    let sk = socket(skb)?;
    floor_control.get(0)?;
    let stored = floor_socket.of(sk.cast(), false)?;
    (!quarantined(stored.cached.source, stored.cached.destination)).then_some(stored)
}

#[inline(always)]
fn socket(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: a pointer field of the context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    (!sk.is_null()).then_some(sk)
}

/// Puts the flow of a first packet into the table.
#[inline(always)]
fn remember(skb: *mut __sk_buff, stored: &Socket) -> Option<()> {
    let cgroup = stored.owner.leaf;
    // SAFETY: nobody deletes a row while this runs.
    unsafe { floor_workload.get(cgroup) }?;
    let (source, _) = ports(skb, 0)?;
    let key = FlowKey {
        remote: stored.remote,
        cgroup,
        remote_port: stored.remote_port,
        local_port: source,
        protocol: stored.protocol,
        zero: [0; 3],
    };
    if floor_flow.get_ptr_mut(key).is_some() || floor_spill.get_ptr_mut(key).is_some() {
        return Some(());
    }
    let share = floor_share.get_ptr_mut(cgroup)?;
    // SAFETY: a valid map value; a lost race miscounts by one flow.
    unsafe { (*share).flows += 1 };
    let flow = Flow {
        cached: stored.cached,
        seen: 1,
        key,
    };
    let _ = floor_spill.remove(key);
    floor_flow.insert(key, flow, 0).ok()
}
