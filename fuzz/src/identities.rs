//! The identity file.

use std::{collections::BTreeSet, net::IpAddr, path::Component};

use zt_agent::{
    document::identities::{self, CgroupRef, IdentityFile, NamespaceRef, WorkloadEntry},
    model::{Party, Problem, Severity},
};
use zt_common::{codes::Protocol, identity};

use crate::document;

/// Reads `bytes` as an identity file and checks what comes of it.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    let Some(file) = document::open(bytes) else {
        return;
    };
    let read = identities::parse(&file);
    assert_eq!(read, identities::parse(&file), "read in two ways");
    match read {
        Ok(content) => {
            let is_warning = |one: &Problem| one.severity == Severity::Warning;
            assert!(content.warnings.iter().all(is_warning), "read with errors");
            document::check_problems(&file, &content.warnings);
            check_content(&content);
        }
        Err(problems) => document::check_refusal(&file, &problems),
    }
}

fn check_content(content: &IdentityFile) {
    let mut cgroups = BTreeSet::new();
    for workload in &content.workloads {
        let cgroup = &workload.cgroup;
        assert!(cgroups.insert(cgroup), "two identities for {cgroup:?}");
        check_workload(workload);
        check_place(&workload.addresses, workload.ports.as_deref());
    }
    for endpoint in &content.endpoints {
        if let Party::Reserved(number) = endpoint.party {
            let declarable = [identity::HOST, identity::NODES, identity::APISERVER];
            assert!(declarable.contains(&number), "{number} declared by hand");
        }
        check_place(&endpoint.addresses, endpoint.ports.as_deref());
    }
}

fn check_workload(workload: &WorkloadEntry) {
    match &workload.cgroup {
        CgroupRef::Path(path) => {
            let mut parts = path.components();
            let is_below =
                parts.all(|part| matches!(part, Component::Normal(_) | Component::RootDir));
            assert!(is_below, "{path:?} leads out of the cgroup mount");
            assert!(path.file_name().is_some(), "{path:?} is the root cgroup");
        }
        CgroupRef::SystemdUnit(unit) => {
            assert!(!unit.contains('/') && !unit.starts_with('.'), "{unit:?}");
        }
    }
    match &workload.network_namespace {
        None => {}
        Some(NamespaceRef::Name(name)) => {
            assert!(
                !matches!(&**name, "" | "." | "..") && !name.contains('/'),
                "{name:?}"
            );
        }
        Some(NamespaceRef::Path(path)) => assert!(path.is_absolute(), "{path:?}"),
    }
}

/// Addresses in order, at which somebody can be alone, and ports that exist.
fn check_place(addresses: &[IpAddr], ports: Option<&[(Protocol, u16)]>) {
    assert!(addresses.is_sorted_by(|a, b| a < b), "{addresses:?}");
    for ip in addresses {
        assert_eq!(*ip, ip.to_canonical(), "a mapped address");
        assert!(!ip.is_unspecified() && !ip.is_multicast(), "nobody at {ip}");
        assert!(!ip.is_loopback() || ports.is_some(), "{ip} for one alone");
    }
    if let Some(ports) = ports {
        assert!(!ports.is_empty() && !addresses.is_empty(), "{ports:?}");
        assert!(ports.is_sorted_by(|a, b| a < b), "{ports:?}");
        for (protocol, port) in ports {
            assert!(*protocol != Protocol::Icmp && *port != 0, "{ports:?}");
        }
    }
}
