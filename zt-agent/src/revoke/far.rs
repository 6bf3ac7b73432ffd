//! Who is at the other end of a socket, found as the packet programs find it:
//! by the address, by a declared port, by the socket behind it.

use std::collections::{BTreeMap, HashMap};

use zt_common::{
    address::{AddressKey, Ip, Peer, is_loopback, peer_flags, workload_flags},
    codes::{Direction, Protocol},
    flow::{self, Owner},
    identity,
};

use crate::{
    compile::{Tables, lookup},
    netlink::sock_diag::TcpSocket,
};

const TCP: u8 = Protocol::Tcp as u8;

/// The cgroups under the managed root, each as the owner of sockets that are
/// made in it.
pub type Owners = BTreeMap<u64, Owner>;

/// The sockets of one network namespace.
#[derive(Debug)]
pub struct Sockets<'a> {
    all: &'a [TcpSocket],
    by_ends: HashMap<Ends, &'a TcpSocket>,
    owners: &'a Owners,
}

/// Local and remote address and port.
type Ends = (Ip, u16, Ip, u16);

/// What is at the other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Far {
    Peer(Peer),
    /// The workload itself: nothing is decided.
    Exempt,
    /// It cannot be told from here.
    Unseen,
}

/// Whose the network namespace of a socket is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    /// Its workload's alone.
    Own,
    /// Its workload has one, and the socket was made before our programs.
    Unknown,
    /// Several workloads', or not its workload's own.
    Shared,
}

/// What the kernel remembers of the socket's peer, if it decided anything.
#[must_use]
pub fn remembered(socket: &TcpSocket) -> Option<&flow::Socket> {
    let stored = socket.stored.as_ref()?;
    let same = stored.protocol == TCP
        && stored.remote == socket.remote
        && stored.remote_port == socket.remote_port;
    (same && stored.cached.verdict != 0).then_some(stored)
}

impl<'a> Sockets<'a> {
    #[must_use]
    pub fn new(all: &'a [TcpSocket], owners: &'a Owners) -> Self {
        let ends = |s: &'a TcpSocket| ((s.local, s.local_port, s.remote, s.remote_port), s);
        Self {
            all,
            by_ends: all.iter().map(ends).collect(),
            owners,
        }
    }

    #[must_use]
    pub fn all(&self) -> &'a [TcpSocket] {
        self.all
    }

    /// Who made the socket, if that was under the managed root.
    #[must_use]
    pub fn owner(&self, socket: &TcpSocket) -> Option<Owner> {
        match &socket.stored {
            // Both were written when the socket was made. If they differ, one
            // of them is not what it seems.
            Some(stored) => (socket.cgroup == Some(stored.owner.leaf)).then_some(stored.owner),
            None => self.owners.get(&socket.cgroup?).copied(),
        }
    }

    /// The other end of a socket of `owner`, whose flow goes in `direction`.
    #[must_use]
    pub fn far(
        &self,
        socket: &TcpSocket,
        owner: &Owner,
        direction: Direction,
        tables: &Tables,
    ) -> Far {
        let (cgroup, local) = lookup::local(tables, owner);
        let namespace = match local.netns {
            0 => Namespace::Shared,
            own if own == owner.netns => Namespace::Own,
            _ if owner.netns == 0 => Namespace::Unknown,
            _ => Namespace::Shared,
        };
        let peer = lookup::peer(tables, &socket.remote, socket.remote_port, TCP);
        let own_address = !is_shared(tables, &socket.remote) && peer.cgroup == cgroup;
        match namespace {
            Namespace::Own if own_address || is_loopback(&socket.remote) => Far::Exempt,
            Namespace::Own if is_undeclared(&peer) => Far::Peer(nobody(&peer, direction)),
            // Its own address: the socket behind it shows who it is.
            Namespace::Unknown if own_address => self.behind(socket, cgroup, tables),
            Namespace::Unknown | Namespace::Shared if is_undeclared(&peer) => {
                self.behind(socket, cgroup, tables)
            }
            _ => Far::Peer(peer),
        }
    }

    /// By the socket at the other end, if it is in this namespace, too. Else
    /// whom the kernel saw there last.
    fn behind(&self, socket: &TcpSocket, cgroup: u64, tables: &Tables) -> Far {
        let mirrored = (
            socket.remote,
            socket.remote_port,
            socket.local,
            socket.local_port,
        );
        let Some(other) = self.by_ends.get(&mirrored) else {
            return remembered(socket).map_or(Far::Unseen, last_seen);
        };
        if let Some(owner) = self.owner(other) {
            return match lookup::local(tables, &owner) {
                (same, _) if same == cgroup => Far::Exempt,
                (cgroup, workload) => Far::Peer(Peer {
                    cgroup,
                    identity: workload.identity,
                    flags: if workload.flags & workload_flags::ENFORCE != 0 {
                        peer_flags::ENFORCE
                    } else {
                        0
                    },
                    ..Peer::default()
                }),
            };
        }
        match (&other.stored, other.cgroup) {
            // Nothing of ours: one of the node's own processes.
            (None, Some(_)) => Far::Peer(Peer {
                identity: identity::HOST,
                ..Peer::default()
            }),
            _ => Far::Unseen,
        }
    }
}

/// Whether several share an address, so that the port or the socket tells.
fn is_shared(tables: &Tables, ip: &Ip) -> bool {
    let whole = AddressKey {
        ip: *ip,
        ..AddressKey::default()
    };
    is_loopback(ip) || tables.address.get(&whole).is_some_and(is_undeclared)
}

/// Whether a row leaves open which of several is meant.
fn is_undeclared(peer: &Peer) -> bool {
    peer.flags & peer_flags::SHARED != 0
}

/// Who is at a shared address behind which no socket can be seen.
fn nobody(peer: &Peer, direction: Direction) -> Peer {
    let node = peer.flags & peer_flags::NODE != 0;
    let identity = match (node, direction) {
        (false, _) => identity::UNKNOWN_PEER,
        (true, Direction::Egress) => identity::HOST,
        (true, Direction::Ingress) => identity::MASQUERADED,
    };
    Peer { identity, ..*peer }
}

fn last_seen(stored: &flow::Socket) -> Far {
    let cached = &stored.cached;
    let identity = if cached.opened == Direction::Ingress as u8 {
        cached.source
    } else {
        cached.destination
    };
    // What is exempt is remembered without ends.
    if identity == identity::NOBODY {
        return Far::Exempt;
    }
    Far::Peer(Peer {
        identity,
        ..Peer::default()
    })
}
