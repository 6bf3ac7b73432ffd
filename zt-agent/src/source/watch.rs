//! Says when a file changed: inotify, and a look at the files' dates for what
//! inotify cannot see (a directory that was replaced, some network and
//! container file systems).

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    inotify::{Events, Inotify},
    policies::is_policy_name,
};

/// Also of what is done to a directory itself.
const CHANGES: Events = Events::IN_CREATE
    .union(Events::IN_DELETE)
    .union(Events::IN_MOVED_FROM)
    .union(Events::IN_MOVED_TO)
    .union(Events::IN_MODIFY)
    .union(Events::IN_CLOSE_WRITE)
    .union(Events::IN_ATTRIB)
    .union(Events::IN_DELETE_SELF)
    .union(Events::IN_MOVE_SELF);

/// The files and directories that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Policy files and directories.
    pub policies: Vec<PathBuf>,
    /// Single files: they may be replaced by a rename.
    pub files: Vec<PathBuf>,
}

impl Watched {
    /// inotify watches directories: a file that is replaced is another file,
    /// and a directory of policies that is exchanged is another directory, so
    /// its parent is watched too.
    fn directories(&self) -> Vec<PathBuf> {
        let inside = self.policies.iter().filter(|path| path.is_dir()).cloned();
        let around = self.policies.iter().chain(&self.files);
        let mut directories: Vec<PathBuf> = inside.chain(around.map(|path| parent(path))).collect();
        directories.sort_unstable();
        directories.dedup();
        directories
    }

    /// Whether a change at `path` can change what we read.
    fn concerns(&self, path: &Path) -> bool {
        let policies = self.policies.iter();
        self.files.iter().any(|file| file == path)
            || policies
                .clone()
                .any(|policy| path == policy || path.parent() == Some(policy))
    }

    /// What `stat` says of everything that is read; it differs when something of
    /// that changed.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut marks = BTreeMap::new();
        for path in self.policies.iter().chain(&self.files) {
            marks.insert(path.clone(), mark(path));
        }
        for directory in &self.policies {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let paths = entries.map(|entry| entry.path());
            for path in paths.filter(|path| is_policy_name(path)) {
                marks.insert(path.clone(), mark(&path));
            }
        }
        Fingerprint(marks)
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map_or_else(|| "/".into(), Path::to_path_buf)
}

impl Fingerprint {
    /// Whether one of the files has nothing in it.
    #[must_use]
    pub fn has_empty_file(&self) -> bool {
        let marks = self.0.values().flatten();
        marks.into_iter().any(|mark| mark[SIZE] == 0)
    }
}

/// Device, inode, size and both times in nanoseconds; `None`: not there.
type Mark = Option<[i64; 7]>;
const SIZE: usize = 2;

/// What `stat` says of a set of files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<PathBuf, Mark>);

fn mark(path: &Path) -> Mark {
    let metadata = fs::metadata(path).ok()?;
    if metadata.is_dir() {
        // What is in it has marks of its own, and what is not read none: whoever
        // makes files there all the time changes nothing.
        let (device, inode) = (metadata.dev(), metadata.ino());
        return Some([device.cast_signed(), inode.cast_signed(), 1, 0, 0, 0, 0]);
    }
    Some([
        metadata.dev().cast_signed(),
        metadata.ino().cast_signed(),
        metadata.size().cast_signed(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ])
}

/// Calls back when something changed. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    watched: Watched,
    inotify: Option<Inotify>,
}

impl Watch {
    /// Begins to watch. `changed` is called from another thread, several
    /// times for one change; where inotify is not to be had, never.
    pub fn start(watched: Watched, changed: impl Fn() + Send + 'static) -> Self {
        let concerned = watched.clone();
        let inotify = Inotify::start(move |path| {
            if path.is_none_or(|path| concerned.concerns(path)) {
                changed();
            }
        });
        let inotify = inotify
            .inspect_err(|error| {
                tracing::warn!(%error, "no inotify: changes of files are seen within a second instead of at once");
            })
            .ok();
        let watch = Self { watched, inotify };
        watch.renew();
        watch
    }

    /// Watches directories that were made anew. Those that are watched
    /// already stay so.
    pub fn renew(&self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        for directory in self.watched.directories() {
            // A missing one is an error of the documents, and told there.
            let _ = inotify.watch(&directory, CHANGES);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Receiver, channel},
        time::Duration,
    };

    use super::*;

    fn watch(directory: &Path) -> (Watch, Receiver<()>) {
        let watched = Watched {
            policies: vec![directory.join("policies")],
            files: vec![directory.join("ids.yaml")],
        };
        let (sender, receiver) = channel();
        let watch = Watch::start(watched, move || _ = sender.send(()));
        (watch, receiver)
    }

    fn heard(receiver: &Receiver<()>) -> bool {
        receiver.recv_timeout(Duration::from_secs(2)).is_ok()
    }

    fn quiet(receiver: &Receiver<()>) -> bool {
        receiver.recv_timeout(Duration::from_millis(150)).is_err()
    }

    #[test]
    fn a_file_that_was_emptied_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ids.yaml");
        let watched = Watched {
            policies: Vec::new(),
            files: vec![file.clone(), directory.path().join("missing")],
        };
        fs::write(&file, "x").unwrap();
        assert!(!watched.fingerprint().has_empty_file());
        fs::write(&file, "").unwrap();
        assert!(watched.fingerprint().has_empty_file());
    }

    #[test]
    fn writing_replacing_and_deleting_a_file_is_heard_and_reading_is_not() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("policies")).unwrap();
        let (_watch, receiver) = watch(directory.path());
        let policy = directory.path().join("policies/a.yaml");
        let steps: [&dyn Fn(); 4] = [
            &|| fs::write(&policy, "a").unwrap(),
            &|| super::super::atomic::write(&policy, b"b").unwrap(),
            &|| fs::remove_file(&policy).unwrap(),
            &|| fs::write(directory.path().join("ids.yaml"), "x").unwrap(),
        ];
        for (number, step) in steps.iter().enumerate() {
            step();
            assert!(heard(&receiver), "step {number}");
            while !quiet(&receiver) {}
        }
        fs::read(directory.path().join("ids.yaml")).unwrap();
        fs::write(directory.path().join("unrelated"), "x").unwrap();
        assert!(quiet(&receiver));
    }

    #[test]
    fn the_fingerprint_differs_when_a_directory_is_exchanged() {
        let directory = tempfile::tempdir().unwrap();
        let policies = directory.path().join("policies");
        fs::create_dir(&policies).unwrap();
        let watched = Watched {
            policies: vec![policies.clone()],
            files: Vec::new(),
        };
        let first = watched.fingerprint();
        assert_eq!(first, watched.fingerprint());
        fs::remove_dir(&policies).unwrap();
        let gone = watched.fingerprint();
        assert_ne!(first, gone);
        fs::create_dir(&policies).unwrap();
        fs::write(policies.join("a.yaml"), "").unwrap();
        assert_ne!(gone, watched.fingerprint());
    }
}
