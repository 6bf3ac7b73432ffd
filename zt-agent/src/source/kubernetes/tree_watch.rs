//! Says when the cgroup of a pod is made, gets its first process, or goes:
//! inotify on the cgroups above the pods, and on each pod's `cgroup.events`.

use std::path::{Path, PathBuf};

use super::tree;
use crate::source::inotify::{Events, Inotify};

/// Of a cgroup in which those of pods are made.
const ABOVE: Events = Events::IN_CREATE
    .union(Events::IN_DELETE)
    .union(Events::IN_ONLYDIR);
/// Of a pod's `cgroup.events`: the kernel says so that it differs.
const POPULATED: Events = Events::IN_MODIFY;
/// As deep as the tree is, and once more.
const LOOKS: usize = 5;

/// See the module. Dropping it ends the watch.
#[derive(Debug)]
pub struct TreeWatch {
    root: PathBuf,
    inotify: Option<Inotify>,
}

impl TreeWatch {
    /// Watches below the managed root from [`Self::renew`] on. `changed` is called
    /// from another thread; where inotify is not to be had, never.
    pub fn start(root: &Path, changed: impl Fn() + Send + 'static) -> Self {
        let inotify = Inotify::start(move |_| changed());
        let inotify = inotify
            .inspect_err(|error| {
                tracing::warn!(%error, "no inotify: a new pod is seen within a second instead of at once");
            })
            .ok();
        let root = root.to_owned();
        Self { root, inotify }
    }

    /// Watches what is new. Call it after every change, and now and then. `true`:
    /// something was new, and what happened in it before is told by nobody.
    #[must_use = "a process may have come unheard"]
    pub fn renew(&self) -> bool {
        let Some(inotify) = &self.inotify else {
            return false;
        };
        // What is made in a cgroup before that is watched is seen at the next look.
        (0..LOOKS).take_while(|_| self.watch_new(inotify)).count() > 0
    }

    /// `true`: something is.
    fn watch_new(&self, inotify: &Inotify) -> bool {
        let tree = tree::look(&self.root);
        let pods = tree.pods.values().map(|pod| pod.join("cgroup.events"));
        let wanted = (tree.above.into_iter().map(|path| (path, ABOVE)))
            .chain(pods.map(|path| (path, POPULATED)));
        // One that cannot be watched has just gone, or is tried again.
        let watched = wanted.map(|(path, events)| inotify.watch(&path, events));
        watched.fold(false, |any, one| any | matches!(one, Ok(true)))
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
        let watch = TreeWatch::start(&root, move || _ = sender.send(()));
        assert!(watch.renew());
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
            assert_eq!(watch.renew(), number < 2);
            while receiver.recv_timeout(Duration::from_millis(100)).is_ok() {}
        }
        // To look is no change, whoever looks.
        fs::read(&events).unwrap();
        assert!(!watch.renew());
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err());
    }
}
