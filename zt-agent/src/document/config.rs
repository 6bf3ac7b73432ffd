//! The agent's configuration file.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    address, cgroup,
    field::{Field, Fields, Sink, all},
    text::SourceFile,
    yaml,
};
use crate::model::{InterfacePattern, Mode, Problem, Template, template};

/// The environment variable that replaces `policies`: paths separated by
/// colons, relative to the working directory.
pub const POLICY_PATH_VARIABLE: &str = "ZT_POLICY_PATH";
/// The environment variable that replaces `node`: a DaemonSet has one
/// configuration for all nodes.
pub const NODE_VARIABLE: &str = "ZT_NODE";

/// The event ring is made of whole pages.
const PAGE: u32 = 4096;

const MODES: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("audit", Mode::Audit)];

/// What the agent runs with. [`Config::default`] documents the defaults; the
/// fields of the file have the same names in camel case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name in records, and in the cluster. `None`: the host name.
    pub node: Option<String>,
    pub mode: Mode,
    /// Root of the managed tree, relative to the cgroup v2 mount or absolute.
    /// Empty: the root cgroup, only with `allowRootCgroup`.
    pub cgroup_root: PathBuf,
    /// Govern every process of the machine.
    pub allow_root_cgroup: bool,
    /// Absolute; below a bpffs mount.
    pub pin_directory: PathBuf,
    pub state_directory: PathBuf,
    pub runtime_directory: PathBuf,
    /// `identity` and `kubernetes` in the file.
    pub identity: IdentityConfig,
    /// The identity file.
    pub identities: PathBuf,
    /// Files and directories. None are looked for where the cluster's
    /// resources count.
    pub policies: Vec<PathBuf>,
    pub cluster_ranges: Vec<IpNet>,
    /// This node's own processes may open flows to its workloads (probes).
    pub host_may_reach: bool,
    pub audit: AuditConfig,
    /// Time between two looks whether the maps still hold what was written.
    pub verify: Duration,
    /// Health, readiness and metrics.
    pub listen: SocketAddr,
    pub limits: Limits,
    pub interfaces: Interfaces,
}

/// Where identities come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityConfig {
    /// The identity file.
    File,
    Kubernetes(KubernetesConfig),
}

impl IdentityConfig {
    /// Whether policies come from there, too.
    #[must_use]
    pub const fn has_policies(&self) -> bool {
        match self {
            Self::File => false,
            Self::Kubernetes(kubernetes) => kubernetes.policies,
        }
    }
}

/// Identities from a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// With `trustDomain` and `cluster` in it.
    pub template: Template,
    /// `None`: the service account of the agent's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// The cluster's `ServiceAccessPolicy` resources count, beside the files.
    pub policies: bool,
    /// Denials are told as Events on the pods that met them.
    pub events: bool,
    /// This node says by a Lease that it enforces everything here, and hears who else
    /// does.
    pub leases: bool,
}

/// The interfaces of the node through which workloads reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// Names of the node's side of the veths of workloads, also of those that
    /// nobody enrolled; a trailing `*` stands for any rest. What comes from an
    /// interface with such a name is dropped unless our program let it pass,
    /// from the moment that the interface appears.
    pub managed: Vec<InterfacePattern>,
    /// The bit that marks what our program let pass.
    pub mark: u32,
}

impl Default for Interfaces {
    fn default() -> Self {
        Self {
            managed: Vec::new(),
            mark: 0x10,
        }
    }
}

/// The audit trail on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    pub file: PathBuf,
    /// A file that has grown beyond this is rotated.
    pub rotate_bytes: u64,
    /// Rotated files that are kept.
    pub keep_files: u32,
    /// Equal decisions within this time share a record. Zero: none do.
    pub fold: Duration,
    /// Time between signed checkpoints.
    pub checkpoint: Duration,
}

/// Sizes of the kernel's maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub policy_entries: u32,
    pub addresses: u32,
    pub cidrs: u32,
    pub workloads: u32,
    pub flows: u32,
    /// Flows that one workload may hold; at most `flows`.
    pub flow_share: u32,
    /// Size of the event ring; a power of two and a multiple of the page size.
    pub ring_bytes: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            mode: Mode::Enforce,
            cgroup_root: "zt.slice".into(),
            allow_root_cgroup: false,
            pin_directory: "/sys/fs/bpf/zt".into(),
            state_directory: "/var/lib/zt-agent".into(),
            runtime_directory: "/run/zt-agent".into(),
            identity: IdentityConfig::File,
            identities: "identities.yaml".into(),
            policies: vec!["policies".into()],
            cluster_ranges: Vec::new(),
            host_may_reach: true,
            audit: AuditConfig::default(),
            verify: Duration::from_secs(30),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8055)),
            limits: Limits::default(),
            interfaces: Interfaces::default(),
        }
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            file: "/var/log/zt-agent/audit.jsonl".into(),
            rotate_bytes: 64 << 20,
            keep_files: 10,
            fold: Duration::from_secs(5),
            checkpoint: Duration::from_secs(10),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            policy_entries: 131_072,
            addresses: 65_536,
            cidrs: 16_384,
            workloads: 16_384,
            flows: 65_536,
            flow_share: 8192,
            ring_bytes: 8 << 20,
        }
    }
}

impl Config {
    /// Reads a configuration file. An empty one is all defaults.
    ///
    /// `directory` is where the file lies: relative paths in it start there.
    /// `environment` looks a variable up.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        file: &SourceFile,
        directory: &Path,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<Problem>> {
        let documents = yaml::parse(file).map_err(|problem| vec![*problem])?;
        let sink = Sink::default();
        let config = match &*documents {
            [] => Some(Self::default()),
            [document] => read(&Field::root(document, file, &sink)),
            [_, second, ..] => Field::root(second, file, &sink).refuse(
                "a configuration file is one document",
                "remove the `---` line",
            ),
        };
        let (mut config, _) = sink.finish(config)?;
        config.resolve(directory);
        // Set and empty is how many launchers spell "not set".
        if let Some(paths) = environment(POLICY_PATH_VARIABLE).filter(|paths| !paths.is_empty()) {
            config.policies = split_paths(paths);
        }
        if let Some(node) = environment(NODE_VARIABLE).filter(|node| is_name(node)) {
            config.node = Some(node);
        }
        Ok(config)
    }

    fn resolve(&mut self, directory: &Path) {
        let single = [
            &mut self.state_directory,
            &mut self.runtime_directory,
            &mut self.identities,
            &mut self.audit.file,
        ];
        let kubeconfig = match &mut self.identity {
            IdentityConfig::Kubernetes(kubernetes) => kubernetes.kubeconfig.as_mut(),
            IdentityConfig::File => None,
        };
        for path in (single.into_iter().chain(&mut self.policies)).chain(kubeconfig) {
            *path = directory.join(&*path);
        }
    }
}

fn split_paths(paths: String) -> Vec<PathBuf> {
    let nonempty = |path: &PathBuf| !path.as_os_str().is_empty();
    std::env::split_paths(&OsString::from(paths))
        .filter(nonempty)
        .collect()
}

const KNOWN: [&str; 18] = [
    "node",
    "mode",
    "cgroupRoot",
    "allowRootCgroup",
    "pinDirectory",
    "stateDirectory",
    "runtimeDirectory",
    "identity",
    "kubernetes",
    "identities",
    "policies",
    "clusterRanges",
    "hostMayReach",
    "audit",
    "verifySeconds",
    "listen",
    "limits",
    "interfaces",
];

fn read(document: &Field<'_>) -> Option<Config> {
    let fields = document.fields(&KNOWN)?;
    let default = Config::default();
    let node = fields.or("node", default.node, |f| node_name(&f).map(Some));
    let mode = fields.or("mode", default.mode, |f| f.word(&MODES));
    let allow_root_cgroup = fields.or("allowRootCgroup", default.allow_root_cgroup, |f| f.flag());
    let cgroup_root = fields.or("cgroupRoot", default.cgroup_root, |f| {
        managed_root(&f, allow_root_cgroup == Some(true))
    });
    let pin_directory = fields.or("pinDirectory", default.pin_directory, |f| absolute(&f));
    let state_directory = fields.or("stateDirectory", default.state_directory, |f| path(&f));
    let runtime_directory = fields.or("runtimeDirectory", default.runtime_directory, |f| path(&f));
    let identity = identity(&fields);
    let identities = fields.or("identities", default.identities, |f| path(&f));
    let no_files = identity.as_ref().is_some_and(IdentityConfig::has_policies);
    let usual = if no_files {
        Vec::new()
    } else {
        default.policies
    };
    let policies = fields.or("policies", usual, |f| list(&f, path));
    let cluster_ranges = fields.or("clusterRanges", default.cluster_ranges, |f| {
        list(&f, address::network)
    });
    let host_may_reach = fields.or("hostMayReach", default.host_may_reach, |f| f.flag());
    let audit = fields.or("audit", default.audit, |f| audit(&f));
    let verify = fields.or("verifySeconds", default.verify, |f| seconds(&f, 1));
    let listen = fields.or("listen", default.listen, |f| {
        f.parse("write it like 127.0.0.1:8055")
    });
    let limits = fields.or("limits", default.limits, |f| limits(&f));
    let interfaces = fields.or("interfaces", default.interfaces, |f| interfaces(&f));
    Some(Config {
        node: node?,
        mode: mode?,
        cgroup_root: cgroup_root?,
        allow_root_cgroup: allow_root_cgroup?,
        pin_directory: pin_directory?,
        state_directory: state_directory?,
        runtime_directory: runtime_directory?,
        identity: identity?,
        identities: identities?,
        policies: policies?,
        cluster_ranges: cluster_ranges?,
        host_may_reach: host_may_reach?,
        audit: audit?,
        verify: verify?,
        listen: listen?,
        limits: limits?,
        interfaces: interfaces?,
    })
}

fn node_name(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if !is_name(text) {
        return field.refuse("is no name", "remove the field to take the host name");
    }
    Some(text.to_owned())
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

fn identity(fields: &Fields<'_>) -> Option<IdentityConfig> {
    let in_cluster = fields.or("identity", false, |f| {
        f.word(&[("file", false), ("kubernetes", true)])
    })?;
    if in_cluster {
        if let Some(file) = fields.optional("identities") {
            file.error(
                "is not read: with `identity: kubernetes` the API server says who is who",
                "remove it, or write `identity: file`",
            );
        }
        let kubernetes = fields.required("kubernetes", "it says which cluster this is")?;
        return kubernetes_config(&kubernetes).map(IdentityConfig::Kubernetes);
    }
    if let Some(kubernetes) = fields.optional("kubernetes") {
        return kubernetes.refuse(
            "is not read: identities come from a file",
            "write `identity: kubernetes`, or remove it",
        );
    }
    Some(IdentityConfig::File)
}

fn kubernetes_config(field: &Field<'_>) -> Option<KubernetesConfig> {
    let fields = field.fields(&[
        "trustDomain",
        "cluster",
        "template",
        "kubeconfig",
        "policies",
        "events",
        "leases",
    ])?;
    let trust_domain = fields
        .required("trustDomain", "every identity begins with it")
        .and_then(|f| f.text());
    let cluster = fields
        .required("cluster", "it is part of every identity")
        .and_then(|f| f.text());
    let text = fields.or("template", template::DEFAULT, |f| f.text());
    let kubeconfig = fields.or("kubeconfig", None, |f| path(&f).map(Some));
    let policies = fields.or("policies", true, |f| f.flag());
    let events = fields.or("events", true, |f| f.flag());
    let leases = fields.or("leases", true, |f| f.flag());
    let at = fields.optional("template").unwrap_or_else(|| field.clone());
    let template = match Template::parse(text?, trust_domain?, cluster?) {
        Ok(template) => Some(template),
        Err(error) => at.refuse(
            format!("of the template for identities: {error}"),
            format!("write it like {}", template::DEFAULT),
        ),
    };
    Some(KubernetesConfig {
        template: template?,
        kubeconfig: kubeconfig?,
        policies: policies?,
        events: events?,
        leases: leases?,
    })
}

fn managed_root(field: &Field<'_>, root_allowed: bool) -> Option<PathBuf> {
    let path = cgroup::path(field)?;
    if path.as_os_str().is_empty() && !root_allowed {
        return field.refuse(
            "is the root cgroup: every process of the machine would be denied until it is enrolled",
            "name a cgroup below it, or set `allowRootCgroup: true` if that is what you want",
        );
    }
    Some(path)
}

fn path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if text.is_empty() || text.contains('\0') {
        return field.refuse("is no path", "");
    }
    Some(text.into())
}

fn absolute(field: &Field<'_>) -> Option<PathBuf> {
    let path = path(field)?;
    if path.is_absolute() {
        return Some(path);
    }
    field.refuse(
        "must be an absolute path below a bpffs mount",
        "write it like /sys/fs/bpf/zt",
    )
}

fn list<'a, T>(field: &Field<'a>, read: impl Fn(&Field<'a>) -> Option<T>) -> Option<Vec<T>> {
    all(field.elements()?.iter().map(read))
}

fn audit(field: &Field<'_>) -> Option<AuditConfig> {
    const KNOWN: [&str; 5] = [
        "file",
        "rotateBytes",
        "keepFiles",
        "foldSeconds",
        "checkpointSeconds",
    ];
    let fields = field.fields(&KNOWN)?;
    let default = AuditConfig::default();
    let file = fields.or("file", default.file, |f| path(&f));
    let rotate_bytes = fields.or("rotateBytes", default.rotate_bytes, |f| f.whole(4096));
    let keep_files = fields.or("keepFiles", default.keep_files, |f| f.whole(1));
    let fold = fields.or("foldSeconds", default.fold, |f| seconds(&f, 0));
    let checkpoint = fields.or("checkpointSeconds", default.checkpoint, |f| seconds(&f, 1));
    Some(AuditConfig {
        file: file?,
        rotate_bytes: rotate_bytes?,
        keep_files: keep_files?,
        fold: fold?,
        checkpoint: checkpoint?,
    })
}

fn interfaces(field: &Field<'_>) -> Option<Interfaces> {
    let fields = field.fields(&["managed", "mark"])?;
    let default = Interfaces::default();
    let managed = fields.or("managed", default.managed, |f| list(&f, interface_name));
    let mark = fields.or("mark", default.mark, |f| mark(&f));
    Some(Interfaces {
        managed: managed?,
        mark: mark?,
    })
}

fn interface_name(field: &Field<'_>) -> Option<InterfacePattern> {
    let pattern: InterfacePattern =
        field.parse("write what the names of the veths start with, like veth*")?;
    if pattern.matches("lo") {
        return field.refuse("would govern loopback", "name the veths of workloads only");
    }
    Some(pattern)
}

fn mark(field: &Field<'_>) -> Option<u32> {
    let mark: u32 = field.whole(1)?;
    if mark.is_power_of_two() {
        return Some(mark);
    }
    field.refuse(
        "is not a single bit",
        "write a power of two that nobody else on this node uses, like 16",
    )
}

fn seconds(field: &Field<'_>, least: u64) -> Option<Duration> {
    let seconds: u32 = field.whole(least)?;
    Some(Duration::from_secs(seconds.into()))
}

fn limits(field: &Field<'_>) -> Option<Limits> {
    const KNOWN: [&str; 7] = [
        "policyEntries",
        "addresses",
        "cidrs",
        "workloads",
        "flows",
        "flowShare",
        "ringBytes",
    ];
    let fields = field.fields(&KNOWN)?;
    let default = Limits::default();
    let limit = |name, default| fields.or(name, default, |f| f.whole(1));
    let policy_entries = limit("policyEntries", default.policy_entries);
    let addresses = limit("addresses", default.addresses);
    let cidrs = limit("cidrs", default.cidrs);
    let workloads = limit("workloads", default.workloads);
    let flows = limit("flows", default.flows);
    // Fewer flows than the default share are nobody's mistake.
    let share = default.flow_share.min(flows.unwrap_or(u32::MAX));
    let flow_share = limit("flowShare", share);
    let ring_bytes = fields.or("ringBytes", default.ring_bytes, |f| ring(&f));
    check_share(&fields, flow_share, flows);
    Some(Limits {
        policy_entries: policy_entries?,
        addresses: addresses?,
        cidrs: cidrs?,
        workloads: workloads?,
        flows: flows?,
        flow_share: flow_share?,
        ring_bytes: ring_bytes?,
    })
}

fn check_share(fields: &Fields<'_>, share: Option<u32>, flows: Option<u32>) {
    if let (Some(share), Some(flows), Some(field)) = (share, flows, fields.optional("flowShare"))
        && share > flows
    {
        field.error(
            format!("one workload's share of {share} flows is more than all {flows}"),
            "lower `flowShare` or raise `flows`",
        );
    }
}

fn ring(field: &Field<'_>) -> Option<u32> {
    let bytes: u32 = field.whole(1)?;
    if bytes.is_power_of_two() && bytes.is_multiple_of(PAGE) {
        return Some(bytes);
    }
    let next = bytes.max(PAGE).checked_next_power_of_two();
    field.refuse(
        format!("{bytes} is not a power of two from {PAGE} up"),
        next.map_or_else(String::new, |next| format!("write {next}")),
    )
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
