//! Where sockets of ours can be: the cgroups under the managed root, and the
//! network namespaces of their processes.

use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use zt_common::{MAX_DEPTH, flow::Owner};

use super::far::Owners;
use crate::source::netns;

/// The network namespace of the thread that reads it.
const HOME: &str = "/proc/thread-self/ns/net";

/// What a look found.
#[derive(Debug, Default)]
pub struct Places {
    pub owners: Owners,
    /// One file each; the caller's own comes first.
    pub namespaces: Vec<io::Result<File>>,
}

/// Looks at every cgroup below `root` and at its processes. `declared`:
/// namespaces that are known without them.
///
/// A namespace is opened anew each time and not kept: an open one lives on
/// after its workload, and so do its interfaces.
#[must_use]
pub fn look(root: &Path, declared: &BTreeSet<PathBuf>) -> Places {
    let mut places = Places::default();
    let mut seen = HashSet::new();
    places.add(Path::new(HOME), &mut seen);
    for path in declared {
        places.add(path, &mut seen);
    }
    places.walk(root, &mut seen);
    places
}

/// Device and inode: two files of one namespace have the same.
type Seen = HashSet<(u64, u64)>;

fn number(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

impl Places {
    /// What cannot be opened has just gone, and its sockets with it.
    fn add(&mut self, namespace: &Path, seen: &mut Seen) {
        let Ok(found) = fs::metadata(namespace) else {
            return;
        };
        if seen.insert(number(&found)) {
            self.namespaces.push(netns::open(namespace));
        }
    }

    fn walk(&mut self, root: &Path, seen: &mut Seen) {
        let mut left = vec![(root.to_owned(), Vec::new())];
        while let Some((directory, above)) = left.pop() {
            for namespace in namespaces_of(&directory) {
                self.add(&namespace, seen);
            }
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let Ok(found) = entry.metadata() else {
                    continue;
                };
                let mut path = above.clone();
                path.push(found.ino());
                self.owners.insert(found.ino(), owner(&path));
                left.push((entry.path(), path));
            }
        }
    }
}

/// The owner of sockets made in the last cgroup of `path`, which begins below
/// the root. The namespace is not known.
fn owner(path: &[u64]) -> Owner {
    let mut below_root = [0; MAX_DEPTH];
    for (to, from) in below_root.iter_mut().zip(path) {
        *to = *from;
    }
    Owner {
        leaf: path.last().copied().unwrap_or(0),
        below_root,
        netns: 0,
    }
}

/// The files of the namespaces of a cgroup's processes, one per process.
fn namespaces_of(cgroup: &Path) -> Vec<PathBuf> {
    // A threaded cgroup has none of its own: they are its parent's.
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let file = |pid: &str| Path::new("/proc").join(pid).join("ns/net");
    text.lines().map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cgroup_below_the_root_owns_its_sockets_with_those_above_it() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("a/b/c/d/e");
        fs::create_dir_all(&deep).unwrap();
        let id = |path: &str| fs::metadata(top.path().join(path)).unwrap().ino();
        let places = look(top.path(), &BTreeSet::new());
        assert_eq!(places.owners.len(), 5);
        let b = places.owners[&id("a/b")];
        assert_eq!(
            (b.leaf, b.below_root),
            (id("a/b"), [id("a"), id("a/b"), 0, 0])
        );
        let e = places.owners[&id("a/b/c/d/e")];
        let four = ["a", "a/b", "a/b/c", "a/b/c/d"].map(id);
        assert_eq!((e.leaf, e.below_root), (id("a/b/c/d/e"), four));
    }

    #[test]
    fn a_namespace_is_found_by_a_process_and_taken_once() {
        let top = tempfile::tempdir().unwrap();
        let own = format!("{}\n{}\n", std::process::id(), std::process::id());
        fs::write(top.path().join("cgroup.procs"), own).unwrap();
        let declared = BTreeSet::from(["/proc/self/ns/net".into(), "/nowhere".into()]);
        let places = look(top.path(), &declared);
        assert_eq!(places.namespaces.len(), 1);
    }
}
