//! The network namespace of a pod, by the processes in its cgroup or by what the
//! CNI plugin showed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{objects::Uid, tree};
use crate::{
    netlink::{
        NetlinkError,
        links::{self, Link},
    },
    source::interfaces::{self, Coverage, Interfaces, Namespace},
};

/// Namespaces of one pod that are looked into.
const NAMESPACES: usize = 32;

/// What there is to know of a pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It has no process yet.
    Empty,
    /// It has processes, and all of them are still in the node's namespace:
    /// a runtime's that prepares it.
    Young,
    /// Why it could not be looked for everywhere, and was not found elsewhere.
    Failed(String),
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
#[must_use]
pub fn find(pods: &[&Path]) -> Vec<Found> {
    let own = number(Path::new("/proc/self/ns/net"));
    let mut witnesses = Vec::new();
    let mut found = Vec::new();
    for (pod, cgroup) in pods.iter().enumerate() {
        let processes = tree::processes(cgroup);
        let mut known = if processes.is_empty() {
            Found::Empty
        } else {
            Found::Young
        };
        let mut seen = BTreeSet::from([own]);
        for process in by_age(processes) {
            let path = PathBuf::from(format!("/proc/{}/ns/net", process.pid));
            let number = number(&path);
            if number.is_none() || !seen.insert(number) {
                continue;
            }
            if seen.len() > NAMESPACES + 1 {
                known.prefer(too_many());
                break;
            }
            witnesses.push(Witness { pod, process, path });
        }
        found.push(known);
    }
    for (witness, looked) in witnesses.iter().zip(look(&witnesses)) {
        // Meanwhile it may have ended.
        if witness.process.is_still_in(pods[witness.pod]) {
            found[witness.pod].prefer(looked);
        }
    }
    found
}

fn too_many() -> Found {
    Found::Failed(format!(
        "its processes are in more than {NAMESPACES} network namespaces, of which only those of the oldest are looked into"
    ))
}

/// What is found by each of them.
fn look(witnesses: &[Witness]) -> Vec<Found> {
    let paths: Vec<PathBuf> = witnesses.iter().map(|one| one.path.clone()).collect();
    look_into(&paths)
}

/// What these paths lead to, in their order.
#[must_use]
pub fn look_into(paths: &[PathBuf]) -> Vec<Found> {
    if paths.is_empty() {
        return Vec::new();
    }
    match interfaces::find(paths) {
        Ok(found) => {
            let read = found.into_iter().map(|one| match one {
                Ok(namespace) if namespace.interfaces == Interfaces::Node => Found::Young,
                Ok(namespace) => Found::Namespace(namespace),
                Err(error) => Found::Failed(error.to_string()),
            });
            read.collect()
        }
        Err(error) => vec![Found::Failed(error.to_string()); paths.len()],
    }
}

/// The namespaces by which pods had interfaces here, as they were seen last.
///
/// A look may fail, a pod may have no process for a moment, and one may hide its
/// processes. As long as its interface is there, it is the pod's.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<Uid, Namespace>);

impl Seen {
    /// Takes what an agent before this one saw.
    pub fn restore(&mut self, pod: Uid, namespace: &Namespace) {
        self.0.insert(pod, namespace.clone());
    }

    /// Puts what was seen in the place of what is not found now. Who is not in
    /// `found` is forgotten.
    pub fn recall(&mut self, found: &mut BTreeMap<Uid, Found>) {
        self.recall_among(found, links::list);
    }

    fn recall_among(
        &mut self,
        found: &mut BTreeMap<Uid, Found>,
        node: impl FnOnce() -> Result<Vec<Link>, NetlinkError>,
    ) {
        self.0.retain(|uid, _| found.contains_key(uid));
        for (uid, now) in &*found {
            if let Found::Namespace(namespace) = now
                && has_interface(namespace)
            {
                self.0.insert(*uid, namespace.clone());
            }
        }
        let is_missed = |(uid, seen): (&Uid, &Namespace)| found[uid].namespace() != Some(seen);
        if !self.0.iter().any(is_missed) {
            return;
        }
        // Where not even that can be told, what was seen counts.
        if let Ok(node) = node() {
            self.forget_gone(&node);
        }
        for (uid, now) in found {
            if let Some(seen) = self.0.get(uid) {
                *now = Found::Namespace(seen.clone());
            }
        }
    }

    fn forget_gone(&mut self, node: &[Link]) {
        self.0.retain(|_, namespace| {
            if let Interfaces::Workload(links) = &mut namespace.interfaces {
                links.retain(|link| is_there(link, node));
            }
            has_interface(namespace)
        });
    }
}

fn is_there(link: &Coverage, node: &[Link]) -> bool {
    let Coverage::Covered(link) = link else {
        return true;
    };
    let is_it = |host: &Link| host.index == link.host_index && host.name == link.host_name;
    node.iter().any(is_it)
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
    /// The better of the two, else the first.
    fn prefer(&mut self, other: Self) {
        if other.rank() > self.rank() {
            *self = other;
        }
    }

    /// What could not be looked into may be what is looked for, unless that is
    /// found elsewhere.
    fn rank(&self) -> u8 {
        match self {
            Self::Empty => 0,
            Self::Young => 1,
            Self::Namespace(namespace) if has_interface(namespace) => 4,
            Self::Namespace(_) => 2,
            Self::Failed(_) => 3,
        }
    }

    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }
}

#[must_use]
pub fn has_interface(namespace: &Namespace) -> bool {
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

    fn namespace(cookie: u64, hosts: &[u32]) -> Namespace {
        let covered = |index: &u32| {
            Coverage::Covered(Covered {
                host_index: *index,
                host_name: format!("veth{index}"),
                inside_index: 2,
                inside_name: "eth0".to_owned(),
                mac: [2; 6],
                up: true,
                addresses: Vec::new(),
            })
        };
        Namespace {
            cookie,
            interfaces: Interfaces::Workload(hosts.iter().map(covered).collect()),
        }
    }

    fn failed() -> Found {
        Found::Failed("EMFILE".to_owned())
    }

    #[test]
    fn of_several_namespaces_the_one_with_an_interface_here_is_the_pods() {
        let mut found = Found::Young;
        for (cookie, hosts, expected) in [
            (7, &[][..], 7),
            (3, &[], 7),
            (9, &[5], 9),
            (4, &[6], 9),
            (5, &[], 9),
        ] {
            found.prefer(Found::Namespace(namespace(cookie, hosts)));
            assert_eq!(found.namespace().unwrap().cookie, expected);
        }
        found.prefer(failed());
        assert_eq!(found.namespace().unwrap().cookie, 9);
    }

    #[test]
    fn a_namespace_that_could_not_be_looked_into_may_be_the_pods() {
        let mut found = Found::Namespace(namespace(7, &[]));
        found.prefer(failed());
        assert_eq!(found, failed());
        found.prefer(Found::Namespace(namespace(8, &[])));
        assert_eq!(found, failed());
        found.prefer(Found::Namespace(namespace(9, &[5])));
        assert_eq!(found.namespace().unwrap().cookie, 9);
    }

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            ..Link::default()
        }
    }

    /// What becomes of one look at one pod.
    fn recalled(seen: &mut Seen, now: Found, node: &[Link]) -> Found {
        let pod = Uid::new(1);
        let mut found = BTreeMap::from([(pod, now)]);
        seen.recall_among(&mut found, || Ok(node.to_vec()));
        found.remove(&pod).unwrap()
    }

    #[test]
    fn what_a_look_misses_is_still_there_as_long_as_its_interface_is() {
        let mut seen = Seen::default();
        let pods = Found::Namespace(namespace(7, &[5, 6]));
        let node = [link(5, "veth5"), link(6, "veth6")];
        let hidden = || Found::Namespace(namespace(8, &[]));
        assert_eq!(recalled(&mut seen, failed(), &node), failed());
        assert_eq!(recalled(&mut seen, pods.clone(), &[]), pods, "it was seen");
        for missed in [failed(), Found::Empty, Found::Young, hidden()] {
            assert_eq!(recalled(&mut seen, missed, &node), pods);
        }
        // One is gone, and then another has got the other's number.
        let rest = Found::Namespace(namespace(7, &[6]));
        assert_eq!(recalled(&mut seen, failed(), &node[1..]), rest);
        let other = [link(6, "other")];
        assert_eq!(recalled(&mut seen, hidden(), &other), hidden());
        assert_eq!(recalled(&mut seen, Found::Empty, &node), Found::Empty);
    }

    #[test]
    fn what_is_seen_counts_and_not_what_was_seen_before() {
        let mut seen = Seen::default();
        let node = [link(5, "veth5"), link(9, "veth9")];
        for found in [namespace(7, &[5]), namespace(8, &[9]), namespace(8, &[5])] {
            let found = Found::Namespace(found);
            assert_eq!(recalled(&mut seen, found.clone(), &node), found);
        }
    }

    #[test]
    fn nothing_is_forgotten_because_the_node_cannot_be_looked_at_and_all_with_the_pod() {
        let mut seen = Seen::default();
        let pods = Found::Namespace(namespace(7, &[5]));
        let mut found = BTreeMap::from([(Uid::new(1), pods.clone())]);
        seen.recall_among(&mut found, || unreachable!("nothing is missed"));
        let broken = || {
            Err(NetlinkError::Answer {
                what: "links".to_owned(),
                problem: "never the same",
            })
        };
        let mut found = BTreeMap::from([(Uid::new(1), failed())]);
        seen.recall_among(&mut found, broken);
        assert_eq!(found[&Uid::new(1)], pods);
        seen.recall_among(&mut BTreeMap::new(), broken);
        assert!(seen.0.is_empty());
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
        let found = find(&[&empty, &young]);
        assert_eq!(found, [Found::Empty, Found::Young]);
    }
}
