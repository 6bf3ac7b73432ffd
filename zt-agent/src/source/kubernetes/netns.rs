//! The network namespace of a pod, by the processes in its cgroup.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::tree;
use crate::source::interfaces::{self, Coverage, Interfaces, InterfacesError, Namespace};

/// What there is to know of a pod's namespace.
#[derive(Debug)]
pub enum Found {
    /// It has no process yet.
    Empty,
    /// It has processes, and all of them are still in the node's namespace:
    /// a runtime's that prepares it.
    Young,
    Namespace(Namespace),
}

/// A process by which a namespace of a pod is found.
struct Witness {
    pod: usize,
    process: Process,
    path: PathBuf,
}

/// Looks for the namespaces of pods, given by their cgroups, in their order.
///
/// A container may make namespaces, if it is allowed to, but none that has an
/// interface here: so of several the one that has is the pod's, and else the
/// one of the oldest process.
///
/// # Errors
/// When the node's own links cannot be read.
pub fn find(pods: &[&Path]) -> Result<Vec<Found>, InterfacesError> {
    let own = number(Path::new("/proc/self/ns/net"));
    let mut witnesses = Vec::new();
    let mut found = Vec::new();
    for (pod, cgroup) in pods.iter().enumerate() {
        let processes = tree::processes(cgroup);
        found.push(if processes.is_empty() {
            Found::Empty
        } else {
            Found::Young
        });
        let mut seen = BTreeSet::from([own]);
        for process in by_age(processes) {
            let path = PathBuf::from(format!("/proc/{}/ns/net", process.pid));
            let number = number(&path);
            if number.is_some() && seen.insert(number) {
                witnesses.push(Witness { pod, process, path });
            }
        }
    }
    let paths: Vec<PathBuf> = witnesses.iter().map(|one| one.path.clone()).collect();
    if paths.is_empty() {
        return Ok(found);
    }
    for (witness, namespace) in witnesses.iter().zip(interfaces::find(&paths)?) {
        // Meanwhile it may have ended.
        let Ok(namespace) = namespace else { continue };
        let is_own = matches!(namespace.interfaces, Interfaces::Workload(_));
        if is_own && witness.process.is_still_in(pods[witness.pod]) {
            found[witness.pod].prefer(namespace);
        }
    }
    Ok(found)
}

/// The oldest first.
fn by_age(processes: Vec<u32>) -> Vec<Process> {
    let mut known: Vec<Process> = processes.into_iter().filter_map(Process::look).collect();
    known.sort_unstable();
    known
}

/// A process; its number alone may be given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    /// In clock ticks since boot.
    started: u64,
    pid: u32,
}

impl Process {
    fn look(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started = started(&text)?;
        Some(Self { started, pid })
    }

    fn is_still_in(self, cgroup: &Path) -> bool {
        tree::is_inside(self.pid, cgroup) && Self::look(self.pid) == Some(self)
    }
}

/// The 22nd field of `/proc/PID/stat`. The second, the name, may hold spaces
/// and brackets.
fn started(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Device and inode: two files of one namespace have the same.
fn number(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Found {
    /// The first that has an interface here, else the first.
    fn prefer(&mut self, other: Namespace) {
        match self {
            Self::Namespace(known) if has_interface(known) || !has_interface(&other) => {}
            _ => *self = Self::Namespace(other),
        }
    }
}

fn has_interface(namespace: &Namespace) -> bool {
    let Interfaces::Workload(links) = &namespace.interfaces else {
        return false;
    };
    links
        .iter()
        .any(|link| matches!(link, Coverage::Covered(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::interfaces::Covered;

    #[test]
    fn of_several_namespaces_the_one_with_an_interface_here_is_the_pods() {
        let namespace = |cookie, links| Namespace {
            cookie,
            interfaces: Interfaces::Workload(links),
        };
        let covered = || {
            Coverage::Covered(Covered {
                host_index: 5,
                host_name: "veth5".to_owned(),
                inside_index: 2,
                inside_name: "eth0".to_owned(),
                mac: [2; 6],
                up: true,
                addresses: Vec::new(),
            })
        };
        let mut found = Found::Young;
        for (cookie, links, expected) in [
            (7, vec![], 7),
            (3, vec![], 7),
            (9, vec![covered()], 9),
            (4, vec![covered()], 9),
            (5, vec![], 9),
        ] {
            found.prefer(namespace(cookie, links));
            assert!(matches!(&found, Found::Namespace(found) if found.cookie == expected));
        }
    }

    #[test]
    fn the_age_of_a_process_is_read_behind_whatever_name_it_has() {
        let fields: Vec<String> = (3..=52).map(|field| (field * 10).to_string()).collect();
        let stat = format!("77 (a) b (c) {}\n", fields.join(" "));
        assert_eq!(started(&stat), Some(220));
        assert_eq!(started("77 (a) 1 2"), None);
        let own = Process::look(std::process::id()).unwrap();
        assert!(own.started > 0);
    }

    #[test]
    fn a_pod_without_processes_has_none_and_one_with_the_nodes_is_young() {
        let top = tempfile::tempdir().unwrap();
        let (empty, young) = (top.path().join("a"), top.path().join("b"));
        for path in [&empty, &young] {
            fs::create_dir(path).unwrap();
        }
        let own = format!("{}\n", std::process::id());
        fs::write(young.join("cgroup.procs"), own).unwrap();
        let found = find(&[&empty, &young]).unwrap();
        assert!(
            matches!(found[..], [Found::Empty, Found::Young]),
            "{found:?}"
        );
    }
}
