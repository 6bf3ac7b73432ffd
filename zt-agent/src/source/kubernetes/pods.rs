//! The pods of this node as the machine shows them: their cgroups, namespaces
//! and interfaces.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    attached::Attached,
    cluster::{LocalPod, View},
    lingering::Lingering,
    netns::{self, Found, Seen},
    objects::{Phase, Uid},
    tree::{self, Tree},
    unsaid::{self, Unsaid},
};
use crate::{
    kernel::cgroup::{self, Root},
    model::{Endpoint, Mode, Party, SpiffeId, WorkloadSpec},
    source::identities::{Resolved, Waiting, below, enroll},
    source::{interfaces::Namespace, node},
};

/// A pod that runs and has had no cgroup for so long has one elsewhere: the
/// kubelet makes it before the first container. And a cgroup that has had no pod
/// for so long is one's that was deleted: the kubelet, too, makes it for a pod that
/// the API server told it of.
const LATE: Duration = Duration::from_secs(30);

/// What earlier looks found, and this one needs.
#[derive(Debug, Default)]
pub struct Memory {
    seen: Seen,
    /// What the CNI plugin showed.
    pub attached: Attached,
    /// The namespaces of pods, as the last look found them.
    pub namespaces: BTreeMap<Uid, Namespace>,
    /// Pods that run and have no cgroup, and since when.
    without_cgroup: BTreeMap<Uid, Instant>,
    /// The cgroups that the last look found. `None`: there was none.
    looked: Option<BTreeMap<Uid, Whose>>,
    lingering: Lingering,
}

/// Whose a cgroup is that bears a pod's UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// A pod's of this node.
    Known,
    /// Nobody's since then: the watch may not have told of its pod yet.
    New(Instant),
    /// One's that was deleted.
    Departed,
}

/// Looks every pod up. `mode` is the node's.
///
/// A pod is enrolled by its own cgroup, which is there before any process in
/// it, so that all its containers are the pod: those that prepare it and those
/// beside it, too. Whose pod was deleted while processes are left, or cannot be
/// enrolled, is not the node's either.
#[must_use]
pub fn resolve(
    view: &View,
    was_deleted: impl Fn(Uid) -> bool,
    root: &Root,
    mode: Mode,
    memory: &mut Memory,
    now: Instant,
) -> Resolved {
    let tree = tree::look(&root.path);
    let mut resolved = Resolved {
        endpoints: view.elsewhere.clone(),
        ranges: view.ranges.clone(),
        unowned: view.unowned.iter().copied().collect(),
        complaints: view.complaints.clone(),
        outside: memory.outside(view, &tree, root, now),
        ..Resolved::default()
    };
    let services = memory
        .lingering
        .claims(&view.services, &view.denied, &view.owned, now);
    resolved.endpoints.extend(services);
    let namespaces = namespaces(view, &tree, memory, &mut resolved);
    let mut unsaid = Vec::new();
    for pod in view.local.iter().filter(|pod| !is_node(pod, &tree)) {
        match workload(pod, &tree, root, mode) {
            Ok(spec) => {
                let namespace = namespaces.get(&pod.uid);
                if memory.attached.has(pod.uid) {
                    resolved.attached += 1;
                } else if is_exposed(&spec, mode, namespace) {
                    resolved.exposed.push(pod.name.clone());
                }
                let young = namespace
                    .and_then(Found::namespace)
                    .filter(|_| pod.addresses.is_none());
                if let Some(namespace) = young {
                    unsaid.push(Unsaid {
                        identity: spec.identity.clone(),
                        cgroup: spec.cgroup,
                        addresses: unsaid::addresses(namespace, &view.own_ranges),
                    });
                }
                resolved.enrol(pod, spec, namespace);
            }
            Err((_, reason)) if pod.phase == Phase::Over => drop(reason),
            Err((refused, reason)) => {
                resolved.wait(pod, refused, &reason);
                // Nor is it the node's: it would not be if all were well.
                let cgroup = tree.pods.get(&pod.uid).map(|path| cgroup::id(path));
                resolved.departed.extend(cgroup.into_iter().flatten());
            }
        }
    }
    resolved.strangers(&memory.strangers(view, &tree, was_deleted, now), &tree);
    resolved.believe(&unsaid);
    resolved.settle();
    resolved
}

impl Memory {
    /// With what an agent before this one kept.
    #[must_use]
    pub fn open(runtime_directory: &Path) -> Self {
        let attached = Attached::open(runtime_directory);
        let mut seen = Seen::default();
        for (pod, namespace) in attached.restored() {
            seen.restore(pod, namespace);
        }
        Self {
            seen,
            attached,
            ..Self::default()
        }
    }

    /// Who has a network namespace, other than one pod.
    #[must_use]
    pub fn another_in(&self, cookie: u64, pod: Uid) -> Option<Uid> {
        let seen = self.namespaces.iter();
        let mut seen = seen.filter(|(_, one)| one.cookie == cookie);
        let seen = seen.find_map(|(other, _)| (*other != pod).then_some(*other));
        seen.or_else(|| self.attached.owner(cookie).filter(|other| *other != pod))
    }

    /// Whose the cgroups are that bear UIDs. (A static pod's bears none: the
    /// kubelet names it by a hash of its file.)
    ///
    /// Whoever is nobody's at the first look was deleted while no agent ran: all
    /// pods are known before there is a view.
    fn strangers(
        &mut self,
        view: &View,
        tree: &Tree,
        was_deleted: impl Fn(Uid) -> bool,
        now: Instant,
    ) -> BTreeMap<Uid, Whose> {
        let known: BTreeSet<Uid> = view.local.iter().map(|pod| pod.uid).collect();
        let before = self.looked.take();
        let whose = |uid: &Uid| {
            if known.contains(uid) {
                return Whose::Known;
            }
            let Some(before) = &before else {
                return Whose::Departed;
            };
            match before.get(uid) {
                _ if was_deleted(*uid) => Whose::Departed,
                None => Whose::New(now),
                Some(Whose::New(since)) if now.duration_since(*since) < LATE => Whose::New(*since),
                Some(_) => Whose::Departed,
            }
        };
        let found: BTreeMap<Uid, Whose> = tree.pods.keys().map(|uid| (*uid, whose(uid))).collect();
        self.looked = Some(found.clone());
        found
    }

    /// Names the pods that run elsewhere than below the managed root. A static
    /// pod, which has no identity, has its cgroup by another UID.
    fn outside(&mut self, view: &View, tree: &Tree, root: &Root, now: Instant) -> Option<String> {
        let running = (view.local.iter())
            .filter(|pod| pod.phase == Phase::Running && pod.identity.is_ok())
            .filter(|pod| !tree.pods.contains_key(&pod.uid));
        let before = std::mem::take(&mut self.without_cgroup);
        let mut late = Vec::new();
        for pod in running {
            let since = before.get(&pod.uid).copied().unwrap_or(now);
            self.without_cgroup.insert(pod.uid, since);
            if now.duration_since(since) >= LATE {
                late.push(&pod.name);
            }
        }
        let first = late.first()?;
        Some(format!(
            "{} of {} pods of this node run and have no cgroup below {} ({first} is one), so that nothing governs their sockets: `cgroupRoot` must be where the kubelet makes them, kubepods.slice with its systemd driver and kubepods with cgroupfs",
            late.len(),
            view.local.len(),
            root.path.display()
        ))
    }
}

/// Whether nobody governs a pod, because it is part of the node: the object that
/// stands for a static pod, whose file is on the node and whose cgroup has another
/// name; and the agent itself, which could not ask for its policies otherwise.
fn is_node(pod: &LocalPod, tree: &Tree) -> bool {
    let is_agent = || {
        let cgroup = tree.pods.get(&pod.uid);
        cgroup.is_some_and(|cgroup| tree::processes(cgroup).contains(&std::process::id()))
    };
    pod.host_network && (pod.is_static || is_agent())
}

fn workload(
    pod: &LocalPod,
    tree: &Tree,
    root: &Root,
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
        path: below(&root.mount, path),
        mode: pod.mode.unwrap_or(mode),
        raw_sockets: false,
        netns: None,
    })
}

/// Whether nobody decided what it sent before it was found: the node does not
/// drop by default, and the pod is enforced all the same.
fn is_exposed(spec: &WorkloadSpec, node: Mode, namespace: Option<&Found>) -> bool {
    let namespace = namespace.and_then(Found::namespace);
    node == Mode::Audit && spec.mode == Mode::Enforce && namespace.is_some_and(netns::has_interface)
}

/// The namespaces of the pods that have one for themselves: the one that was
/// shown, or else that of their processes.
fn namespaces(
    view: &View,
    tree: &Tree,
    memory: &mut Memory,
    resolved: &mut Resolved,
) -> BTreeMap<Uid, Found> {
    let here: BTreeSet<Uid> = view.local.iter().map(|pod| pod.uid).collect();
    memory.attached.forget_gone(|pod| here.contains(&pod));
    let own = view.local.iter().filter(|pod| !pod.host_network);
    let (mut shown, mut others) = (Vec::new(), Vec::new());
    for pod in own {
        match (memory.attached.path(pod.uid), tree.pods.get(&pod.uid)) {
            (Some(path), _) => shown.push((pod, path)),
            (None, Some(cgroup)) => others.push((pod, cgroup.as_path())),
            (None, None) => {}
        }
    }
    let (shown, paths): (Vec<&LocalPod>, Vec<PathBuf>) = shown.into_iter().unzip();
    let (others, cgroups): (Vec<&LocalPod>, Vec<&Path>) = others.into_iter().unzip();
    let looked = shown.into_iter().zip(netns::look_into(&paths));
    let mut found = BTreeMap::new();
    for (pod, now) in looked.chain(others.into_iter().zip(netns::find(&cgroups))) {
        if let Found::Failed(why) = &now {
            resolved.complaints.push(format!(
                "the network namespace of the pod {} was not found, and what was seen of it before counts: {why}",
                pod.name
            ));
        }
        found.insert(pod.uid, now);
    }
    memory.seen.recall(&mut found);
    let namespaces = found.iter();
    let namespaces = namespaces.filter_map(|(pod, one)| Some((*pod, one.namespace()?.clone())));
    memory.namespaces = namespaces.collect();
    let namespaces = &memory.namespaces;
    memory.attached.see(|pod| namespaces.get(&pod));
    found
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
            Some(Found::Failed(why)) => {
                self.unsettled = true;
                self.leave(&identity, why);
            }
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
        let said = pod.addresses.iter().flatten();
        self.endpoints.extend(said.copied().map(claim));
        self.workloads.push(spec);
    }

    /// Believes pods that they have what their interfaces were given, as long as
    /// nobody said what they have.
    fn believe(&mut self, unsaid: &[Unsaid]) {
        if unsaid.is_empty() {
            return;
        }
        // Its network may not be whole yet.
        self.unsettled |= unsaid.iter().any(|pod| pod.addresses.is_empty());
        // Where not even the node's own are known, nothing is believed.
        let Ok(node) = node::addresses() else {
            return;
        };
        let claimed: HashSet<IpAddr> = (self.endpoints.iter().map(|claim| claim.ip))
            .chain(self.unowned.iter().copied())
            .chain(node)
            .collect();
        let claims = unsaid::claims(unsaid, |ip| claimed.contains(&ip));
        self.endpoints.extend(claims);
    }

    fn wait(&mut self, pod: &LocalPod, refused: bool, reason: &str) {
        self.unowned.extend(pod.addresses.iter().flatten());
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
    fn strangers(&mut self, cgroups: &BTreeMap<Uid, Whose>, tree: &Tree) {
        for (uid, whose) in cgroups {
            let so = match whose {
                Whose::Known => continue,
                Whose::New(_) => {
                    "it is unenrolled, and in the node's own network namespace host until it is known or that is overdue"
                }
                Whose::Departed => "it is unenrolled",
            };
            if *whose == Whose::Departed {
                self.departed.extend(cgroup::id(&tree.pods[uid]));
            }
            self.waiting.push(Waiting {
                spiffe_id: "no identity".to_owned(),
                refused: false,
                reason: format!("pod {uid}: it has a cgroup here, and the API server knows no such pod of this node; {so}"),
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
            mount: "/sys/fs/cgroup".into(),
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
            is_static: false,
            mode: None,
            host_network: false,
            phase: Phase::Running,
            addresses: Some(vec!["10.1.0.5".parse().unwrap()]),
        }
    }

    fn resolved(root: &Root, pods: Vec<LocalPod>) -> Resolved {
        looked(root, pods, &mut Memory::default(), Instant::now())
    }

    fn looked(root: &Root, pods: Vec<LocalPod>, memory: &mut Memory, now: Instant) -> Resolved {
        let view = View {
            local: pods,
            ..View::default()
        };
        let was_deleted = |uid| uid == Uid::new(DELETED);
        resolve(&view, was_deleted, root, Mode::Enforce, memory, now)
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
        let resolved = resolved(&root, vec![]);
        assert!(resolved.workloads.is_empty());
        let [waiting] = &resolved.waiting[..] else {
            panic!("{resolved:?}")
        };
        assert!(waiting.reason.contains(&Uid::new(NUMBER).to_string()));
    }

    #[test]
    fn a_cgroup_is_of_a_pod_that_was_deleted_or_of_one_that_is_not_known_yet() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        let (mut memory, start) = (Memory::default(), Instant::now());
        let mut departed = |pods, at| looked(&root, pods, &mut memory, start + at).departed;
        let young = LATE.checked_sub(Duration::from_millis(1)).unwrap();
        let (known, left) = (Uid::new(NUMBER), cgroup(&root, Uid::new(NUMBER + 1)));
        let id = cgroup(&root, known);
        // Deleted before there was an agent.
        assert_eq!(departed(vec![pod(known)], Duration::ZERO), [left]);
        let deleted = cgroup(&root, Uid::new(DELETED));
        let new = cgroup(&root, Uid::new(NUMBER + 2));
        assert_eq!(departed(vec![pod(known)], Duration::ZERO), [deleted, left]);
        // Deleted while it looked.
        assert_eq!(departed(vec![], young), [deleted, id, left]);
        assert_eq!(departed(vec![], LATE), [deleted, id, left, new]);
        assert_eq!(departed(vec![pod(known)], LATE * 2), [deleted, left, new]);
    }

    #[test]
    fn a_pod_on_the_hosts_network_is_told_apart_by_its_cgroup_and_partial() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        cgroup(&root, Uid::new(NUMBER));
        let host = LocalPod {
            host_network: true,
            addresses: Some(Vec::new()),
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
        let id = cgroup(&root, Uid::new(NUMBER));
        let nobody = LocalPod {
            identity: Err("it has no service account".to_owned()),
            host_network: true,
            ..pod(Uid::new(NUMBER))
        };
        let resolved = resolved(&root, vec![nobody]);
        assert_eq!(resolved.departed, [id], "nor is it the node's");
        assert!(resolved.workloads.is_empty() && resolved.endpoints.is_empty());
        assert!(resolved.waiting[0].reason.contains("no service account"));
    }

    #[test]
    fn the_agents_own_pod_and_static_ones_are_the_nodes() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        let on_host = |number| LocalPod {
            host_network: true,
            addresses: Some(Vec::new()),
            ..pod(Uid::new(number))
        };
        let (agent, other) = (on_host(NUMBER), on_host(NUMBER + 1));
        for pod in [&agent, &other] {
            cgroup(&root, pod.uid);
        }
        let procs = tree::look(&root.path).pods[&agent.uid].join("cgroup.procs");
        fs::write(procs, format!("{}\n", std::process::id())).unwrap();
        let mirror = LocalPod {
            is_static: true,
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
            phase: Phase::Over,
            addresses: Some(Vec::new()),
            ..pod(Uid::new(NUMBER))
        };
        let resolved = resolved(&root(&top), vec![over]);
        assert_eq!((resolved.workloads, resolved.waiting), (vec![], vec![]));
    }

    #[test]
    fn a_pod_that_runs_without_a_cgroup_for_long_is_outside_of_the_root() {
        let top = tempfile::tempdir().unwrap();
        let root = root(&top);
        let start = Instant::now();
        let mut memory = Memory::default();
        let mut outside = |pod: LocalPod, after: Duration| {
            let view = View {
                local: vec![pod],
                ..View::default()
            };
            let now = start + after;
            resolve(&view, |_| false, &root, Mode::Enforce, &mut memory, now).outside
        };
        let running = || pod(Uid::new(NUMBER));
        assert_eq!(outside(running(), Duration::ZERO), None);
        assert_eq!(outside(running(), LATE / 2), None);
        let text = outside(running(), LATE).unwrap();
        assert!(
            text.contains("cgroupRoot") && text.contains("ns/web"),
            "{text}"
        );
        for other in [
            LocalPod {
                phase: Phase::Ahead,
                ..running()
            },
            // A static pod.
            LocalPod {
                identity: Err("it has no service account".to_owned()),
                ..running()
            },
        ] {
            assert_eq!(outside(other, LATE * 3), None);
        }
        assert_eq!(outside(running(), LATE * 4), None, "it begins anew");
        cgroup(&root, Uid::new(NUMBER));
        assert_eq!(outside(running(), LATE * 9), None);
    }

    #[test]
    fn an_address_that_nobody_is_believed_to_have_is_not_the_worlds() {
        let top = tempfile::tempdir().unwrap();
        let view = View {
            unowned: ["10.9.9.9".parse().unwrap()].into(),
            ..View::default()
        };
        let mut memory = Memory::default();
        let now = Instant::now();
        let root = root(&top);
        let resolved = resolve(&view, |_| false, &root, Mode::Enforce, &mut memory, now);
        assert_eq!(resolved.unowned, ["10.9.9.9".parse::<IpAddr>().unwrap()]);
    }
}
