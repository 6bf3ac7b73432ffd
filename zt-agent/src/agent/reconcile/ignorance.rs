//! What must be known of the cluster before anybody is enrolled by it.
//!
//! While something is not, what an agent before this one left in force is better
//! than to know nobody; where nothing was left, nobody is enrolled.

use std::{fmt, sync::Arc};

use super::Reconciler;
use crate::{
    resource::Kind,
    source::{
        accepted::Accepted,
        identity::ClusterPolicies,
        resources::{Listing, Resources},
    },
};

/// What is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignorance {
    /// Who is who.
    Identities,
    /// Which policies there are: one may be a deny.
    Policies,
    /// What was accepted of a policy whose latest version is refused.
    Version { policy: Arc<str>, lost: Arc<str> },
}

impl fmt::Display for Ignorance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SILENCE: &str = "the cluster's API server has not said yet";
        match self {
            Self::Identities => write!(f, "{SILENCE} who is who"),
            Self::Policies => write!(f, "{SILENCE} which policies there are"),
            Self::Version { policy, lost } => write!(
                f,
                "the latest version of the policy {policy} is refused, and what was accepted of it before is not known any more ({lost}): correct the policy, or delete it"
            ),
        }
    }
}

/// The policies of the cluster that an agent before this one accepted; or why
/// that is not known.
#[derive(Debug, Default)]
pub struct Kept {
    pub policies: Option<Resources>,
    lost: Option<Arc<str>>,
}

impl Kept {
    /// `something_in_force`: by an agent before this one.
    pub fn read(accepted: &Accepted, something_in_force: bool) -> Self {
        let lost = match accepted.cluster() {
            Ok(None) if something_in_force && !accepted.exist() => {
                "the agent before this one could not keep it".to_owned()
            }
            Ok(policies) => {
                return Self {
                    policies,
                    lost: None,
                };
            }
            Err(error) => error.to_string(),
        };
        Self {
            policies: None,
            lost: Some(lost.into()),
        }
    }
}

impl Reconciler {
    pub(super) fn look_for_ignorance(&self) -> Option<Ignorance> {
        if !self.sources.identities.are_known() {
            return Some(Ignorance::Identities);
        }
        match &self.cluster {
            ClusterPolicies::Unwanted => None,
            ClusterPolicies::Unknown(absent) => {
                // Where there is no definition there is no policy.
                let are_none =
                    self.kept.lost.is_none() && absent.contains(&Kind::ServiceAccessPolicy);
                let known = are_none || self.before().is_some();
                (!known).then_some(Ignorance::Policies)
            }
            ClusterPolicies::Known(listing) => self.lost_version(listing),
        }
    }

    /// A policy of which no version counts, though one may have counted before.
    fn lost_version(&self, listing: &Listing) -> Option<Ignorance> {
        let lost = self.kept.lost.clone()?;
        let documents = self.proposed.as_ref().or(self.in_force.as_ref());
        let documents = &documents?.documents;
        let (files, nothing) = (documents.names_of_files(), Resources::default());
        let counting = documents.cluster.as_ref().unwrap_or(&nothing);
        let mut policies = listing.policies.iter();
        let missing = policies.find(|told| !files.contains(&told.name) && !counting.has(told))?;
        Some(Ignorance::Version {
            policy: missing.name.clone(),
            lost,
        })
    }

    /// Nothing is touched.
    pub(super) fn is_blind(&self) -> bool {
        self.ignorance.is_some() && self.in_force.is_none() && self.enforcer.generation() != 0
    }

    /// What is in force from here on is known.
    pub(super) fn see(&mut self) {
        if self.ignorance.is_none() && self.in_force.is_some() {
            self.kept.lost = None;
        }
    }

    /// Why what the cluster says is not in force.
    pub(super) fn what_is_missing(&self) -> Option<String> {
        let ignorance = self.ignorance.as_ref()?;
        if self.is_blind() {
            return Some(format!(
                "{ignorance}; what was enforced before stays in force"
            ));
        }
        // That the cluster was not listed is said elsewhere.
        let said = *ignorance == Ignorance::Identities;
        (!said).then(|| format!("{ignorance}; until then nobody is enrolled"))
    }
}
