//! The cluster between the watches, which tell it, and the reconcile thread,
//! which looks at it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    cluster::{Cluster, View},
    pods,
};
use crate::{
    kernel::cgroup::Root,
    model::{Mode, Template},
    resource,
    source::{identities::Resolved, resources::Listing},
};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shared {
    node: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    cluster: Cluster,
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
            cluster: Cluster::new(template),
            viewed: None,
            listed: None,
        };
        Self {
            node: node.into(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Tells it something. Hold it for moments only.
    pub fn tell<T>(&self, what: impl FnOnce(&mut Cluster) -> T) -> T {
        what(&mut self.state().cluster)
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

    /// `None`: not everything was listed yet, and who is missing may exist.
    #[must_use]
    pub fn view(&self) -> Option<Arc<View>> {
        let mut state = self.state();
        if !state.cluster.is_complete() {
            return None;
        }
        let revision = state.cluster.revision();
        if let Some((of, view)) = &state.viewed
            && *of == revision
        {
            return Some(view.clone());
        }
        let view = Arc::new(state.cluster.view(&self.node));
        state.viewed = Some((revision, view.clone()));
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
        let was_deleted = |pod| self.state().cluster.was_deleted(pod);
        Some(pods::resolve(&*self.view()?, was_deleted, root, mode))
    }
}

#[cfg(test)]
mod tests {
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
