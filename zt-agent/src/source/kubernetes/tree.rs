//! This node's cgroups: which pods there are, and which processes they have.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    cgroup::{self, Place},
    objects::Uid,
};

/// The top, the class, the pod.
const DEPTH: usize = 3;
/// Cgroups of one pod that are looked into; a container may make many, and
/// those of the containers themselves come first.
const CGROUPS: usize = 256;
/// Processes of one cgroup that are looked at.
const PROCESSES: usize = 32;

/// The pods that have a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    pub pods: BTreeMap<Uid, PathBuf>,
    /// In which cgroups of pods are made.
    pub above: Vec<PathBuf>,
}

/// Looks below the managed root.
#[must_use]
pub fn look(root: &Path) -> Tree {
    let mut tree = Tree::default();
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    // Also where it is none of the kubelet's: the top is made below it.
    tree.above.push(root.to_owned());
    tree.search(root, &name, root, DEPTH);
    tree
}

impl Tree {
    fn search(&mut self, root: &Path, name: &str, directory: &Path, depth: usize) {
        for path in directories(directory) {
            let below = path.strip_prefix(root).unwrap_or(&path);
            match cgroup::place(name, below) {
                Some(Place::Pod(uid)) => _ = self.pods.insert(uid, path),
                Some(Place::Above) if depth > 1 => {
                    self.search(root, name, &path, depth - 1);
                    self.above.push(path);
                }
                _ => {}
            }
        }
    }
}

/// Sorted. A cgroup may vanish while we look: it is not there then.
fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort_unstable();
    found
}

/// Processes in a cgroup and below it.
#[must_use]
pub fn processes(cgroup: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    let mut left = std::collections::VecDeque::from([cgroup.to_owned()]);
    for _ in 0..CGROUPS {
        let Some(directory) = left.pop_front() else {
            break;
        };
        // A threaded cgroup has none of its own: they are its parent's.
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        let some = text.lines().take(PROCESSES);
        found.extend(
            some.filter_map(|pid| pid.parse::<u32>().ok())
                .filter(|pid| *pid != 0),
        );
        left.extend(directories(&directory));
    }
    found
}

/// Whether a process is in a cgroup of that name, or below it.
#[must_use]
pub fn is_inside(pid: u32, cgroup: &Path) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    unified.is_some_and(|path| {
        Path::new(path)
            .components()
            .any(|c| Some(c.as_os_str()) == cgroup.file_name())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0f0e0d0c-1111-4222-8333-444455556666";
    const TWO: &str = "0f0e0d0c-1111-4222-8333-444455556667";

    #[test]
    fn pods_of_every_class_are_found_and_what_containers_make_is_not() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("zt-test");
        for path in [
            format!("kubepods/pod{ONE}/x/kubepods/pod{TWO}"),
            format!("kubepods/burstable/pod{TWO}"),
            "kubepods/besteffort".to_owned(),
            "other/kubepods".to_owned(),
        ] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        let tree = look(&root);
        let one = root.join(format!("kubepods/pod{ONE}"));
        let two = root.join(format!("kubepods/burstable/pod{TWO}"));
        assert_eq!(
            tree.pods,
            BTreeMap::from([(ONE.parse().unwrap(), one), (TWO.parse().unwrap(), two)])
        );
        let above = ["", "kubepods/besteffort", "kubepods/burstable", "kubepods"];
        assert_eq!(
            tree.above,
            above.map(|path| root.join(path).components().collect::<PathBuf>())
        );
        assert_eq!(look(&top.path().join("nowhere")).pods.len(), 0);
    }

    #[test]
    fn processes_are_found_at_every_level_and_not_too_many_in_one() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("container/init.scope");
        fs::create_dir_all(&deep).unwrap();
        let many: String = (1..1000).map(|pid| format!("{pid}\n")).collect();
        fs::write(top.path().join("container/cgroup.procs"), many).unwrap();
        // A process of another PID namespace is 0.
        fs::write(deep.join("cgroup.procs"), "4242\n0\n").unwrap();
        let found = processes(top.path());
        assert_eq!(found.len(), PROCESSES + 1);
        assert!(found.contains(&4242));
    }

    #[test]
    fn a_process_is_inside_the_cgroups_on_its_path() {
        let own = std::process::id();
        let text = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = text.lines().find_map(|line| line.strip_prefix("0::"));
        if let Some(name) = path.and_then(|path| Path::new(path).file_name()) {
            assert!(is_inside(own, Path::new(name)));
        }
        assert!(!is_inside(own, Path::new("/pod0f0e0d0c")));
        assert!(!is_inside(0, Path::new("/")));
    }
}
