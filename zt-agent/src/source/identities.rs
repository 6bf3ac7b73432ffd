//! Cgroups, units and namespaces of the identity file into kernel ids.
//!
//! What does not exist yet is waited for; what cannot be enrolled is refused
//! and its neighbours are not. Until then its addresses are `unknown-peer`:
//! nobody may reach them or come from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    interfaces::{self, Coverage, Interfaces, InterfacesError, Namespace},
    netns, units,
};
use crate::{
    document::{
        IdentityFile,
        identities::{CgroupRef, EndpointEntry, WorkloadEntry},
    },
    kernel::{KernelError, cgroup::Root},
    model::{Endpoint, InterfaceSpec, Mode, Party, SpiffeId, WorkloadSpec},
};

/// A workload that is not enrolled, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Waiting {
    pub spiffe_id: String,
    /// Time does not heal it: somebody has to change something.
    pub refused: bool,
    pub reason: String,
}

/// A workload with a link that cannot be governed from outside, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Uncovered {
    pub spiffe_id: String,
    pub why: String,
}

/// The identities as this machine is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub workloads: Vec<WorkloadSpec>,
    pub endpoints: Vec<Endpoint>,
    /// Sorted.
    pub waiting: Vec<Waiting>,
    /// Addresses of those that wait, or of which nobody knows whose they are,
    /// each for itself alone.
    pub unowned: Vec<IpAddr>,
    /// The node's interfaces that lead to the workloads; sorted by index.
    pub interfaces: Vec<InterfaceSpec>,
    /// Sorted.
    pub uncovered: Vec<Uncovered>,
    /// Those interfaces whose other end has another MAC address than before.
    pub changed_macs: Vec<String>,
    /// The cluster's ranges, as far as it says them itself.
    pub ranges: Vec<IpNet>,
    /// Claims that are not believed, for people.
    pub complaints: Vec<String>,
    /// Why workloads that run are not below the managed root, where nothing
    /// governs them.
    pub outside: Option<String>,
    /// Cgroups of workloads that have gone while processes of theirs are left, or
    /// that cannot be enrolled.
    pub departed: Vec<u64>,
    /// How many are where the CNI plugin showed them.
    pub attached: usize,
    /// Pods that are enforced on a node that is not, and were not shown by the CNI
    /// plugin: what they sent first, nobody decided. Sorted.
    pub exposed: Vec<String>,
    /// Nobody has said yet who is who: it is all empty.
    pub unknown: bool,
    /// A workload's namespace is not there yet, or could not be looked into: it
    /// is worth while to look again soon.
    pub unsettled: bool,
}

/// Looks every workload up. `mode` is the node's.
#[must_use]
pub fn resolve(file: &IdentityFile, root: &Root, mode: Mode) -> Resolved {
    let units = Units::find(file, root);
    let namespaces = Namespaces::read(file);
    let mut resolved = Resolved::default();
    for entry in &file.workloads {
        match workload(entry, root, &units, &namespaces, mode) {
            Ok(spec) => {
                resolved.claim(entry, &spec);
                resolved.lead(entry, &namespaces);
                resolved.workloads.push(spec);
            }
            Err(waiting) => {
                resolved.waiting.push(waiting);
                if entry.ports.is_none() {
                    resolved.unowned.extend(&entry.addresses);
                }
            }
        }
    }
    resolved
        .endpoints
        .extend(file.endpoints.iter().flat_map(elsewhere));
    resolved.settle();
    resolved
}

impl Resolved {
    fn claim(&mut self, entry: &WorkloadEntry, spec: &WorkloadSpec) {
        let claims = entry.addresses.iter().map(|ip| Endpoint {
            ip: *ip,
            party: Party::Workload(spec.identity.clone()),
            cgroup: Some(spec.cgroup),
            ports: entry.ports.clone(),
            target: None,
        });
        self.endpoints.extend(claims);
    }

    /// Notes which interfaces lead to it.
    fn lead(&mut self, entry: &WorkloadEntry, namespaces: &Namespaces) {
        match namespaces.of(entry) {
            None => self.leave(
                &entry.spiffe,
                "it names no network namespace of its own: only its sockets are governed",
            ),
            Some(Ok(namespace)) => self.lead_into(&entry.spiffe, namespace),
            Some(Err(_)) => {}
        }
    }

    /// Notes which interfaces lead to a workload's namespace, and what does
    /// not pass them.
    pub fn lead_into(&mut self, workload: &SpiffeId, namespace: &Namespace) {
        let Interfaces::Workload(links) = &namespace.interfaces else {
            return self.leave(
                workload,
                "its network namespace is the agent's own: only its sockets are governed",
            );
        };
        for link in links {
            match link {
                // Nothing passes it, and it may still be given its MAC address.
                Coverage::Covered(link) if !link.up => {}
                Coverage::Covered(link) => self.interfaces.push(InterfaceSpec {
                    index: link.host_index,
                    name: link.host_name.as_str().into(),
                    netns: namespace.cookie,
                    mac: link.mac,
                    addresses: link.addresses.clone(),
                }),
                Coverage::Uncovered { why, .. } => self.leave(workload, why),
                Coverage::Internal { .. } => {}
            }
        }
    }

    /// Notes that frames of a workload pass no interface that is governed.
    pub fn leave(&mut self, workload: &SpiffeId, why: &str) {
        self.uncovered.push(Uncovered {
            spiffe_id: workload.to_string(),
            why: why.to_owned(),
        });
    }

    /// Puts all lists into an order that does not depend on how they were
    /// made.
    pub fn settle(&mut self) {
        self.waiting.sort_unstable();
        self.uncovered.sort_unstable();
        self.exposed.sort_unstable();
        self.interfaces.sort_unstable_by_key(|one| one.index);
        // Two workloads may share a namespace.
        self.interfaces.dedup();
    }
}

fn elsewhere(entry: &EndpointEntry) -> impl Iterator<Item = Endpoint> {
    let claim = |ip: &IpAddr| Endpoint {
        ip: *ip,
        party: entry.party.clone(),
        cgroup: None,
        ports: entry.ports.clone(),
        target: None,
    };
    entry.addresses.iter().map(claim)
}

fn workload(
    entry: &WorkloadEntry,
    root: &Root,
    units: &Units,
    namespaces: &Namespaces,
    mode: Mode,
) -> Result<WorkloadSpec, Waiting> {
    let waiting = |(refused, reason)| Waiting {
        spiffe_id: entry.spiffe.to_string(),
        refused,
        reason,
    };
    let path = units.path(&entry.cgroup, &root.mount).map_err(waiting)?;
    // By its one true path it is seen whether it lies inside another.
    let path = path.canonicalize().unwrap_or(path);
    Ok(WorkloadSpec {
        identity: entry.spiffe.clone(),
        cgroup: enroll(root, &path).map_err(waiting)?,
        path: below(&root.mount, &path),
        mode: entry.mode.unwrap_or(mode),
        raw_sockets: entry.raw_sockets,
        netns: namespaces.cookie(entry).map_err(waiting)?,
    })
}

/// Whether it is refused for good, and why.
pub type Reason = (bool, String);

/// The kernel's id of a cgroup that can be enrolled.
///
/// # Errors
/// Why it cannot.
pub fn enroll(root: &Root, path: &Path) -> Result<u64, Reason> {
    root.enrollable(path).map_err(|error| match &error {
        KernelError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            (false, format!("the cgroup {} is not there", path.display()))
        }
        _ => (true, error.to_string()),
    })
}

/// The path below the cgroup mount, for people.
#[must_use]
pub fn below(mount: &Path, path: &Path) -> Arc<str> {
    path.strip_prefix(mount)
        .unwrap_or(path)
        .to_string_lossy()
        .into()
}

/// Where the systemd units of a file are.
#[derive(Debug, Default)]
struct Units(BTreeMap<String, Vec<PathBuf>>);

impl Units {
    fn find(file: &IdentityFile, root: &Root) -> Self {
        let names = file.workloads.iter().filter_map(|w| match &w.cgroup {
            CgroupRef::SystemdUnit(unit) => Some(&**unit),
            CgroupRef::Path(_) => None,
        });
        let mut missing: BTreeSet<&str> = names.collect();
        let mut found = units::find(&root.path, &missing);
        missing.retain(|unit| !found.contains_key(*unit));
        // A unit that runs elsewhere is not governed: that must be said.
        found.extend(units::find(&root.mount, &missing));
        Self(found)
    }

    fn path(&self, cgroup: &CgroupRef, mount: &Path) -> Result<PathBuf, Reason> {
        let unit = match cgroup {
            CgroupRef::Path(path) => return Ok(mount.join(path)),
            CgroupRef::SystemdUnit(unit) => unit,
        };
        match self.0.get(&**unit).map(Vec::as_slice) {
            None | Some([]) => Err((false, format!("the unit {unit} is not running"))),
            Some([path]) => Ok(path.clone()),
            Some([first, second, ..]) => Err((
                true,
                format!(
                    "two cgroups are called {unit}: {} and {}; name one by its `cgroup`",
                    first.display(),
                    second.display()
                ),
            )),
        }
    }
}

/// The network namespaces of a file.
#[derive(Debug, Default)]
struct Namespaces(BTreeMap<PathBuf, Result<Namespace, Reason>>);

impl Namespaces {
    fn read(file: &IdentityFile) -> Self {
        let named = file.workloads.iter();
        let paths: BTreeSet<PathBuf> = named
            .filter_map(|w| w.network_namespace.as_ref().map(netns::path))
            .collect();
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        if paths.is_empty() {
            return Self::default();
        }
        let found = match interfaces::find(&paths) {
            Ok(found) => found,
            Err(error) => {
                let failed = |path: PathBuf| (path, Err((false, error.to_string())));
                return Self(paths.into_iter().map(failed).collect());
            }
        };
        let found = found
            .into_iter()
            .map(|namespace| namespace.map_err(|error| reason(&error)));
        Self(paths.into_iter().zip(found).collect())
    }

    /// `None`: it names none.
    fn of(&self, entry: &WorkloadEntry) -> Option<&Result<Namespace, Reason>> {
        self.0.get(&netns::path(entry.network_namespace.as_ref()?))
    }

    fn cookie(&self, entry: &WorkloadEntry) -> Result<Option<u64>, Reason> {
        let namespace = self.of(entry).map(Result::as_ref).transpose();
        Ok(namespace.map_err(Clone::clone)?.map(|found| found.cookie))
    }
}

fn reason(error: &InterfacesError) -> Reason {
    match error {
        InterfacesError::Enter { path, source } if source.kind() == io::ErrorKind::NotFound => (
            false,
            format!("the network namespace {} is not there", path.display()),
        ),
        // `ip netns add` makes the file before it mounts the namespace.
        other => (false, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::document::{SourceFile, identities::parse};

    /// A root that is a directory: ids are inode numbers there, too.
    fn root(path: &Path) -> Root {
        Root {
            mount: "/sys/fs/cgroup".into(),
            path: path.canonicalize().unwrap(),
            id: 1,
            level: 1,
            directory: File::open(path).unwrap(),
        }
    }

    fn file(workloads: &str) -> IdentityFile {
        let head = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n";
        parse(&SourceFile::new("i.yaml", format!("{head}{workloads}"))).unwrap()
    }

    fn reasons(resolved: &Resolved) -> Vec<(bool, &str)> {
        let waiting = resolved.waiting.iter();
        waiting.map(|w| (w.refused, w.reason.as_str())).collect()
    }

    #[test]
    fn a_cgroup_that_is_there_is_enrolled_with_its_addresses() {
        let top = tempfile::tempdir().unwrap();
        let cgroup = top.path().join("a");
        fs::create_dir(&cgroup).unwrap();
        let text = format!(
            "  - {{spiffe: spiffe://td/a, cgroup: {}, addresses: [10.0.0.1], mode: audit}}\n",
            cgroup.display()
        );
        let resolved = resolve(&file(&text), &root(top.path()), Mode::Enforce);
        assert_eq!(resolved.waiting, []);
        let spec = &resolved.workloads[0];
        assert_eq!(spec.mode, Mode::Audit);
        assert_eq!(spec.cgroup, crate::kernel::cgroup::id(&cgroup).unwrap());
        assert_eq!(resolved.endpoints[0].cgroup, Some(spec.cgroup));
    }

    #[test]
    fn a_missing_cgroup_is_waited_for_and_its_address_belongs_to_nobody() {
        let top = tempfile::tempdir().unwrap();
        let text = format!(
            "  - {{spiffe: spiffe://td/a, cgroup: {}/a, addresses: [10.0.0.1]}}\n",
            top.path().display()
        );
        let resolved = resolve(&file(&text), &root(top.path()), Mode::Enforce);
        assert!(resolved.workloads.is_empty() && resolved.endpoints.is_empty());
        assert_eq!(resolved.unowned, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let [(false, reason)] = reasons(&resolved)[..] else {
            panic!("{:?}", resolved.waiting)
        };
        assert!(reason.contains("not there"), "{reason}");
    }

    #[test]
    fn a_cgroup_outside_is_refused_and_its_neighbour_is_not() {
        let (top, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let inside = top.path().join("b");
        fs::create_dir(&inside).unwrap();
        let text = format!(
            "  - {{spiffe: spiffe://td/a, cgroup: {}}}\n  - {{spiffe: spiffe://td/b, cgroup: {}}}\n",
            other.path().display(),
            inside.display()
        );
        let resolved = resolve(&file(&text), &root(top.path()), Mode::Enforce);
        assert_eq!(resolved.workloads.len(), 1);
        let [(true, reason)] = reasons(&resolved)[..] else {
            panic!("{:?}", resolved.waiting)
        };
        assert!(reason.contains("is not below the managed root"), "{reason}");
    }

    #[test]
    fn a_unit_is_found_by_its_name_and_two_of_a_name_are_refused() {
        let top = tempfile::tempdir().unwrap();
        let make = |name: &str| fs::create_dir_all(top.path().join(name)).unwrap();
        make("x.slice/zt-test-iam.service");
        let text = "  - {spiffe: spiffe://td/a, systemd: zt-test-iam.service}\n";
        let resolved = resolve(&file(text), &root(top.path()), Mode::Enforce);
        assert_eq!(resolved.workloads.len(), 1);
        make("y.slice/zt-test-iam.service");
        let resolved = resolve(&file(text), &root(top.path()), Mode::Enforce);
        let [(true, reason)] = reasons(&resolved)[..] else {
            panic!("{:?}", resolved.waiting)
        };
        assert!(reason.contains("two cgroups"), "{reason}");
    }

    #[test]
    fn a_workload_waits_for_its_namespace() {
        let top = tempfile::tempdir().unwrap();
        let cgroup = top.path().join("a");
        fs::create_dir(&cgroup).unwrap();
        let text = format!(
            "  - {{spiffe: spiffe://td/a, cgroup: {}, networkNamespace: zt-test-none}}\n",
            cgroup.display()
        );
        let resolved = resolve(&file(&text), &root(top.path()), Mode::Enforce);
        assert_eq!(resolved.waiting.len(), 1);
        assert!(!resolved.waiting[0].refused);
    }
}
