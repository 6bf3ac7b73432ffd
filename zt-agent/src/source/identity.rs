//! Where identities come from: a file, or a cluster.

use std::path::Path;

use super::{
    identities::{self, Resolved},
    kubernetes::Shared,
};
use crate::{
    document::{Config, IdentityFile, config::IdentityConfig},
    kernel::cgroup::Root,
};

/// One of them.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    File,
    Kubernetes(Shared),
}

impl IdentitySource {
    /// As the configuration says. `node` is this node's name.
    #[must_use]
    pub fn new(config: &Config, node: &str) -> Self {
        match &config.identity {
            IdentityConfig::File => Self::File,
            IdentityConfig::Kubernetes(kubernetes) => {
                Self::Kubernetes(Shared::new(node, kubernetes.template.clone()))
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
