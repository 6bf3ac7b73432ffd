//! The addresses of pods that are so young that the API server names none yet:
//! those that their interfaces were given. Pure.
//!
//! The kubelet reports them a second or more after the pod's network is there,
//! and whoever has no address until then has the first frames that it sends
//! dropped as spoofed, and its questions for its gateway with them.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    model::{Endpoint, Party, SpiffeId},
    source::interfaces::{Coverage, Interfaces, Namespace},
};

/// A pod of which nobody said an address.
#[derive(Debug)]
pub struct Unsaid {
    pub identity: SpiffeId,
    pub cgroup: u64,
    /// One of each family, at most.
    pub addresses: Vec<IpAddr>,
}

/// What it may have: of each family what its namespace was given first, if that
/// is in the ranges that are its node's alone. Somebody inside may be allowed to
/// add more, and gets nothing by it.
#[must_use]
pub fn addresses(namespace: &Namespace, own: &[IpNet]) -> Vec<IpAddr> {
    let Interfaces::Workload(links) = &namespace.interfaces else {
        return Vec::new();
    };
    let covered = links.iter().filter_map(|link| match link {
        Coverage::Covered(link) => Some(&link.addresses),
        Coverage::Internal { .. } | Coverage::Uncovered { .. } => None,
    });
    let given: Vec<IpAddr> = (covered.flatten())
        .filter(|ip| own.iter().any(|range| range.contains(*ip)))
        .copied()
        .collect();
    let first = |is_v4| given.iter().find(|ip| ip.is_ipv4() == is_v4).copied();
    [first(true), first(false)].into_iter().flatten().collect()
}

/// The claims to them. It is the weakest there is: whatever anybody else is said
/// to have, or is the node's own, is not theirs.
#[must_use]
pub fn claims(unsaid: &[Unsaid], is_taken: impl Fn(IpAddr) -> bool) -> Vec<Endpoint> {
    let each = unsaid.iter().flat_map(|pod| {
        let free = pod.addresses.iter().filter(|ip| !is_taken(**ip));
        free.map(|ip| Endpoint {
            ip: *ip,
            party: Party::Workload(pod.identity.clone()),
            cgroup: Some(pod.cgroup),
            ports: None,
            target: None,
        })
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::interfaces::Covered;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn namespace(given: &[&str]) -> Namespace {
        let covered = Covered {
            host_index: 5,
            host_name: "veth5".to_owned(),
            inside_index: 2,
            inside_name: "eth0".to_owned(),
            mac: [2; 6],
            up: true,
            addresses: given.iter().map(|text| ip(text)).collect(),
        };
        Namespace {
            cookie: 7,
            interfaces: Interfaces::Workload(vec![Coverage::Covered(covered)]),
        }
    }

    #[test]
    fn it_has_what_it_was_given_first_of_each_family_in_its_nodes_ranges() {
        let own = ["10.1.0.0/24", "fd00:1::/64"].map(|text| text.parse().unwrap());
        let of = |given: &[&str]| addresses(&namespace(given), &own);
        let given = ["fe80::7", "192.0.2.1", "fd00:1::7", "10.1.0.7", "10.1.0.8"];
        assert_eq!(of(&given), [ip("10.1.0.7"), ip("fd00:1::7")]);
        assert_eq!(of(&["10.1.1.7", "127.0.0.1"]), Vec::<IpAddr>::new());
        assert_eq!(addresses(&namespace(&given), &[]), Vec::<IpAddr>::new());
        let node = Namespace {
            cookie: 7,
            interfaces: Interfaces::Node,
        };
        assert_eq!(addresses(&node, &own), Vec::<IpAddr>::new());
    }

    #[test]
    fn what_somebody_else_has_is_not_its() {
        let pod = |name: &str, cgroup, given: &[&str]| Unsaid {
            identity: format!("spiffe://td/{name}").parse().unwrap(),
            cgroup,
            addresses: given.iter().map(|text| ip(text)).collect(),
        };
        let unsaid: [Unsaid; 2] = [
            pod("a", 1, &["10.1.0.7", "10.1.0.8"]),
            pod("b", 2, &["10.1.0.8"]),
        ];
        let found = claims(&unsaid, |one| one == ip("10.1.0.7"));
        let found: Vec<_> = found.iter().map(|e| (e.ip, e.cgroup)).collect();
        // Two young ones with the same have a conflict.
        assert_eq!(
            found,
            [(ip("10.1.0.8"), Some(1)), (ip("10.1.0.8"), Some(2))]
        );
    }
}
