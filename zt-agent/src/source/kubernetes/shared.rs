//! The cluster between the watches, which tell it, and the reconcile thread,
//! which looks at it.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    attached::Shown,
    cluster::{Cluster, LocalPod, View},
    objects::{Phase, Uid},
    pods::{self, Memory},
};
use crate::{
    kernel::cgroup::Root,
    model::{Mode, Template},
    resource,
    source::{identities::Resolved, interfaces::Namespace, resources::Listing},
};

/// Why a namespace that was shown is not taken for a pod's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unattached {
    #[error("the cluster's API server has not said yet who is who")]
    Unknown,
    #[error("the API server has told of no pod {0} on this node")]
    NoSuchPod(Uid),
    #[error("the pod {pod} is {known} and not {claimed}")]
    Renamed {
        pod: Uid,
        known: String,
        claimed: String,
    },
    #[error("the pod {0} is on the host's network, which has no interface of its own")]
    OnTheHost(String),
    #[error("the pod {0} is over")]
    Over(String),
    #[error("the pod {pod} has no identity: {why}")]
    Nobody { pod: String, why: String },
    #[error("the pod {other} has this network namespace already")]
    Taken { other: Uid },
}

impl Unattached {
    /// Whether time may heal it.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unknown | Self::NoSuchPod(_))
    }
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shared {
    node: Arc<str>,
    state: Arc<Mutex<State>>,
    /// Of the reconcile thread alone, which holds it for as long as it looks.
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug)]
struct State {
    /// Copied where it changes while somebody looks at it.
    cluster: Arc<Cluster>,
    /// With the revision that it is of.
    viewed: Option<(u64, Arc<View>)>,
    /// The same of the policies.
    listed: Option<(u64, Arc<Listing>)>,
}

impl Shared {
    /// `node` is this node's name in the cluster.
    #[must_use]
    pub fn new(node: &str, template: Template) -> Self {
        let state = State {
            cluster: Arc::new(Cluster::new(template)),
            viewed: None,
            listed: None,
        };
        Self {
            node: node.into(),
            state: Arc::new(Mutex::new(state)),
            memory: Arc::default(),
        }
    }

    /// Has it know what an agent before this one was shown.
    #[must_use]
    pub fn remembering(mut self, runtime_directory: &Path) -> Self {
        self.memory = Arc::new(Mutex::new(Memory::open(runtime_directory)));
        self
    }

    /// Takes a network namespace for a pod's, from the next look on. `name` is
    /// `namespace/name`. `true`: that is new.
    ///
    /// # Errors
    /// Why it is not the pod's.
    pub fn attach(&self, shown: &Shown, name: &str) -> Result<bool, Unattached> {
        let view = self.view().ok_or(Unattached::Unknown)?;
        let pod = view.local.iter().find(|pod| pod.uid == shown.pod);
        let pod = pod.ok_or(Unattached::NoSuchPod(shown.pod))?;
        can_be_attached(pod, name)?;
        let mut memory = self.memory();
        if let Some(other) = memory.another_in(shown.cookie, shown.pod) {
            return Err(Unattached::Taken { other });
        }
        Ok(memory.attached.take(shown))
    }

    /// Forgets what was shown for a sandbox. `true`: something was.
    #[must_use]
    pub fn detach(&self, sandbox: &str) -> bool {
        self.memory().attached.forget(sandbox)
    }

    /// Forgets what was shown for other sandboxes of a network than these.
    /// `true`: something was.
    #[must_use]
    pub fn detach_others(&self, network: &str, sandboxes: &[String]) -> bool {
        self.memory().attached.forget_others(network, sandboxes)
    }

    /// A pod's namespace, as the last look found it.
    #[must_use]
    pub fn namespace(&self, pod: Uid) -> Option<Namespace> {
        self.memory().namespaces.get(&pod).cloned()
    }

    /// Why the next agent will not know what this one was shown.
    #[must_use]
    pub fn unwritten(&self) -> Option<String> {
        self.memory().attached.unwritten().map(str::to_owned)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it something. Hold it for moments only.
    pub fn tell<T>(&self, what: impl FnOnce(&mut Cluster) -> T) -> T {
        what(Arc::make_mut(&mut self.state().cluster))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nobody leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything was listed once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state().cluster.is_complete()
    }

    /// Whether everybody was listed once, whatever is known of the Leases.
    pub fn is_listed(&self) -> bool {
        self.state().cluster.is_listed()
    }

    /// `None`: not everything was listed yet, and who is missing may exist.
    #[must_use]
    pub fn view(&self) -> Option<Arc<View>> {
        let state = self.state();
        if !state.cluster.is_complete() {
            return None;
        }
        let cluster = state.cluster.clone();
        let revision = cluster.revision();
        if let Some((of, view)) = &state.viewed
            && *of == revision
        {
            return Some(view.clone());
        }
        // The watches go on telling while this takes its time.
        drop(state);
        let view = Arc::new(cluster.view(&self.node));
        let mut state = self.state();
        let viewed = state.viewed.as_ref();
        if viewed.is_none_or(|(of, _)| *of < revision) {
            state.viewed = Some((revision, view.clone()));
        }
        Some(view)
    }

    /// The policies; the same one until they differ. `None`: they were not
    /// listed yet.
    #[must_use]
    pub fn listing(&self) -> Option<Arc<Listing>> {
        let mut state = self.state();
        let revision = state.cluster.listing_revision();
        if let Some((of, listing)) = &state.listed
            && *of == revision
        {
            return Some(listing.clone());
        }
        let listing = Arc::new(state.cluster.listing()?);
        state.listed = Some((revision, listing.clone()));
        Some(listing)
    }

    /// This node's name in the cluster.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Our definitions that the API server said it does not know.
    #[must_use]
    pub fn absent(&self) -> Vec<resource::Kind> {
        self.state().cluster.absent()
    }

    /// What it means for this machine. `None`: nothing is known yet.
    #[must_use]
    pub fn resolve(&self, root: &Root, mode: Mode) -> Option<Resolved> {
        let view = self.view()?;
        let mut memory = self.memory();
        let was_deleted = |pod| self.state().cluster.was_deleted(pod);
        let now = Instant::now();
        Some(pods::resolve(
            &view,
            was_deleted,
            root,
            mode,
            &mut memory,
            now,
        ))
    }
}

fn can_be_attached(pod: &LocalPod, name: &str) -> Result<(), Unattached> {
    if pod.name != name {
        return Err(Unattached::Renamed {
            pod: pod.uid,
            known: pod.name.clone(),
            claimed: name.to_owned(),
        });
    }
    if pod.host_network {
        return Err(Unattached::OnTheHost(name.to_owned()));
    }
    if pod.phase == Phase::Over {
        return Err(Unattached::Over(name.to_owned()));
    }
    match &pod.identity {
        Ok(_) => Ok(()),
        Err(why) => Err(Unattached::Nobody {
            pod: name.to_owned(),
            why: why.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{
        super::{Change, health::Watched},
        *,
    };
    use crate::model::template;

    #[test]
    fn there_is_no_view_before_all_was_listed_and_it_is_made_once() {
        let template = Template::parse(template::DEFAULT, "td", "c").unwrap();
        let shared = Shared::new("here", template);
        assert!(shared.view().is_none());
        macro_rules! list {
            ($($kind:ident),+) => {
                shared.tell(|cluster| {
                    $(cluster.$kind(Change::Listing);
                      cluster.$kind(Change::ListDone);)+
                })
            };
        }
        list!(pod, node, namespace, service);
        assert!(
            shared.view().is_none(),
            "whose a Service's port is nobody knows"
        );
        list!(slice);
        assert!(shared.view().is_none());
        assert!(shared.view().is_none());
        shared.tell(|cluster| cluster.govern(BTreeSet::new()));
        assert!(shared.view().is_none());
        // An old API server has no ranges of Services.
        shared.tell(|cluster| cluster.define(Watched::ServiceRanges, false));
        let view = shared.view().unwrap();
        assert!(Arc::ptr_eq(&view, &shared.view().unwrap()));
    }

    #[test]
    fn there_is_no_listing_before_policies_and_groups_were_listed() {
        let template = Template::parse(template::DEFAULT, "td", "c").unwrap();
        let shared = Shared::new("here", template);
        shared.tell(|cluster| {
            cluster.policy(Change::Listing);
            cluster.policy(Change::ListDone);
            cluster.group(Change::Listing);
        });
        assert!(shared.listing().is_none());
        shared.tell(|cluster| cluster.group(Change::ListDone));
        let listing = shared.listing().unwrap();
        assert!(Arc::ptr_eq(&listing, &shared.listing().unwrap()));
        // A list that fails in the middle says nothing.
        shared.tell(|cluster| cluster.policy(Change::Listing));
        assert!(Arc::ptr_eq(&listing, &shared.listing().unwrap()));
    }
}
