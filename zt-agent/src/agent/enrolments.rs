//! Workloads that were enrolled by the admin socket, each as long as its
//! client stays connected.
//!
//! They are kept in a file of the runtime directory: when the agent is
//! restarted they go on for the moment that their clients need to come back.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::model::Enrolled;
use crate::{
    admin::protocol::Enrol,
    document::Config,
    kernel::{KernelError, cgroup, cgroup::Root},
    model::WorkloadSpec,
    source::{atomic, file, identities::below},
};

/// How long an enrolment outlives an agent without its client coming back.
const GRACE: Duration = Duration::from_secs(5);

/// Names an enrolment until it is withdrawn.
pub type Ticket = u64;

/// All of them.
#[derive(Debug)]
pub struct Enrolments {
    path: PathBuf,
    next: Ticket,
    by_ticket: BTreeMap<Ticket, One>,
}

#[derive(Debug)]
struct One {
    request: Enrol,
    enrolled: Enrolled,
    /// `None`: its client is connected.
    until: Option<Instant>,
}

/// What the file holds of one.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    request: Enrol,
    /// Of the cgroup.
    id: u64,
}

impl Enrolments {
    /// Takes over those of an agent before this one, for a moment.
    #[must_use]
    pub fn restore(config: &Config, root: &Root) -> Self {
        let path = config.runtime_directory.join("enrolments.json");
        let bytes = file::read(&path).unwrap_or_default();
        let kept: Vec<Kept> = serde_json::from_slice(&bytes).unwrap_or_default();
        let mut enrolments = Self {
            path,
            next: 0,
            by_ticket: BTreeMap::new(),
        };
        let until = Instant::now() + GRACE;
        for Kept { request, id } in kept {
            // One whose cgroup is gone is over, also if there is another one
            // in its place.
            if let Ok(enrolled) = enrolled(&request, root, config)
                && enrolled.spec.cgroup == id
            {
                enrolments.insert(request, enrolled, Some(until));
            }
        }
        enrolments
    }

    /// Adds one; [`Self::save`] is to follow.
    ///
    /// # Errors
    /// When its cgroup cannot be enrolled.
    pub fn add(
        &mut self,
        request: &Enrol,
        root: &Root,
        config: &Config,
    ) -> Result<Ticket, KernelError> {
        let enrolled = enrolled(request, root, config)?;
        let returned =
            |one: &One| one.until.is_some() && one.enrolled.spec.cgroup == enrolled.spec.cgroup;
        self.by_ticket.retain(|_, one| !returned(one));
        Ok(self.insert(request.clone(), enrolled, None))
    }

    fn insert(&mut self, request: Enrol, enrolled: Enrolled, until: Option<Instant>) -> Ticket {
        self.next += 1;
        let one = One {
            request,
            enrolled,
            until,
        };
        self.by_ticket.insert(self.next, one);
        self.next
    }

    /// The cgroup of one.
    #[must_use]
    pub fn cgroup(&self, ticket: Ticket) -> Option<u64> {
        Some(self.by_ticket.get(&ticket)?.enrolled.spec.cgroup)
    }

    /// Removes one; [`Self::save`] is to follow.
    pub fn withdraw(&mut self, ticket: Ticket) {
        self.by_ticket.remove(&ticket);
    }

    /// Keeps them for an agent after this one.
    pub fn save(&self) {
        let kept = self.by_ticket.values().map(|one| Kept {
            request: one.request.clone(),
            id: one.enrolled.spec.cgroup,
        });
        let bytes = serde_json::to_vec(&kept.collect::<Vec<_>>()).unwrap_or_default();
        if let Err(error) = atomic::write(&self.path, &bytes) {
            tracing::warn!(%error, "commands that run now lose their identity when the agent is restarted");
        }
    }

    /// Those whose cgroup still exists. A cgroup that was deleted and made
    /// again is another one.
    #[must_use]
    pub fn present(&self, root: &Root) -> Vec<Enrolled> {
        let now = Instant::now();
        let counts = |one: &&One| {
            let spec = &one.enrolled.spec;
            one.until.is_none_or(|until| now < until)
                && cgroup::id(&root.mount.join(&*spec.path)).is_ok_and(|id| id == spec.cgroup)
        };
        let present = self.by_ticket.values().filter(counts);
        present.map(|one| one.enrolled.clone()).collect()
    }
}

fn enrolled(request: &Enrol, root: &Root, config: &Config) -> Result<Enrolled, KernelError> {
    let path = request.cgroup.canonicalize();
    let path = path.map_err(KernelError::io(&request.cgroup))?;
    let spec = WorkloadSpec {
        identity: request.spiffe_id.0.clone(),
        cgroup: root.enrollable(&path)?,
        path: below(&root.mount, &path),
        mode: request.mode.map_or(config.mode, Into::into),
        raw_sockets: false,
        netns: None,
    };
    let ports = request.ports.iter().map(|port| (port.protocol, port.port));
    Ok(Enrolled {
        spec,
        ports: ports.collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn an_enrolment_outlives_the_agent_for_a_moment_and_its_client_may_return() {
        let top = tempfile::tempdir().unwrap();
        let root = Root {
            mount: "/sys/fs/cgroup".into(),
            path: top.path().canonicalize().unwrap(),
            id: 1,
            level: 1,
            directory: File::open(top.path()).unwrap(),
        };
        let config = Config {
            runtime_directory: top.path().into(),
            ..Config::default()
        };
        let request = |name: &str| {
            let cgroup = root.path.join(name);
            fs::create_dir_all(&cgroup).unwrap();
            serde_json::from_value::<Enrol>(
                serde_json::json!({"spiffe_id": format!("spiffe://td/{name}"), "cgroup": cgroup}),
            )
            .unwrap()
        };
        let mut first = Enrolments::restore(&config, &root);
        first.add(&request("a"), &root, &config).unwrap();
        let ended = first.add(&request("b"), &root, &config).unwrap();
        first.withdraw(ended);
        first.save();
        assert_eq!(first.present(&root).len(), 1);
        drop(first);

        let mut second = Enrolments::restore(&config, &root);
        assert_eq!(second.present(&root).len(), 1);
        second.add(&request("a"), &root, &config).unwrap();
        second.save();
        assert_eq!(second.present(&root).len(), 1);
        assert!(second.by_ticket.values().all(|one| one.until.is_none()));

        // Whoever makes a cgroup of that name is not whom it was enrolled for.
        let again = root.path.join("a");
        fs::rename(&again, root.path.join("old")).unwrap();
        fs::create_dir(&again).unwrap();
        assert!(Enrolments::restore(&config, &root).by_ticket.is_empty());
        fs::remove_dir(&again).unwrap();
        fs::rename(root.path.join("old"), &again).unwrap();

        let mut third = Enrolments::restore(&config, &root);
        assert_eq!(third.by_ticket.len(), 1);
        for one in third.by_ticket.values_mut() {
            one.until = Some(Instant::now());
        }
        assert_eq!(third.present(&root), []);
    }
}
