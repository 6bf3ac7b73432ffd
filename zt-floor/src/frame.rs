//! Frames on the host side of a workload's veth.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use zt_common::{
    address::{AddressKey, Ip, mapped},
    flow::FlowKey,
};

use crate::maps::{floor_address, floor_control, floor_flow, floor_interface, quarantined};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
const IPV4: usize = 20;

#[inline(always)]
pub fn from_workload(ctx: &TcContext) -> Option<()> {
    let skb = ctx.skb.skb;
    is_ipv4(skb)?;
    let (_, remote, protocol) = addresses(skb, ETHERNET)?;
    let (local_port, remote_port) = ports(skb, ETHERNET)?;
    known(skb, remote, remote_port, local_port, protocol)
}

#[inline(always)]
pub fn to_workload(ctx: &TcContext) -> Option<()> {
    let skb = ctx.skb.skb;
    is_ipv4(skb)?;
    let (remote, _, protocol) = addresses(skb, ETHERNET)?;
    let (remote_port, local_port) = ports(skb, ETHERNET)?;
    let sender = AddressKey {
        ip: remote,
        port: 0,
        protocol: 0,
        zero: 0,
    };
    // SAFETY: nobody deletes a row while this runs.
    unsafe { floor_address.get(sender) }?;
    known(skb, remote, remote_port, local_port, protocol)
}

/// What every frame looks up.
#[inline(always)]
fn known(
    skb: *mut __sk_buff,
    remote: Ip,
    remote_port: u16,
    local_port: u16,
    protocol: u8,
) -> Option<()> {
    floor_control.get(0)?;
    // SAFETY: a field of the context.
    let interface = unsafe { (&raw const (*skb).ifindex).read_volatile() };
    // SAFETY: nobody deletes a row while this runs.
    let row = unsafe { floor_interface.get(interface) }?;
    flow(&FlowKey {
        remote,
        cgroup: row.versions[0].value.cgroup,
        remote_port,
        local_port,
        protocol,
        zero: [0; 3],
    })
}

/// What is looked up of a flow that is known.
#[inline(always)]
pub fn flow(key: &FlowKey) -> Option<()> {
    let flow = floor_flow.get_ptr_mut(key)?;
    // SAFETY: a valid map value.
    let flow = unsafe { &mut *flow };
    flow.seen += 1;
    (!quarantined(flow.cached.source, flow.cached.destination)).then_some(())
}

#[inline(always)]
fn is_ipv4(skb: *mut __sk_buff) -> Option<()> {
    let kind: [u8; 2] = read(skb, 12)?;
    (kind == [0x08, 0x00]).then_some(())
}

/// Sender, receiver and protocol of an IPv4 packet whose header is at `base`.
#[inline(always)]
pub fn addresses(skb: *mut __sk_buff, base: usize) -> Option<(Ip, Ip, u8)> {
    let header: [u8; IPV4] = read(skb, base)?;
    if header[0] != 0x45 {
        return None;
    }
    let [.., a, b, c, d, e, f, g, h] = header;
    Some((mapped([a, b, c, d]), mapped([e, f, g, h]), header[9]))
}

/// Source and destination port behind an IPv4 header at `base`.
#[inline(always)]
pub fn ports(skb: *mut __sk_buff, base: usize) -> Option<(u16, u16)> {
    let [a, b, c, d]: [u8; 4] = read(skb, base + IPV4)?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// Bytes of the packet's linear part.
#[inline(always)]
fn read<const N: usize>(skb: *mut __sk_buff, offset: usize) -> Option<[u8; N]> {
    // SAFETY: fields of the context; the verifier knows them as the bounds of
    // the packet's linear part.
    let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let from = start + offset;
    if from + N > end {
        return None;
    }
    // SAFETY: inside the packet, as just compared.
    Some(unsafe { core::ptr::read_unaligned(from as *const [u8; N]) })
}
