//! Records of the size of ours, and nothing else.
#![expect(
    non_upper_case_globals,
    reason = "named as the map of ours that it stands for"
)]

use aya_ebpf::{btf_maps::RingBuf, macros::btf_map, programs::SockAddrContext};
use zt_common::event::Event;

#[btf_map]
pub static floor_events: RingBuf<Event, 8_388_608> = RingBuf::new();

/// One for a call. What finds no room is lost, and seen by who counts the calls.
#[inline(always)]
pub fn send(ctx: &SockAddrContext) -> Option<()> {
    let mut slot = floor_events.reserve(0)?;
    // SAFETY: a field of the context, read with the width of its type.
    let port = unsafe { (&raw const (*ctx.sock_addr).user_port).read_volatile() };
    slot.write(Event {
        remote_port: u16::from_be(port as u16),
        ..Event::default()
    });
    slot.submit(0);
    Some(())
}
