//! The floor that the kernel programs are measured against. Nothing here
//! decides anything: every program lets everything pass.
//!
//! `empty_…` return at once: what it costs that there is a program at all.
//!
//! `floor_…` have the shape of ours: they are on the hooks that an IPv4 client
//! meets, and look up as often, in maps of the same types, keys, values and
//! sizes, as our way through the same hook needs when nothing goes wrong. They
//! read no more of a packet than a key needs, believe what they find, compare
//! no generations and send no events.
//!
//! | program | lookups | because ours |
//! |---|---|---|
//! | `floor_sock_create` | storage (made) | notes whose socket it is |
//! | `floor_connect4` | control, storage, workload, address, trust twice, policy, totals, count, rule | decides, and counts the decision |
//! | `floor_egress`, first packet | control, storage, workload, trust twice, flow, spill, share; removes of spill, adds a flow | makes the flow known to the other layers |
//! | `floor_egress`, `floor_ingress`, later | control, storage, trust twice | has the verdict with the socket |
//! | `floor_egress_new`, `floor_ingress_new` | control, storage (made), workload, flow, trust twice | has the verdict in the flow table, of a socket that it does not know |
//! | `floor_tc_from` | control, interface, flow, trust twice | has the verdict in the flow table |
//! | `floor_tc_to` | the same, and address | looks whether the sender's address is the workload's own |
//!
//! `ring_connect4` sends a record of every call and looks up nothing: what a ring can
//! carry.
//!
//! Left out are what ours looks up more than once to the same end (`control`;
//! the flow of the answer to a SYN, which it asks for again), and what only other
//! families and calls meet (`connect6`, `sendmsg`, `bind`).
#![no_std]
#![no_main]

mod call;
mod event;
mod frame;
mod maps;
mod packet;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier},
    programs::{SkBuffContext, SockAddrContext, SockContext, TcContext},
};

/// What lets pass in a cgroup.
const PASS: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn empty_sock_create(_ctx: SockContext) -> i32 {
    PASS
}

#[cgroup_sock_addr(connect4)]
pub fn empty_connect4(_ctx: SockAddrContext) -> i32 {
    PASS
}

#[cgroup_skb(egress)]
pub fn empty_egress(_ctx: SkBuffContext) -> i32 {
    PASS
}

#[cgroup_skb(ingress)]
pub fn empty_ingress(_ctx: SkBuffContext) -> i32 {
    PASS
}

#[classifier]
pub fn empty_tc_from(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[classifier]
pub fn empty_tc_to(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[cgroup_sock(sock_create)]
pub fn floor_sock_create(ctx: SockContext) -> i32 {
    call::create(&ctx);
    PASS
}

#[cgroup_sock_addr(connect4)]
pub fn floor_connect4(ctx: SockAddrContext) -> i32 {
    call::connect(&ctx);
    PASS
}

#[cgroup_sock_addr(connect4)]
pub fn ring_connect4(ctx: SockAddrContext) -> i32 {
    event::send(&ctx);
    PASS
}

#[cgroup_skb(egress)]
pub fn floor_egress(ctx: SkBuffContext) -> i32 {
    packet::sent(&ctx);
    PASS
}

#[cgroup_skb(ingress)]
pub fn floor_ingress(ctx: SkBuffContext) -> i32 {
    packet::received(&ctx);
    PASS
}

#[cgroup_skb(egress)]
pub fn floor_egress_new(ctx: SkBuffContext) -> i32 {
    packet::sent_by_new(&ctx);
    PASS
}

#[cgroup_skb(ingress)]
pub fn floor_ingress_new(ctx: SkBuffContext) -> i32 {
    packet::received_by_new(&ctx);
    PASS
}

#[classifier]
pub fn floor_tc_from(ctx: TcContext) -> i32 {
    frame::from_workload(&ctx);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn floor_tc_to(ctx: TcContext) -> i32 {
    frame::to_workload(&ctx);
    TC_ACT_UNSPEC
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel gives some helpers only to programs under a GPL-compatible
/// licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
