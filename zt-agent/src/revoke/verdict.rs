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
        shut: workload.is_shut(),
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

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
    };

    use zt_common::{
        MAX_DEPTH,
        address::{Ip, mapped},
        flow::{self, Owner},
        identity,
        state::{Control, control_flags},
    };

    use super::*;
    use crate::{
        compile::samples::{
            Built, NOW, allow, built, endpoint, model, policy, port_endpoint, workload,
        },
        model::{Mode, NodeModel},
        revoke::far::Owners,
    };

    const A: Ip = mapped([10, 0, 0, 1]);
    const B: Ip = mapped([10, 0, 0, 2]);
    const FAR: Ip = mapped([10, 0, 0, 9]);
    const LOOPBACK: Ip = mapped([127, 0, 0, 1]);

    /// a (10) may reach b (11) on port 80, and nothing else is allowed.
    fn node() -> NodeModel {
        let mut node = model();
        node.workloads = vec![workload("a", 10), workload("b", 11)];
        node.endpoints = vec![
            endpoint("10.0.0.1", "a", 10),
            endpoint("10.0.0.2", "b", 11),
            endpoint("10.0.0.9", "far", 0),
        ];
        node.policies = vec![policy("p", vec![allow(1, "a", "b").ports(&[(80, 80)])])];
        node
    }

    fn socket(local: (Ip, u16), remote: (Ip, u16), cgroup: u64) -> TcpSocket {
        let owner = owner(cgroup);
        TcpSocket {
            stored: Some(flow::Socket {
                owner,
                ..flow::Socket::default()
            }),
            ..TcpSocket::invented(local, remote, cgroup)
        }
    }

    fn owner(leaf: u64) -> Owner {
        let mut below_root = [0; MAX_DEPTH];
        below_root[0] = leaf;
        Owner {
            leaf,
            below_root,
            netns: 0,
        }
    }

    /// With a verdict of the kernel's from before, for a flow that was opened
    /// in `opened` with `far` at the other end.
    fn opened(mut socket: TcpSocket, opened: Direction, far: Number) -> TcpSocket {
        let stored = socket.stored.as_mut().unwrap();
        stored.remote = socket.remote;
        stored.remote_port = socket.remote_port;
        stored.protocol = 6;
        stored.cached.verdict = Verdict::Allow as u8;
        stored.cached.opened = opened as u8;
        (stored.cached.source, stored.cached.destination) = (far, far);
        socket
    }

    fn ask(built: &Built, quarantined: &[&str], all: &[TcpSocket], owners: &Owners) -> Vec<Reason> {
        let quarantined: BTreeSet<Number> = quarantined.iter().map(|n| built.number(n)).collect();
        let control = Control {
            flags: control_flags::HOST_MAY_REACH,
            ..Control::default()
        };
        let world = World {
            tables: built.tables(),
            numbers: &built.numbers,
            quarantined: &quarantined,
            generation: 1,
            control: &control,
            now: NOW,
        };
        let found = denied(&Sockets::new(all, owners), &world);
        found.iter().map(|(_, denial)| denial.reason).collect()
    }

    fn one(built: &Built, socket: TcpSocket) -> Option<Reason> {
        ask(built, &[], &[socket], &Owners::new()).pop()
    }

    #[test]
    fn what_a_rule_allows_stays_and_what_none_allows_is_denied_at_both_ends() {
        let built = built(&node());
        let client = socket((A, 40000), (B, 80), 10);
        let server = socket((B, 80), (A, 40000), 11);
        for allowed in [
            client,
            server,
            opened(client, Direction::Egress, 0),
            opened(server, Direction::Ingress, 0),
        ] {
            assert_eq!(one(&built, allowed), None);
        }
        for denied in [
            socket((A, 40000), (B, 81), 10),
            socket((A, 40000), (FAR, 80), 10),
            // b may not open what a may.
            opened(server, Direction::Egress, 0),
        ] {
            assert_eq!(one(&built, denied), Some(Reason::NoPolicy));
        }
    }

    #[test]
    fn quarantine_reaches_both_ends_also_in_audit_mode() {
        let mut node = node();
        for workload in &mut node.workloads {
            workload.mode = Mode::Audit;
        }
        let built = built(&node);
        let sockets = [
            socket((A, 40000), (B, 80), 10),
            socket((B, 80), (A, 40000), 11),
            socket((A, 40000), (FAR, 80), 10),
        ];
        let asked = |who: &[&str]| ask(&built, who, &sockets, &Owners::new());
        // In audit mode nothing else is real.
        assert_eq!(asked(&[]), []);
        assert_eq!(asked(&["b"]), [Reason::Quarantined; 2]);
    }

    #[test]
    fn a_socket_that_is_not_ours_or_not_what_it_seems_is_left_alone() {
        let built = built(&node());
        let foreign = TcpSocket::invented((A, 40000), (B, 81), 99);
        assert_eq!(one(&built, foreign), None);
        let mut odd = socket((A, 40000), (B, 81), 10);
        odd.cgroup = Some(99);
        assert_eq!(one(&built, odd), None);
        odd.cgroup = None;
        assert_eq!(one(&built, odd), None);
    }

    #[test]
    fn a_socket_that_no_program_has_seen_yet_belongs_to_its_cgroup() {
        let built = built(&node());
        let unseen = TcpSocket::invented((A, 40000), (B, 81), 10);
        let owners = BTreeMap::from([(10, owner(10)), (12, owner(12))]);
        assert_eq!(ask(&built, &[], &[unseen], &owners), [Reason::NoPolicy]);
        let nobodys = TcpSocket::invented((A, 40000), (B, 80), 12);
        assert_eq!(ask(&built, &[], &[nobodys], &owners), [Reason::Unenrolled]);
    }

    #[test]
    fn behind_a_shared_address_the_other_socket_tells_or_what_was_seen_last() {
        let mut node = node();
        node.endpoints = vec![port_endpoint("127.0.0.1", "b", 11, 80)];
        let built = built(&node);
        let server = |cgroup| socket((LOOPBACK, 80), (LOOPBACK, 40000), cgroup);
        let client = |cgroup| socket((LOOPBACK, 40000), (LOOPBACK, 80), cgroup);
        let ask = |all: &[TcpSocket]| ask(&built, &[], all, &Owners::new());
        assert_eq!(ask(&[client(10), server(11)]), []);
        // An unenrolled caller: neither end may.
        let both = [Reason::Unenrolled, Reason::NoPolicy];
        assert_eq!(ask(&[client(12), server(11)]), both);
        // One of the node's own processes.
        let host = TcpSocket::invented((LOOPBACK, 40000), (LOOPBACK, 80), 99);
        let by_host = opened(server(11), Direction::Ingress, 0);
        assert_eq!(ask(&[host, by_host]), []);
        // Its socket is gone.
        assert_eq!(ask(&[server(11)]), []);
        let last = |far| ask(&[opened(server(11), Direction::Ingress, far)]);
        assert_eq!(last(built.number("a")), []);
        assert_eq!(last(identity::HOST), []);
        assert_eq!(last(identity::WORLD), [Reason::NoPolicy]);
    }

    #[test]
    fn inside_its_own_namespace_a_workload_is_free() {
        let mut node = node();
        node.workloads[0].netns = Some(7);
        let built = built(&node);
        let mut own = socket((LOOPBACK, 40000), (LOOPBACK, 81), 10);
        assert_eq!(one(&built, own), None);
        own.stored.as_mut().unwrap().owner.netns = 7;
        assert_eq!(one(&built, own), None);
        let mut own = socket((A, 40000), (A, 81), 10);
        own.stored.as_mut().unwrap().owner.netns = 7;
        assert_eq!(one(&built, own), None);
        own.stored.as_mut().unwrap().owner.netns = 8;
        assert_eq!(one(&built, own), Some(Reason::NoPolicy));
    }

    #[test]
    fn a_lapsed_grant_is_denied() {
        let mut node = node();
        Arc::make_mut(&mut node.policies[0].rules)[0].expires = Some(NOW - 1);
        let built = built(&node);
        let client = socket((A, 40000), (B, 80), 10);
        assert_eq!(one(&built, client), Some(Reason::GrantExpired));
    }
}
