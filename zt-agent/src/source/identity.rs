//! Where identities come from: a file, or a cluster.

use std::{path::Path, sync::Arc};

use super::{
    identities::{self, Resolved},
    kubernetes::Shared,
    resources::Listing,
};
use crate::{
    document::{Config, IdentityFile, config::IdentityConfig},
    kernel::{cgroup::Root, netns::own_cookie},
    resource,
};

/// One of them.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    File,
    Kubernetes(Shared),
}

/// What the cluster says of policies.
#[derive(Clone, Debug, Default)]
pub enum ClusterPolicies {
    /// They do not count on this node.
    #[default]
    Unwanted,
    /// Not listed yet; with our definitions that the API server does not know.
    Unknown(Vec<resource::Kind>),
    Known(Arc<Listing>),
}

impl ClusterPolicies {
    #[must_use]
    pub const fn listing(&self) -> Option<&Arc<Listing>> {
        match self {
            Self::Known(listing) => Some(listing),
            _ => None,
        }
    }
}

impl IdentitySource {
    /// As the configuration says. `node` is this node's name.
    #[must_use]
    pub fn new(config: &Config, node: &str) -> Self {
        match &config.identity {
            IdentityConfig::File => Self::File,
            IdentityConfig::Kubernetes(kubernetes) => {
                let cluster = Shared::new(node, kubernetes.template.clone());
                Self::Kubernetes(cluster.remembering(&config.runtime_directory))
            }
        }
    }

    /// Whether anybody has said yet who is who.
    #[must_use]
    pub fn are_known(&self) -> bool {
        match self {
            Self::File => true,
            Self::Kubernetes(cluster) => cluster.is_complete(),
        }
    }

    /// Cookie of this node's network namespace, where processes that nobody
    /// enrolled are part of the node: on a node of Kubernetes, also before anybody
    /// has said who is who, or the agent could not even ask. `None`: they are not,
    /// or the kernel does not say.
    #[must_use]
    pub fn host_netns(&self) -> Option<u64> {
        match self {
            Self::File => None,
            Self::Kubernetes(_) => own_cookie()
                .inspect_err(|error| tracing::error!(%error, "this node's network namespace is not known: its static pods count as unenrolled"))
                .ok(),
        }
    }

    /// The policies that are resources, as far as they count here.
    #[must_use]
    pub fn policies(&self, config: &Config) -> ClusterPolicies {
        match self {
            Self::Kubernetes(cluster) if config.identity.has_policies() => {
                match cluster.listing() {
                    Some(listing) => ClusterPolicies::Known(listing),
                    None => ClusterPolicies::Unknown(cluster.absent()),
                }
            }
            _ => ClusterPolicies::Unwanted,
        }
    }

    /// Who is where, as this machine is now. `None`: nobody knows yet.
    #[must_use]
    pub fn resolve(&self, file: &IdentityFile, root: &Root, config: &Config) -> Option<Resolved> {
        match self {
            Self::File => Some(identities::resolve(file, root, config.mode)),
            Self::Kubernetes(cluster) => cluster.resolve(root, config.mode),
        }
    }
}

/// The identity file, if the configuration wants one.
#[must_use]
pub fn file(config: &Config) -> Option<&Path> {
    match config.identity {
        IdentityConfig::File => Some(&config.identities),
        IdentityConfig::Kubernetes(_) => None,
    }
}

/// Whether this build can have identities from there.
#[must_use]
pub fn is_built_in(config: &Config) -> bool {
    config.identity == IdentityConfig::File || cfg!(feature = "kubernetes")
}
