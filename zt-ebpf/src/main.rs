//! The kernel programs: maps and entry points.
//!
//! An entry point is one line; what it returns is the verdict. The cgroup
//! programs are attached once, to the root of the managed cgroup tree, and
//! govern every socket below it; the two for frames are attached to the host
//! side of every workload's veth.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "atomic adds do not compile otherwise")]

mod case;
mod decide;
mod flow;
mod fragment;
mod headers;
mod log;
mod maps;
mod owner;
mod peer;
mod record;
mod reset;
mod rows;
mod skb;
mod sock;
mod sock_addr;
mod tc;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier},
    programs::{SkBuffContext, SockAddrContext, SockContext, TcContext},
};
use zt_common::codes::{Direction, Hook};

#[cgroup_sock_addr(connect4)]
pub fn zt_connect4(ctx: SockAddrContext) -> i32 {
    verdict(sock_addr::connect(&ctx, Hook::Connect4))
}

#[cgroup_sock_addr(connect6)]
pub fn zt_connect6(ctx: SockAddrContext) -> i32 {
    verdict(sock_addr::connect(&ctx, Hook::Connect6))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn zt_sendmsg4(ctx: SockAddrContext) -> i32 {
    verdict(sock_addr::sendmsg(&ctx, Hook::Sendmsg4))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn zt_sendmsg6(ctx: SockAddrContext) -> i32 {
    verdict(sock_addr::sendmsg(&ctx, Hook::Sendmsg6))
}

#[cgroup_sock_addr(bind4)]
pub fn zt_bind4(ctx: SockAddrContext) -> i32 {
    verdict(sock_addr::bind(&ctx, Hook::Bind4))
}

#[cgroup_sock_addr(bind6)]
pub fn zt_bind6(ctx: SockAddrContext) -> i32 {
    verdict(sock_addr::bind(&ctx, Hook::Bind6))
}

#[cgroup_skb(egress)]
pub fn zt_egress(ctx: SkBuffContext) -> i32 {
    verdict(skb::packet(&ctx, Direction::Egress))
}

#[cgroup_skb(ingress)]
pub fn zt_ingress(ctx: SkBuffContext) -> i32 {
    verdict(skb::packet(&ctx, Direction::Ingress))
}

#[cgroup_sock(sock_create)]
pub fn zt_sock_create(ctx: SockContext) -> i32 {
    verdict(sock::create(&ctx))
}

#[classifier]
pub fn zt_tc_from(ctx: TcContext) -> i32 {
    tc::frame(&ctx, Direction::Egress)
}

#[classifier]
pub fn zt_tc_to(ctx: TcContext) -> i32 {
    tc::frame(&ctx, Direction::Ingress)
}

/// What the kernel takes from a cgroup program: 1 to go on, 0 to refuse.
///
/// The verifier wants to see that it is one of the two. It cannot follow the
/// compiler's arithmetic, and the compiler removes a mask that it knows to be
/// idle, so the value goes through memory first.
#[inline(always)]
fn verdict(passes: bool) -> i32 {
    let value = i32::from(passes);
    // SAFETY: a valid reference.
    let value = unsafe { core::ptr::read_volatile(&raw const value) };
    value & 1
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
