//! Workloads that were enrolled by the admin socket, each as long as its
//! client stays connected.

use std::collections::BTreeMap;

use super::model::Enrolled;
use crate::{
    admin::protocol::Enrol,
    document::Config,
    kernel::{KernelError, cgroup, cgroup::Root},
    model::WorkloadSpec,
    source::identities::below_mount,
};

/// Names an enrolment until it is withdrawn.
pub type Ticket = u64;

/// All of them.
#[derive(Debug, Default)]
pub struct Enrolments {
    next: Ticket,
    by_ticket: BTreeMap<Ticket, Enrolled>,
}

impl Enrolments {
    /// Adds one.
    ///
    /// # Errors
    /// When its cgroup cannot be enrolled.
    pub fn add(
        &mut self,
        request: &Enrol,
        root: &Root,
        config: &Config,
    ) -> Result<Ticket, KernelError> {
        let path = request.cgroup.canonicalize();
        let path = path.map_err(KernelError::io(&request.cgroup))?;
        let spec = WorkloadSpec {
            identity: request.spiffe_id.0.clone(),
            cgroup: root.enrollable(&path)?,
            path: below_mount(&path),
            mode: request.mode.map_or(config.mode, Into::into),
            raw_sockets: false,
            netns: None,
        };
        let ports = request.ports.iter().map(|port| (port.protocol, port.port));
        let ports = ports.collect();
        self.next += 1;
        self.by_ticket.insert(self.next, Enrolled { spec, ports });
        Ok(self.next)
    }

    /// Removes one.
    pub fn withdraw(&mut self, ticket: Ticket) {
        self.by_ticket.remove(&ticket);
    }

    /// Those whose cgroup still exists. A cgroup that was deleted and made
    /// again is another one.
    #[must_use]
    pub fn present(&self, root: &Root) -> Vec<Enrolled> {
        let mount = cgroup::mount().unwrap_or_else(|_| root.path.clone());
        let exists = |enrolled: &&Enrolled| {
            let path = mount.join(&*enrolled.spec.path);
            cgroup::id(&path).is_ok_and(|id| id == enrolled.spec.cgroup)
        };
        self.by_ticket.values().filter(exists).cloned().collect()
    }
}
