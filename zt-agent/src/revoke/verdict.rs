//! Whether a socket's flow is still allowed: what the packet programs would
//! decide of its next packet, from the same facts. Pure.
//!
//! Where the facts are not all there the socket is left alone: the programs
//! decide in any case.

use zt_common::{
    address::workload_flags,
    codes::{Direction, Protocol, Reason, Verdict},
    identity::Number,
};

use super::far::{Far, Sockets, remembered};
use crate::{
    compile::lookup,
    explain::{World, decide, ends::Local},
    netlink::sock_diag::TcpSocket,
};

/// Why a connection may no longer be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    pub reason: Reason,
    /// 0: no rule.
    pub rule: u32,
    /// Of the flow, not of the socket.
    pub source: Number,
    pub destination: Number,
    /// The governed cgroup.
    pub cgroup: u64,
}

/// The sockets that are really denied now, and why. Not those that would be,
/// nor those of nobody's that we govern.
#[must_use]
pub fn denied<'a>(sockets: &Sockets<'a>, world: &World<'_>) -> Vec<(&'a TcpSocket, Denial)> {
    let denial = |socket| Some((socket, denial(socket, sockets, world)?));
    sockets.all().iter().filter_map(denial).collect()
}

fn denial(socket: &TcpSocket, sockets: &Sockets<'_>, world: &World<'_>) -> Option<Denial> {
    // Which side opened it is known if anything was decided of it; a segment
    // of an unknown flow passes if either direction is allowed.
    let directions = match remembered(socket).map(|stored| stored.cached.opened) {
        None => &[Direction::Ingress, Direction::Egress][..],
        Some(opened) if opened == Direction::Ingress as u8 => &[Direction::Ingress],
        Some(_) => &[Direction::Egress],
    };
    let mut found = None;
    for direction in directions {
        found = Some(in_direction(*direction, socket, sockets, world)?);
    }
    found
}

/// `None`: it may pass.
fn in_direction(
    direction: Direction,
    socket: &TcpSocket,
    sockets: &Sockets<'_>,
    world: &World<'_>,
) -> Option<Denial> {
    let owner = sockets.owner(socket)?;
    let (cgroup, workload) = lookup::local(world.tables, &owner);
    let local = Local {
        identity: workload.identity,
        enforce: workload.flags & workload_flags::ENFORCE != 0,
        cgroup,
    };
    let far = sockets.far(socket, &owner, direction, world.tables);
    let Far::Peer(peer) = far else {
        return None;
    };
    let port = match direction {
        Direction::Egress => socket.remote_port,
        Direction::Ingress => socket.local_port,
    };
    let decision = decide::decide(direction, &local, &peer, Protocol::Tcp, port, world);
    let judgement = decision.judgement;
    (judgement.verdict == Verdict::Deny).then_some(Denial {
        reason: judgement.reason,
        rule: judgement.rule,
        source: decision.pair.source,
        destination: decision.pair.destination,
        cgroup,
    })
}
