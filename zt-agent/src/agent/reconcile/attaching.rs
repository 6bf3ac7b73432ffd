//! Binds network namespaces that the CNI plugin shows to their pods, and says
//! when such a pod is covered.

use super::Reconciler;
use crate::{
    admin::protocol::{Attached, Detach},
    agent::attachments::{
        Attaching,
        NotCovered::{self, Missing, Refused},
    },
    model::WorkloadSpec,
    source::{
        identity::IdentitySource,
        interfaces::{Coverage, Covered, Interfaces},
        kubernetes::{Shared, Unattached},
    },
};

impl From<Unattached> for NotCovered {
    fn from(error: Unattached) -> Self {
        if error.is_passing() {
            Missing(error.to_string())
        } else {
            Refused(error.to_string())
        }
    }
}

const NO_CLUSTER: &str = "this agent has its identities from a file (`identity: file`) and knows no pods; take zt-agent-cni out of the node's network configuration: zt-agent cni remove";

impl Reconciler {
    fn shared(&self) -> Result<&Shared, NotCovered> {
        match &self.sources.identities {
            IdentitySource::Kubernetes(shared) => Ok(shared),
            IdentitySource::File => Err(Refused(NO_CLUSTER.to_owned())),
        }
    }

    /// Takes the namespace for the pod's, from the next step on. `true`: that is
    /// new.
    ///
    /// # Errors
    /// Why it is not the pod's.
    pub fn attach(&self, attaching: &Attaching) -> Result<bool, NotCovered> {
        let name = attaching.pod_name();
        Ok(self.shared()?.attach(&attaching.shown, &name)?)
    }

    /// Forgets what was attached. `true`: something was.
    pub fn detach(&self, what: &Detach) -> bool {
        let Ok(shared) = self.shared() else {
            return false;
        };
        match what {
            Detach::Sandbox(sandbox) => shared.detach(sandbox),
            Detach::Others { network, sandboxes } => shared.detach_others(network, sandboxes),
        }
    }

    /// Why nothing could be attached now, whatever pod it is.
    ///
    /// # Errors
    /// That.
    pub fn can_attach(&self) -> Result<(), String> {
        let found = self.shared().and_then(|_| self.in_force_now().map(drop));
        found.map_err(|(Missing(why) | Refused(why))| why)
    }

    /// The node's ends of a pod's interfaces, once every one of them is covered.
    ///
    /// # Errors
    /// What is missing.
    pub fn covered(&self, attaching: &Attaching) -> Result<Attached, NotCovered> {
        let workload = self.enrolled(attaching)?;
        if let Some(why) = self.shared()?.unwritten() {
            return Err(Missing(format!(
                "what was shown cannot be kept for the next agent: {why}"
            )));
        }
        let links = self.links(attaching)?;
        links
            .iter()
            .try_for_each(|link| self.is_covered(link, workload))?;
        let named = |link: &&Covered| link.inside_name == attaching.request.interface;
        if !links.iter().any(|link| named(&link)) {
            return Err(Missing(format!(
                "it has no interface {} that is up",
                attaching.request.interface
            )));
        }
        let interfaces = links.into_iter().map(|link| link.host_name);
        Ok(Attached {
            interfaces: interfaces.collect(),
        })
    }

    /// What is in force follows this machine as it is.
    fn in_force_now(&self) -> Result<&[WorkloadSpec], NotCovered> {
        if let Some(ignorance) = &self.ignorance {
            return Err(Missing(ignorance.to_string()));
        }
        if let Some(error) = &self.errors.in_force {
            return Err(Missing(error.clone()));
        }
        let in_force = self.in_force.as_ref();
        let machine = in_force.and_then(|attempt| attempt.tried.as_ref());
        let nothing = || Missing("no policy generation is in force".to_owned());
        Ok(&machine.ok_or_else(nothing)?.resolved.workloads)
    }

    fn enrolled(&self, attaching: &Attaching) -> Result<&WorkloadSpec, NotCovered> {
        let cookie = Some(attaching.shown.cookie);
        let mut workloads = self
            .in_force_now()?
            .iter()
            .filter(|one| one.netns == cookie);
        let Some(workload) = workloads.next() else {
            return Err(Missing(self.why_not_enrolled(attaching)));
        };
        if workloads.next().is_some() {
            return Err(Refused(
                "another pod's processes are in its network namespace".to_owned(),
            ));
        }
        match &self.shortage {
            Some(short) if short.has_left_out(workload.cgroup) => Err(Missing(short.full.clone())),
            _ => Ok(workload),
        }
    }

    fn why_not_enrolled(&self, attaching: &Attaching) -> String {
        let start = format!("pod {}: ", attaching.pod_name());
        let tried = self.in_force.as_ref().and_then(|one| one.tried.as_ref());
        let waiting = tried
            .into_iter()
            .flat_map(|machine| &machine.resolved.waiting);
        let mut reasons = waiting.filter_map(|one| one.reason.strip_prefix(&start));
        let known = reasons.next().map(str::to_owned);
        known.unwrap_or_else(|| "it is not enrolled yet".to_owned())
    }

    /// The interfaces of a pod that lead to the node.
    fn links(&self, attaching: &Attaching) -> Result<Vec<Covered>, NotCovered> {
        let namespace = self.shared()?.namespace(attaching.request.pod);
        let namespace = namespace.filter(|found| found.cookie == attaching.shown.cookie);
        let Some(Interfaces::Workload(links)) = namespace.map(|found| found.interfaces) else {
            return Err(Missing(
                "its network namespace was not looked into".to_owned(),
            ));
        };
        let mut covered = Vec::new();
        for link in links {
            match link {
                Coverage::Covered(link) if link.up => covered.push(link),
                Coverage::Covered(_) | Coverage::Internal { .. } => {}
                Coverage::Uncovered { why, .. } => return Err(Refused(why)),
            }
        }
        Ok(covered)
    }

    fn is_covered(&self, link: &Covered, workload: &WorkloadSpec) -> Result<(), NotCovered> {
        let name = &link.host_name;
        if self.enforcer.cgroup_behind(link.host_index) != Some(workload.cgroup) {
            return Err(Missing(format!(
                "the programs do not know yet whose the interface {name} is"
            )));
        }
        let faults = self.coverage.faults(link.host_index);
        let faults = faults.map_err(|error| Missing(format!("{name} is not covered: {error}")))?;
        match faults.first() {
            None => Ok(()),
            Some(fault) => Err(Missing(format!("{name} is not covered: {fault}"))),
        }
    }
}
