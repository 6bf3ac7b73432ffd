//! Which workload is behind an interface: the rows of `zt_interface_v1`.

use std::{collections::BTreeMap, net::IpAddr};

use zt_common::address::{Interface, Ip, mapped};

use crate::model::{InterfaceSpec, NodeModel, WorkloadSpec};

/// An interface is a workload's if its other end is in the network namespace
/// that this workload alone has. Any other has no row: it is nobody's.
pub fn rows(model: &NodeModel) -> BTreeMap<u32, Interface> {
    (model.interfaces.iter())
        .filter_map(|interface| {
            let cgroup = owner(&model.workloads, interface)?.cgroup;
            Some((interface.index, row(model, interface, cgroup)))
        })
        .collect()
}

/// The one workload in the namespace that an interface leads to.
#[must_use]
pub fn owner<'a>(
    workloads: &'a [WorkloadSpec],
    interface: &InterfaceSpec,
) -> Option<&'a WorkloadSpec> {
    let netns = Some(interface.netns);
    let mut inside = workloads.iter().filter(|one| one.netns == netns);
    let first = inside.next()?;
    inside
        .all(|one| one.cgroup == first.cgroup)
        .then_some(first)
}

fn row(model: &NodeModel, interface: &InterfaceSpec, cgroup: u64) -> Interface {
    let mut declared: Vec<IpAddr> = (model.endpoints.iter())
        .filter(|claim| claim.cgroup == Some(cgroup) && claim.ports.is_none())
        .map(|claim| claim.ip)
        .collect();
    declared.sort_unstable();
    let link_local = |ip: &&IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let first = |found: Option<&IpAddr>| found.map_or([0; 16], octets);
    Interface {
        cgroup,
        mac: interface.mac,
        zero: [0; 2],
        addresses: [
            first(declared.iter().find(|ip| ip.is_ipv4())),
            first(declared.iter().find(|ip| ip.is_ipv6())),
            // Only what the interface really has: they mean something on one
            // link only, so nobody declares them.
            first(interface.addresses.iter().find(link_local)),
        ],
    }
}

fn octets(ip: &IpAddr) -> Ip {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::samples::*;

    fn interface(index: u32, netns: u64) -> InterfaceSpec {
        InterfaceSpec {
            index,
            name: format!("veth{index}").into(),
            netns,
            mac: [2, 0, 0, 0, 0, 1],
            addresses: ["fe80::1".parse().unwrap(), "10.0.0.9".parse().unwrap()].into(),
        }
    }

    fn inside(name: &str, cgroup: u64, netns: Option<u64>) -> WorkloadSpec {
        WorkloadSpec {
            netns,
            ..workload(name, cgroup)
        }
    }

    #[test]
    fn an_interface_belongs_to_the_one_workload_at_its_other_end() {
        let mut model = model();
        model.workloads = vec![
            inside("a", 7, Some(50)),
            inside("b", 8, Some(51)),
            inside("c", 9, Some(51)),
            inside("d", 10, None),
        ];
        model.interfaces = vec![interface(3, 50), interface(4, 51), interface(5, 52)];
        let rows = rows(&model);
        assert_eq!(rows.keys().copied().collect::<Vec<_>>(), [3]);
        assert_eq!(rows[&3].cgroup, 7);
    }

    #[test]
    fn only_declared_addresses_and_the_link_local_one_are_its_own() {
        let mut model = model();
        model.workloads = vec![inside("a", 7, Some(50))];
        model.interfaces = vec![interface(3, 50)];
        model.endpoints = vec![
            endpoint("10.0.0.1", "a", 7),
            endpoint("fd00::1", "a", 7),
            endpoint("10.0.0.5", "b", 8),
        ];
        let octets = |text: &str| octets(&text.parse().unwrap());
        assert_eq!(
            rows(&model)[&3].addresses,
            [octets("10.0.0.1"), octets("fd00::1"), octets("fe80::1")]
        );
    }
}
