//! Follows the cluster and this node's cgroups for the reconcile thread, and
//! puts on the board how that goes.

use std::{future, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};

#[cfg(feature = "kubernetes")]
use super::board::Facts;
use super::{board::Board, driver::Driver};
#[cfg(feature = "kubernetes")]
use crate::source::kubernetes::leases::Claim;
use crate::{
    document::Config,
    kernel::cgroup::Root,
    source::{
        identity::IdentitySource,
        kubernetes::{Shared, tree_watch::TreeWatch},
    },
};

/// For what inotify missed. (The reconcile thread's own looks do not need it.)
const RENEW: Duration = Duration::from_secs(10);

/// What it needs.
pub struct Following {
    pub identities: IdentitySource,
    #[cfg_attr(
        not(feature = "kubernetes"),
        expect(dead_code, reason = "only the watches need it")
    )]
    pub config: Arc<Config>,
    pub root: Arc<Root>,
    #[cfg_attr(
        not(feature = "kubernetes"),
        expect(dead_code, reason = "only the watches need it")
    )]
    pub board: Arc<Board>,
    pub driver: Driver,
}

impl Following {
    /// Never ends. With an identity file there is nothing to follow.
    pub async fn run(self) {
        match self.identities.clone() {
            IdentitySource::File => future::pending().await,
            IdentitySource::Kubernetes(shared) => {
                tokio::join!(self.follow_cgroups(), self.follow_api(shared));
            }
        }
    }

    async fn follow_cgroups(&self) {
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        let driver = self.driver.clone();
        let watch = TreeWatch::start(&self.root.path, move || {
            driver.workloads_changed();
            notify.notify_one();
        });
        loop {
            if watch.renew() {
                self.driver.workloads_changed();
            }
            let _ = timeout(RENEW, changed.notified()).await;
        }
    }

    #[cfg(not(feature = "kubernetes"))]
    async fn follow_api(&self, _: Shared) {
        future::pending().await
    }

    #[cfg(feature = "kubernetes")]
    async fn follow_api(&self, shared: Shared) {
        use crate::{document::config::IdentityConfig, source::kubernetes::watch};

        let IdentityConfig::Kubernetes(config) = &self.config.identity else {
            return future::pending().await;
        };
        let told = |news| match news {
            watch::News::Changed => self.driver.workloads_changed(),
            watch::News::Status(status) => self.put_on_the_board(&status),
        };
        let verdicts = self.board.verdicts.subscribe();
        let denials = self.board.denials.subscribe();
        let claim = || claim(&self.board.facts());
        watch::follow(config, &shared, verdicts, denials, claim, told).await;
    }

    #[cfg(feature = "kubernetes")]
    fn put_on_the_board(&self, status: &crate::source::kubernetes::watch::Status) {
        let stale = status.stale.as_ref();
        let mut facts = self.board.facts();
        let cluster = facts.cluster.get_or_insert_default();
        cluster.pods = status.pods;
        cluster.stale_since = stale.map(|stale| time(stale.since));
        cluster.stale_seconds = stale.map_or(0, |stale| stale.lasting.as_secs());
        cluster.error = stale.map(|stale| stale.error.clone());
    }
}

/// What this node says of itself to others. While something is wrong it may still
/// be that all of it is enforced: nothing is said.
#[cfg(feature = "kubernetes")]
fn claim(facts: &Facts) -> Claim {
    match facts.audits {
        Some(true) => Claim::Ungoverned,
        Some(false) if facts.not_ready().is_empty() => Claim::Governed,
        _ => Claim::Unknown,
    }
}

/// In whole seconds: enough for people.
#[cfg(feature = "kubernetes")]
fn time(since: std::time::SystemTime) -> String {
    let since = jiff::Timestamp::try_from(since).unwrap_or_default();
    format!("{since:.0}")
}
