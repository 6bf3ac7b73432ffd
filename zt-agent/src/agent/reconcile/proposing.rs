//! What files and cluster say together.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Attempt, Look, Reconciler};
use crate::{
    document::render::Style,
    source::{
        documents::{Documents, DocumentsError},
        identity::{self, ClusterPolicies},
        resources::Resources,
    },
};

/// Whoever asks for a look at the files gets one, though somebody writes all the
/// time.
const READS: usize = 5;

/// For so long files may change faster than they are read.
const RESTLESS: Duration = Duration::from_secs(10);

impl Reconciler {
    /// Reads the files. While they have errors those that are in force count, or
    /// after a start those that were accepted last.
    ///
    /// `false`: they changed while they were read, which may have given half of what
    /// is being written, or nothing. The watch tells of that change, or a later look
    /// finds it.
    pub(super) fn read_documents(&mut self, look: Look) -> bool {
        let mut read = self.read_written();
        for _ in 0..READS {
            let now = self.sources.files.fingerprint();
            if now == self.seen.0 {
                break;
            }
            self.seen = (now, Instant::now());
            if look != Look::Read {
                self.say_that_they_change();
                return false;
            }
            read = self.read_written();
        }
        self.unread = None;
        self.fingerprint = self.seen.0.clone();
        self.take(read);
        true
    }

    /// Nothing must be out of force for long without a word.
    fn say_that_they_change(&mut self) {
        let since = *self.unread.get_or_insert_with(Instant::now);
        if since.elapsed() >= RESTLESS {
            self.errors.files = Some(format!(
                "policies or identities have been changing faster than they are read for {} s; \
                 what was in force before still is: end what writes them all the time",
                since.elapsed().as_secs()
            ));
        }
    }

    fn read_written(&self) -> Result<Documents, DocumentsError> {
        Documents::read(&self.config.policies, identity::file(&self.config))
    }

    fn take(&mut self, read: Result<Documents, DocumentsError>) {
        match read {
            Err(error) => {
                self.errors.files = Some(error.render(Style::Plain));
                self.written = match &self.in_force {
                    Some(known) => Some(known.documents.as_ref().clone()),
                    None => self.read_accepted(),
                };
            }
            Ok(documents) => {
                self.errors.files = None;
                self.written = Some(documents);
            }
        }
    }

    pub(super) fn read_accepted(&self) -> Option<Documents> {
        if !self.accepted.exist() {
            return None;
        }
        let read = self.accepted.read();
        let read = read.inspect_err(
            |error| tracing::error!(%error, "nor can the files that were accepted last be used"),
        );
        read.ok()
    }

    /// Whether the cluster says something else of policies than before.
    pub(super) fn hear_cluster(&mut self) -> bool {
        let now = self.sources.identities.policies(&self.config);
        let is_new = match (self.cluster.listing(), now.listing()) {
            (Some(before), Some(now)) => !Arc::ptr_eq(before, now),
            (None, Some(_)) => true,
            _ => false,
        };
        self.cluster = now;
        is_new
    }

    /// What is said becomes the proposal if it is new.
    pub(super) fn propose(&mut self) {
        // Whatever was proposed before is not said any more.
        self.proposed = None;
        self.errors.proposed = None;
        let Some(mut documents) = self.written.clone() else {
            return;
        };
        documents.cluster = self.decide(&documents.names_of_files());
        let known = self.in_force.as_ref();
        if known.is_none_or(|known| *known.documents != documents) {
            self.warned.clear();
            self.proposed = Some(Attempt::new(documents));
        }
    }

    /// Which versions of the cluster's policies count.
    pub(super) fn decide(&mut self, names: &BTreeSet<Arc<str>>) -> Option<Resources> {
        let before = self.before();
        match &self.cluster {
            ClusterPolicies::Unwanted => None,
            ClusterPolicies::Unknown(_) => before.map(|before| before.without(names)),
            ClusterPolicies::Known(listing) => {
                let none = Resources::default();
                let (decided, refused) = listing.decide(before.unwrap_or(&none), names);
                self.refused = refused;
                Some(decided)
            }
        }
    }

    /// The cluster's policies that counted until now.
    pub(super) fn before(&self) -> Option<&Resources> {
        let in_force = self.in_force.as_ref();
        let before = in_force.map_or(&self.kept.policies, |known| &known.documents.cluster);
        before.as_ref()
    }
}
