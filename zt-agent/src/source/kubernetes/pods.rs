//! The pods of this node as the machine shows them: their cgroups, namespaces
//! and interfaces.

use std::{collections::BTreeMap, path::Path};

use super::{
    cluster::{LocalPod, View},
    netns::{self, Found},
    objects::Uid,
    tree::{self, Tree},
};
use crate::{
    kernel::cgroup::{self, Root},
    model::{Endpoint, Mode, Party, SpiffeId, WorkloadSpec},
    source::identities::{Resolved, Waiting, below, enroll},
};

/// Looks every pod up. `mode` is the node's.
///
/// A pod is enrolled by its own cgroup, which is there before any process in
/// it, so that all its containers are the pod: those that prepare it and those
/// beside it, too. Whose pod was deleted while processes are left is not
/// enrolled any more, and is not the node's either.
#[must_use]
pub fn resolve(
    view: &View,
    was_deleted: impl Fn(Uid) -> bool,
    root: &Root,
    mode: Mode,
) -> Resolved {
    let mount = cgroup::mount().unwrap_or_else(|_| root.path.clone());
    let tree = tree::look(&root.path);
    let mut resolved = Resolved {
        endpoints: view.elsewhere.clone(),
        ranges: view.ranges.clone(),
        complaints: view.complaints.clone(),
        ..Resolved::default()
    };
    let namespaces = Namespaces::find(view, &tree, &mut resolved);
    for pod in view.local.iter().filter(|pod| !is_node(pod, &tree)) {
        match workload(pod, &tree, root, &mount, mode) {
            Ok(spec) => resolved.enrol(pod, spec, namespaces.0.get(&pod.uid)),
            Err((_, reason)) if pod.is_over => drop(reason),
            Err((refused, reason)) => resolved.wait(pod, refused, &reason),
        }
    }
    resolved.strangers(view, &tree, was_deleted);
    resolved.settle();
    resolved
}

/// Whether nobody governs a pod, because it is part of the node: the object that
/// stands for a static pod, whose file is on the node and whose cgroup has another
/// name; and the agent itself, which could not ask for its policies otherwise.
fn is_node(pod: &LocalPod, tree: &Tree) -> bool {
    let is_agent = || {
        let cgroup = tree.pods.get(&pod.uid);
        cgroup.is_some_and(|cgroup| tree::processes(cgroup).contains(&std::process::id()))
    };
    pod.host_network && (pod.identity.is_err() || is_agent())
}

fn workload(
    pod: &LocalPod,
    tree: &Tree,
    root: &Root,
    mount: &Path,
    mode: Mode,
) -> Result<WorkloadSpec, (bool, String)> {
    // Time may heal it no more than a restart of the pod would: but it is the
    // pod that is wrong, not this node.
    let identity = pod.identity.clone().map_err(|error| (false, error))?;
    let missing = || (false, "its cgroup is not there yet".to_owned());
    let path = tree.pods.get(&pod.uid).ok_or_else(missing)?;
    Ok(WorkloadSpec {
        identity,
        cgroup: enroll(root, path)?,
        path: below(mount, path),
        mode: pod.mode.unwrap_or(mode),
        raw_sockets: false,
        netns: None,
    })
}

/// The namespaces of the pods that have one for themselves.
#[derive(Debug, Default)]
struct Namespaces(BTreeMap<Uid, Found>);

impl Namespaces {
    fn find(view: &View, tree: &Tree, resolved: &mut Resolved) -> Self {
        let own = view.local.iter().filter(|pod| !pod.host_network);
        let (uids, cgroups): (Vec<Uid>, Vec<&Path>) = own
            .filter_map(|pod| Some((pod.uid, tree.pods.get(&pod.uid)?.as_path())))
            .unzip();
        match netns::find(&cgroups) {
            Ok(found) => Self(uids.into_iter().zip(found).collect()),
            Err(error) => {
                resolved.complaints.push(error.to_string());
                Self::default()
            }
        }
    }
}

impl Resolved {
    fn enrol(&mut self, pod: &LocalPod, mut spec: WorkloadSpec, namespace: Option<&Found>) {
        let identity = spec.identity.clone();
        match namespace {
            _ if pod.host_network => self.leave(&identity, &on_the_hosts_network(pod)),
            Some(Found::Namespace(namespace)) => {
                spec.netns = Some(namespace.cookie);
                self.lead_into(&identity, namespace);
            }
            Some(Found::Young) => self.unsettled = true,
            // Nobody is there who could send a frame.
            Some(Found::Empty) | None => {}
        }
        let claim = |ip| Endpoint {
            ip,
            party: Party::Workload(identity.clone()),
            cgroup: Some(spec.cgroup),
            ports: None,
            target: None,
        };
        self.endpoints
            .extend(pod.addresses.iter().copied().map(claim));
        self.workloads.push(spec);
    }

    fn wait(&mut self, pod: &LocalPod, refused: bool, reason: &str) {
        self.unowned.extend(&pod.addresses);
        let id = pod.identity.as_ref().map_or("", SpiffeId::as_str);
        self.waiting.push(Waiting {
            spiffe_id: if id.is_empty() {
                "no identity".to_owned()
            } else {
                id.to_owned()
            },
            refused,
            reason: format!("pod {}: {reason}", pod.name),
        });
    }

    /// Names the cgroups of pods that the API server does not know (any more).
    fn strangers(&mut self, view: &View, tree: &Tree, was_deleted: impl Fn(Uid) -> bool) {
        let known: std::collections::BTreeSet<Uid> = view.local.iter().map(|pod| pod.uid).collect();
        for (uid, path) in tree.pods.iter().filter(|(uid, _)| !known.contains(uid)) {
            if was_deleted(*uid) {
                self.departed.extend(cgroup::id(path));
            }
            self.waiting.push(Waiting {
                spiffe_id: "no identity".to_owned(),
                refused: false,
                reason: format!("pod {uid}: it has a cgroup here, and the API server knows no such pod of this node; it is unenrolled, and in the node's own network namespace it is host"),
            });
        }
    }
}

fn on_the_hosts_network(pod: &LocalPod) -> String {
    format!(
        "pod {} is on the host's network: only its sockets are governed",
        pod.name
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use tempfile::TempDir;

    use super::*;

    const DELETED: u128 = 1;
    const NUMBER: u128 = 0x0f0e_0d0c_1111_4222_8333_4444_5555_6666;

    /// A root that is a directory: ids are inode numbers there, too.
    fn root(top: &TempDir) -> Root {
        let path = top.path().join("kubepods");
        fs::create_dir_all(&path).unwrap();
        Root {
            directory: File::open(&path).unwrap(),
            path: path.canonicalize().unwrap(),
            id: 1,
            level: 1,
        }
    }

    fn cgroup(root: &Root, uid: Uid) -> u64 {
        let path = root.path.join(format!("burstable/pod{uid}"));
        fs::create_dir_all(&path).unwrap();
        cgroup::id(&path).unwrap()
    }

    fn pod(uid: Uid) -> LocalPod {
        LocalPod {
            uid,
            name: "ns/web".to_owned(),
            identity: Ok("spiffe://td/c/ns/web".parse().unwrap()),
            mode: None,
            host_network: false,
            is_over: false,
            addresses: vec!["10.1.0.5".parse().unwrap()],
        }
    }

    fn resolved(root: &Root, pods: Vec<LocalPod>) -> Resolved {
        let view = View {
            local: pods,
            ..View::default()
        };
        resolve(&view, |uid| uid == Uid::new(DELETED), root, Mode::Enforce)
    }

    #[test]
    fn a_pod_is_enrolled_by_its_cgroup_before_there_is_a_process() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        let id = cgroup(&root, Uid::new(NUMBER));
        let audited = LocalPod {
            mode: Some(Mode::Audit),
            ..pod(Uid::new(NUMBER))
        };
        let resolved = resolved(&root, vec![audited]);
        let [spec] = &resolved.workloads[..] else {
            panic!("{resolved:?}")
        };
        assert_eq!(
            (spec.cgroup, spec.netns, spec.mode),
            (id, None, Mode::Audit)
        );
        assert!(!spec.raw_sockets);
        let [endpoint] = &resolved.endpoints[..] else {
            panic!("{resolved:?}")
        };
        assert_eq!(
            (endpoint.cgroup, endpoint.ip.to_string()),
            (Some(id), "10.1.0.5".into())
        );
        assert_eq!((resolved.waiting, resolved.uncovered), (vec![], vec![]));
    }

    #[test]
    fn a_pod_without_its_cgroup_waits_and_its_address_is_nobodys() {
        let top = tempfile::tempdir().unwrap();
        let resolved = resolved(&root(&top), vec![pod(Uid::new(NUMBER))]);
        assert!(resolved.workloads.is_empty() && resolved.endpoints.is_empty());
        assert_eq!(resolved.unowned.len(), 1);
        assert!(!resolved.waiting[0].refused);
        assert!(
            resolved.waiting[0]
                .reason
                .contains("pod ns/web: its cgroup")
        );
    }

    #[test]
    fn a_cgroup_of_a_pod_that_nobody_knows_is_not_enrolled_and_named() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        cgroup(&root, Uid::new(NUMBER));
        let deleted = cgroup(&root, Uid::new(DELETED));
        let resolved = resolved(&root, vec![]);
        assert!(resolved.workloads.is_empty());
        let [_, waiting] = &resolved.waiting[..] else {
            panic!("{resolved:?}")
        };
        assert!(waiting.reason.contains(&Uid::new(NUMBER).to_string()));
        assert_eq!(resolved.departed, [deleted]);
    }

    #[test]
    fn a_pod_on_the_hosts_network_is_told_apart_by_its_cgroup_and_partial() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        cgroup(&root, Uid::new(NUMBER));
        let host = LocalPod {
            host_network: true,
            addresses: Vec::new(),
            ..pod(Uid::new(NUMBER))
        };
        let resolved = resolved(&root, vec![host]);
        assert_eq!(resolved.workloads.len(), 1);
        assert!(resolved.uncovered[0].why.contains("host's network"));
    }

    #[test]
    fn a_pod_without_an_identity_is_not_enrolled() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        cgroup(&root, Uid::new(NUMBER));
        let nobody = LocalPod {
            identity: Err("it has no service account".to_owned()),
            ..pod(Uid::new(NUMBER))
        };
        let resolved = resolved(&root, vec![nobody]);
        assert!(resolved.workloads.is_empty() && resolved.endpoints.is_empty());
        assert!(resolved.waiting[0].reason.contains("no service account"));
    }

    #[test]
    fn the_agents_own_pod_and_static_ones_are_the_nodes() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        let on_host = |number| LocalPod {
            host_network: true,
            addresses: Vec::new(),
            ..pod(Uid::new(number))
        };
        let (agent, other) = (on_host(NUMBER), on_host(NUMBER + 1));
        for pod in [&agent, &other] {
            cgroup(&root, pod.uid);
        }
        let procs = tree::look(&root.path).pods[&agent.uid].join("cgroup.procs");
        fs::write(procs, format!("{}\n", std::process::id())).unwrap();
        let mirror = LocalPod {
            identity: Err("it has no service account".to_owned()),
            ..on_host(NUMBER + 2)
        };
        let resolved = resolved(&root, vec![agent, other, mirror]);
        assert_eq!(resolved.workloads.len(), 1, "{resolved:?}");
        assert_eq!(resolved.waiting, vec![]);
    }

    #[test]
    fn of_two_pods_with_one_address_the_one_that_is_here_has_it() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        let id = cgroup(&root, Uid::new(NUMBER));
        let gone = LocalPod {
            identity: Ok("spiffe://td/c/ns/gone".parse().unwrap()),
            ..pod(Uid::new(NUMBER + 1))
        };
        let resolved = resolved(&root, vec![pod(Uid::new(NUMBER)), gone]);
        let claims: Vec<Option<u64>> = resolved.endpoints.iter().map(|e| e.cgroup).collect();
        assert_eq!(claims, [Some(id)]);
    }

    #[test]
    fn a_pod_that_is_over_and_has_gone_is_not_waited_for() {
        let top = tempfile::tempdir().unwrap();
        let over = LocalPod {
            is_over: true,
            addresses: Vec::new(),
            ..pod(Uid::new(NUMBER))
        };
        let resolved = resolved(&root(&top), vec![over]);
        assert_eq!((resolved.workloads, resolved.waiting), (vec![], vec![]));
    }
}
