//! What is on this node and who is at the addresses around it.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use zt_common::{
    codes::Protocol,
    identity::{self, Number},
};

use super::{policy::Policy, service::Service, spiffe::SpiffeId};

/// Whether a denial is real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    Enforce,
    /// Traffic passes and the record says what would have happened.
    Audit,
}

/// A cgroup on this node that has an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSpec {
    pub identity: SpiffeId,
    /// Kernel id of the enrolled cgroup (its inode number in cgroupfs).
    pub cgroup: u64,
    /// For people: the path below the cgroup mount.
    pub path: Arc<str>,
    pub mode: Mode,
    /// May open raw sockets.
    pub raw_sockets: bool,
    /// Cookie of the network namespace that this workload has for itself.
    pub netns: Option<u64>,
}

/// Who is at an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    Workload(SpiffeId),
    /// A reserved identity's number.
    Reserved(Number),
    /// One of several, and nobody knows which: of a port of a Service's address.
    Service(Arc<Service>),
}

impl Party {
    /// The identities that it may stand for.
    pub fn identities(&self) -> impl Iterator<Item = &SpiffeId> {
        let (own, behind) = match self {
            Self::Workload(id) => (Some(id), None),
            Self::Service(service) => (None, Some(service.identities())),
            Self::Reserved(_) => (None, None),
        };
        own.into_iter().chain(behind.into_iter().flatten())
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(id) => id.fmt(f),
            Self::Service(service) => service.fmt(f),
            Self::Reserved(number) => {
                let mut known = identity::RESERVED.iter();
                let found = known.find(|(known, _)| known == number);
                f.write_str(found.map_or("an unknown reserved identity", |(_, name)| name))
            }
        }
    }
}

/// A claim: `party` is at `ip`, on all ports or on the given ones.
///
/// Two claims on a whole address by different parties are a conflict. Claims
/// with ports make the address shared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub party: Party,
    /// The enrolled cgroup behind it, if it is on this node.
    pub cgroup: Option<u64>,
    /// `None`: the whole address. Otherwise the ports that are its own.
    pub ports: Option<Vec<(Protocol, u16)>>,
    /// Of a Service's address: the port at which the party gets what is sent to
    /// `ports`, and by which rules know it. `None`: the same one.
    pub target: Option<u16>,
}

/// An interface of this node whose other end is in a namespace of workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// On the node's side.
    pub index: u32,
    /// On the node's side, for people.
    pub name: Arc<str>,
    /// Cookie of the network namespace that the other end is in.
    pub netns: u64,
    /// Of the other end.
    pub mac: [u8; 6],
    /// Of the other end.
    pub addresses: Vec<IpAddr>,
}

/// Everything that decides what the maps should hold.
#[derive(Clone, Debug)]
pub struct NodeModel {
    /// Mode of the node: of every cgroup under the managed root that nobody
    /// enrolled, and the default of the workloads.
    pub mode: Mode,
    /// Cookie of the node's own network namespace, if processes in it that nobody
    /// enrolled count as `host`, also under the managed root.
    pub host_netns: Option<u64>,
    /// Cgroups of workloads that are not enrolled, or not any more: unenrolled in
    /// every namespace.
    pub departed: Vec<u64>,
    pub workloads: Vec<WorkloadSpec>,
    pub endpoints: Vec<Endpoint>,
    pub interfaces: Vec<InterfaceSpec>,
    /// Addresses of this node's own interfaces.
    pub node_addresses: Vec<IpAddr>,
    /// The cluster's ranges: an address in them that nobody owns is
    /// `unknown-peer`, never `world`.
    pub cluster_ranges: Vec<IpNet>,
    pub policies: Vec<Policy>,
    /// `CLOCK_REALTIME` − `CLOCK_BOOTTIME` in nanoseconds, to turn a rule's
    /// wall-clock deadline into the kernel's clock.
    pub boot_offset: u64,
    /// What the wall clock showed, in nanoseconds, before it was set back: a
    /// deadline up to then has lapsed. 0: it never was.
    pub set_back_from: u64,
}
