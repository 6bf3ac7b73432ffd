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
    source::identities::Resolved,
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
}

impl Shared {
    /// `node` is this node's name in the cluster.
    #[must_use]
    pub fn new(node: &str, template: Template) -> Self {
        let state = State {
            cluster: Cluster::new(template),
            viewed: None,
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

    /// What it means for this machine. `None`: nothing is known yet.
    #[must_use]
    pub fn resolve(&self, root: &Root, mode: Mode) -> Option<Resolved> {
        Some(pods::resolve(&*self.view()?, root, mode))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Change, *};
    use crate::model::template;

    #[test]
    fn there_is_no_view_before_all_was_listed_and_it_is_made_once() {
        let template = Template::parse(template::DEFAULT, "td", "c").unwrap();
        let shared = Shared::new("here", template);
        assert!(shared.view().is_none());
        shared.tell(|cluster| {
            cluster.pod(Change::Listing);
            cluster.pod(Change::ListDone);
            cluster.node(Change::Listing);
            cluster.node(Change::ListDone);
        });
        assert!(shared.view().is_none());
        shared.tell(|cluster| {
            cluster.namespace(Change::Listing);
            cluster.namespace(Change::ListDone);
        });
        let view = shared.view().unwrap();
        assert!(Arc::ptr_eq(&view, &shared.view().unwrap()));
    }
}
