//! Our documents as resources of Kubernetes: their definitions for the API
//! server, and their objects as documents for the one parser there is.
//!
//! The API server checks by a schema that is made from the parser's own tables of
//! words, so that most mistakes are told at once to whoever makes them. What such a
//! schema cannot say only the parser finds, and the resource's status tells.

mod definition;
mod document;
pub mod network_policy;
mod policy_schema;
mod set;
mod status;
pub mod yaml;

pub use definition::{definitions, manifest};
pub use document::document;
pub use set::{Refusal, groups_named, policies, problems_of_group};
pub use status::{NodeStatus, PolicyStatus};

/// The API group of [`API_VERSION`](crate::document::API_VERSION).
pub const GROUP: &str = "zt.hanzo.ai";
/// Its version.
pub const VERSION: &str = "v1";

/// A kind of resource. All of them are cluster-scoped: a tenant must not be able
/// to open somebody else's service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ServiceAccessPolicy,
    IdentityGroup,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::ServiceAccessPolicy, Self::IdentityGroup];

    /// As in `kind:`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServiceAccessPolicy => crate::document::policy::POLICY,
            Self::IdentityGroup => crate::document::policy::GROUP,
        }
    }

    /// One of them for kubectl, and in the names of their source files.
    #[must_use]
    pub const fn singular(self) -> &'static str {
        match self {
            Self::ServiceAccessPolicy => "serviceaccesspolicy",
            Self::IdentityGroup => "identitygroup",
        }
    }

    /// As in the API's paths.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::ServiceAccessPolicy => "serviceaccesspolicies",
            Self::IdentityGroup => "identitygroups",
        }
    }
}
