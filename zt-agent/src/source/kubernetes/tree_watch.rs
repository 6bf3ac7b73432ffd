//! Says when the cgroup of a pod is made, gets its first process, or goes:
//! inotify on the cgroups above the pods, and on each pod's `cgroup.events`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::tree;

/// See the module. Dropping it ends the watch.
#[derive(Debug)]
pub struct TreeWatch {
    root: PathBuf,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl TreeWatch {
    /// Begins to watch below the managed root. `changed` is called from
    /// another thread; where inotify is not to be had, never.
    pub fn start(root: &Path, changed: impl Fn() + Send + 'static) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error may stand for events that were dropped. To look into a
            // directory is an event, too.
            if event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                return;
            }
            changed();
        });
        let watcher = watcher
            .inspect_err(|error| {
                tracing::warn!(%error, "no inotify: a new pod is seen within a second instead of at once");
            })
            .ok();
        let mut watch = Self {
            root: root.to_owned(),
            watcher,
            watched: BTreeSet::new(),
        };
        watch.renew();
        watch
    }

    /// Watches what is new. Call it after every change, and now and then.
    pub fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let tree = tree::look(&self.root);
        let events = tree.pods.values().map(|pod| pod.join("cgroup.events"));
        let wanted: BTreeSet<PathBuf> = tree.above.into_iter().chain(events).collect();
        for gone in self.watched.difference(&wanted) {
            // The kernel has ended it with the cgroup.
            let _ = watcher.unwatch(gone);
        }
        // One that cannot be watched has just gone, or is tried again.
        self.watched = (wanted.into_iter())
            .filter(|path| {
                self.watched.contains(path)
                    || watcher.watch(path, RecursiveMode::NonRecursive).is_ok()
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc::channel, time::Duration};

    use super::*;

    #[test]
    fn a_new_pod_is_heard_at_every_level_and_so_is_its_first_process() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("kubepods");
        fs::create_dir(&root).unwrap();
        let (sender, receiver) = channel();
        let mut watch = TreeWatch::start(&root, move || _ = sender.send(()));
        let class = root.join("burstable");
        let pod = class.join("pod0f0e0d0c-1111-4222-8333-444455556666");
        let events = pod.join("cgroup.events");
        let steps: [&dyn Fn(); 3] = [
            &|| fs::create_dir(&class).unwrap(),
            &|| {
                fs::create_dir(&pod).unwrap();
                fs::write(&events, "populated 0\n").unwrap();
            },
            &|| fs::write(&events, "populated 1\n").unwrap(),
        ];
        for (number, step) in steps.iter().enumerate() {
            step();
            assert!(
                receiver.recv_timeout(Duration::from_secs(5)).is_ok(),
                "step {number}"
            );
            watch.renew();
            while receiver.recv_timeout(Duration::from_millis(100)).is_ok() {}
        }
        // To look is no change.
        watch.renew();
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err());
    }
}
