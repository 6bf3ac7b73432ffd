//! The network namespaces that the CNI plugin showed: evidence of a pod's
//! namespace from before there is a process by which it could be found.
//!
//! What was seen in them is kept in a file, so that an agent that is restarted
//! before the pod's first process still knows whose its interface is.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::objects::Uid;
use crate::source::{atomic, clock, file, interfaces::Namespace};

/// The name of the file, in the runtime directory.
const FILE: &str = "attachments.json";

/// A namespace as a plugin shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    pub pod: Uid,
    /// The runtime's name for it; a pod may get another one.
    pub sandbox: String,
    /// The network that the plugin is part of.
    pub network: String,
    pub file: Arc<File>,
    pub cookie: u64,
}

/// Those of this node's pods.
#[derive(Debug, Default)]
pub struct Attached {
    /// `None`: nothing is kept.
    path: Option<PathBuf>,
    pods: BTreeMap<Uid, Attachment>,
    written: Vec<Kept>,
    unwritten: Option<String>,
}

#[derive(Debug)]
struct Attachment {
    sandbox: String,
    network: String,
    cookie: u64,
    /// `None`: it was shown to an agent before this one.
    file: Option<Arc<File>>,
    /// As it was seen last.
    namespace: Option<Namespace>,
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    /// Indices and cookies begin anew with every boot.
    boot_id: String,
    attached: Vec<Kept>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    pod: Uid,
    sandbox: String,
    network: String,
    namespace: Namespace,
}

impl Attached {
    /// What an agent before this one kept since the machine was switched on.
    #[must_use]
    pub fn open(runtime_directory: &Path) -> Self {
        let path = runtime_directory.join(FILE);
        let written = read(&path);
        let restored = written.iter().cloned().map(|kept| {
            let attachment = Attachment {
                sandbox: kept.sandbox,
                network: kept.network,
                cookie: kept.namespace.cookie,
                file: None,
                namespace: Some(kept.namespace),
            };
            (kept.pod, attachment)
        });
        Self {
            pods: restored.collect(),
            path: Some(path),
            written,
            unwritten: None,
        }
    }

    /// Takes what was shown in the place of what was shown of that pod before.
    /// `true`: that is new.
    pub fn take(&mut self, shown: &Shown) -> bool {
        let known = self.pods.get(&shown.pod);
        let is_known = known.is_some_and(|known| {
            known.file.is_some() && known.cookie == shown.cookie && known.sandbox == shown.sandbox
        });
        if !is_known {
            let attachment = Attachment {
                sandbox: shown.sandbox.clone(),
                network: shown.network.clone(),
                cookie: shown.cookie,
                file: Some(shown.file.clone()),
                namespace: None,
            };
            self.pods.insert(shown.pod, attachment);
        }
        !is_known
    }

    /// Forgets a sandbox, if it is still its pod's. `true`: it was.
    pub fn forget(&mut self, sandbox: &str) -> bool {
        self.keep_only(|_, attachment| attachment.sandbox != sandbox)
    }

    /// Forgets those of a network that are not among these. `true`: there were
    /// some.
    pub fn forget_others(&mut self, network: &str, sandboxes: &[String]) -> bool {
        self.keep_only(|_, attachment| {
            attachment.network != network || sandboxes.contains(&attachment.sandbox)
        })
    }

    /// Forgets pods that are gone.
    pub fn forget_gone(&mut self, is_there: impl Fn(Uid) -> bool) {
        self.keep_only(|pod, _| is_there(pod));
    }

    fn keep_only(&mut self, is_kept: impl Fn(Uid, &Attachment) -> bool) -> bool {
        let before = self.pods.len();
        self.pods.retain(|pod, one| is_kept(*pod, one));
        self.pods.len() != before
    }

    #[must_use]
    pub fn has(&self, pod: Uid) -> bool {
        self.pods.contains_key(&pod)
    }

    /// Who has a namespace.
    #[must_use]
    pub fn owner(&self, cookie: u64) -> Option<Uid> {
        let mut pods = self.pods.iter();
        Some(*pods.find(|(_, one)| one.cookie == cookie)?.0)
    }

    /// A path by which this process can open a pod's namespace, as long as it is
    /// attached.
    #[must_use]
    pub fn path(&self, pod: Uid) -> Option<PathBuf> {
        let file = self.pods.get(&pod)?.file.as_ref()?;
        Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into())
    }

    /// What was seen before this agent, by pod.
    pub fn restored(&self) -> impl Iterator<Item = (Uid, &Namespace)> {
        let pods = self.pods.iter();
        pods.filter_map(|(pod, one)| Some((*pod, one.namespace.as_ref()?)))
    }

    /// Notes what is seen now. A pod that was found in another namespace than
    /// the one that was shown has left that.
    pub fn see<'a>(&mut self, seen: impl Fn(Uid) -> Option<&'a Namespace>) {
        self.pods.retain(|pod, one| match seen(*pod) {
            Some(namespace) if namespace.cookie == one.cookie => {
                one.namespace = Some(namespace.clone());
                true
            }
            Some(_) => false,
            None => true,
        });
        self.save();
    }

    /// Why the next agent will not know what this one does.
    #[must_use]
    pub fn unwritten(&self) -> Option<&str> {
        self.unwritten.as_deref()
    }

    fn save(&mut self) {
        let Some(path) = &self.path else {
            return;
        };
        let kept = self.pods.iter().filter_map(|(pod, one)| {
            Some(Kept {
                pod: *pod,
                sandbox: one.sandbox.clone(),
                network: one.network.clone(),
                namespace: one.namespace.clone()?,
            })
        });
        let kept: Vec<Kept> = kept.collect();
        if kept == self.written && self.unwritten.is_none() {
            return;
        }
        self.unwritten = write(path, kept.clone()).err();
        if let Some(error) = &self.unwritten {
            tracing::error!(%error, "an agent that is started next would not know which interfaces the CNI plugin showed: no pod is attached until it can be written");
        } else {
            self.written = kept;
        }
    }
}

/// Nothing that is not of this boot, or not understood: then processes show it.
fn read(path: &Path) -> Vec<Kept> {
    let contents = file::read(path).ok();
    let contents = contents.and_then(|bytes| serde_json::from_slice::<Contents>(&bytes).ok());
    let of_now = |contents: &Contents| clock::boot_id().is_ok_and(|now| now == contents.boot_id);
    let contents = contents.filter(of_now);
    contents.map_or_else(Vec::new, |contents| contents.attached)
}

fn write(path: &Path, attached: Vec<Kept>) -> Result<(), String> {
    let contents = Contents {
        boot_id: clock::boot_id().map_err(|error| error.to_string())?,
        attached,
    };
    let bytes = serde_json::to_vec(&contents).map_err(|error| error.to_string())?;
    atomic::write(path, &bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::interfaces::Interfaces;

    fn shown(pod: u128, sandbox: &str, cookie: u64) -> Shown {
        Shown {
            pod: Uid::new(pod),
            sandbox: sandbox.to_owned(),
            network: "pods".to_owned(),
            file: Arc::new(File::open("/dev/null").unwrap()),
            cookie,
        }
    }

    fn namespace(cookie: u64) -> Namespace {
        Namespace {
            cookie,
            interfaces: Interfaces::Workload(Vec::new()),
        }
    }

    #[test]
    fn what_was_seen_outlives_the_agent_in_this_boot_and_in_no_other() {
        let top = tempfile::tempdir().unwrap();
        let mut first = Attached::open(top.path());
        assert!(first.take(&shown(1, "a", 7)));
        assert!(!first.take(&shown(1, "a", 7)), "it is known");
        let seen = namespace(7);
        first.see(|_| Some(&seen));
        assert_eq!(first.unwritten(), None);
        let next = Attached::open(top.path());
        let restored: Vec<_> = next.restored().map(|(pod, _)| pod).collect();
        assert_eq!(restored, [Uid::new(1)]);
        assert_eq!(next.path(Uid::new(1)), None, "a descriptor is not kept");
        assert_eq!(next.owner(7), Some(Uid::new(1)));
        let path = top.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        let other = text.replace(&clock::boot_id().unwrap(), "another");
        std::fs::write(&path, other).unwrap();
        assert!(!Attached::open(top.path()).has(Uid::new(1)));
    }

    #[test]
    fn an_old_sandbox_that_is_removed_late_does_not_take_the_new_one_with_it() {
        let mut attached = Attached::default();
        attached.take(&shown(1, "old", 7));
        attached.take(&shown(1, "new", 8));
        assert!(!attached.forget("old"));
        assert_eq!(attached.owner(8), Some(Uid::new(1)));
        assert!(attached.forget("new"));
        assert_eq!(attached.owner(8), None);
    }

    #[test]
    fn what_is_collected_is_of_one_network_and_not_valid() {
        let mut attached = Attached::default();
        attached.take(&shown(1, "a", 7));
        attached.take(&shown(2, "b", 8));
        assert!(!attached.forget_others("another", &[]));
        assert!(attached.forget_others("pods", &["b".to_owned()]));
        assert!(!attached.has(Uid::new(1)) && attached.has(Uid::new(2)));
        attached.forget_gone(|_| false);
        assert!(!attached.has(Uid::new(2)));
    }

    #[test]
    fn a_pod_that_is_found_elsewhere_is_no_longer_where_it_was_shown() {
        let mut attached = Attached::default();
        attached.take(&shown(1, "a", 7));
        attached.see(|_| None);
        assert!(attached.has(Uid::new(1)));
        let elsewhere = namespace(9);
        attached.see(|_| Some(&elsewhere));
        assert!(!attached.has(Uid::new(1)));
    }
}
