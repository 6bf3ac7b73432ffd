//! A node without a kubelet: pods are objects of a real API server, and their
//! containers processes in cgroups that are named as the kubelet names them.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use serde_json::json;
use zt_agent::{
    kernel::{pins::Pins, view::View},
    model::Name,
    source::kubernetes::objects::MODE_ANNOTATION,
};
use zt_common::{
    address::{AddressKey, mapped},
    identity::Number,
};
use zt_tests::{
    Sandbox, Workload,
    actor::Actor,
    agent::{self, Agent, save},
    bpffs::Bpffs,
    cgroup::Cgroup,
    cluster::Cluster,
    netns::{Netns, Network},
    report::Attempt,
    workload::Server,
};

use crate::relay::Relay;

pub use zt_tests::patience::wait;

pub const PORT: u16 = 8080;
/// For what must answer.
pub const PATIENT: Duration = Duration::from_secs(3);
/// For one of many attempts.
const SHORT: Duration = Duration::from_millis(300);
/// For what comes by a watch, on a machine that builds at the same time.
pub const SLOW: Duration = Duration::from_secs(30);

/// How the kubelet names cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Systemd,
    Cgroupfs,
}

/// A pod and its only container. Dropped, its processes end; the objects stay.
pub struct Pod {
    pub address: Ipv4Addr,
    pub workload: Workload,
    pub cgroup: Cgroup,
    /// What keeps its network namespace.
    pause: Actor,
}

impl Pod {
    /// Leaves its network namespace: its only process is in another one.
    pub fn hide(&mut self, elsewhere: Netns) {
        let container = self.workload.cgroup().clone();
        let hidden = Workload::new("hidden", container, Some(elsewhere));
        self.pause = Actor::member(&hidden);
    }
}

/// Dropped in the order of the fields: the agent first.
pub struct Stage<'a> {
    pub agent: Agent,
    relay: Option<Relay>,
    pub cluster: &'a Cluster,
    pub network: Network,
    /// The managed root.
    pub root: Cgroup,
    classes: [Cgroup; 2],
    far: Cgroup,
    pub namespace: String,
    pub node: String,
    bpffs: Bpffs,
    pub sandbox: Sandbox,
}

impl<'a> Stage<'a> {
    /// A node and another one, which have the lower and the upper half of a
    /// subnet, and a namespace. No agent runs yet. `subnet` is nobody else's in
    /// this cluster.
    pub fn new(cluster: &'a Cluster, subnet: u8) -> Self {
        static TAKEN: Mutex<BTreeSet<u8>> = Mutex::new(BTreeSet::new());
        let is_free = TAKEN.lock().unwrap().insert(subnet);
        assert!(is_free, "another test has the subnet {subnet}");
        let sandbox = Sandbox::new().unwrap();
        let bpffs = sandbox.bpffs().unwrap();
        let network = sandbox.network(subnet).unwrap();
        let root = sandbox.cgroup().child("node").unwrap();
        let classes = [
            ("kubepods.slice", "kubepods-burstable.slice"),
            ("kubepods", "burstable"),
        ]
        .map(|(top, class)| root.child(top).unwrap().child(class).unwrap());
        let port = api_port(cluster);
        let agent = Agent::new(
            agent::built().unwrap(),
            sandbox.directory(),
            agent::free_port().unwrap(),
            sandbox.cgroup().child("agent").unwrap(),
        );
        let stage = Self {
            agent: agent.unwrap().inside(network.bridge().clone()),
            relay: Some(Relay::start(network.bridge(), port).unwrap()),
            cluster,
            namespace: format!("ns-{}", sandbox.name()),
            node: format!("here-{}", sandbox.name()),
            far: sandbox.cgroup().child("far").unwrap(),
            network,
            root,
            classes,
            bpffs,
            sandbox,
        };
        stage.make_objects(subnet);
        stage.write_files();
        stage
    }

    /// Has the agent reach the API server no more.
    pub fn cut_off(&mut self) {
        self.relay.take().expect("it can be reached");
    }

    /// And again.
    pub fn reconnect(&mut self) {
        let relay = Relay::start(self.network.bridge(), api_port(self.cluster));
        self.relay = Some(relay.unwrap());
    }

    fn make_objects(&self, subnet: u8) {
        self.cluster.create_namespace(&self.namespace).unwrap();
        for (name, first) in [(self.node.clone(), 0), (self.other_node(), 128)] {
            let range = format!("10.89.{subnet}.{first}/25");
            self.create(&json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDR": range, "podCIDRs": [range]},
            }));
        }
        for account in ["client", "other", "server"] {
            self.create(&json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": self.namespace},
            }));
        }
    }

    pub fn other_node(&self) -> String {
        self.node.replace("here", "there")
    }

    pub fn create(&self, object: &serde_json::Value) {
        let made = self
            .cluster
            .kubectl_with(&["create", "-f", "-"], &object.to_string());
        made.unwrap().ok().unwrap();
    }

    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let arguments = [&["--namespace", &self.namespace], arguments].concat();
        self.cluster.kubectl(&arguments).unwrap().ok().unwrap()
    }

    fn write_files(&self) {
        let directory = self.sandbox.directory();
        fs::create_dir(directory.join("policies")).unwrap();
        let client = format!("{{spiffe: spiffe://t/c/{}/client}}", self.namespace);
        self.write_policy("core", &client);
        self.write_config();
    }

    /// A policy of a file, beside the one that lets the client reach the server.
    pub fn write_policy(&self, name: &str, from: &str) {
        let namespace = &self.namespace;
        let text = format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  rules:\n    - from: {from}\n      to:\n        - spiffe: spiffe://t/c/{namespace}/server\n          ports: [{PORT}]\n"
        );
        let path = format!("policies/{name}.yaml");
        save(&self.sandbox.directory().join(path), &text).unwrap();
    }

    fn write_config(&self) {
        let (root, pins) = (self.root.path().display(), self.pins());
        let (pins, kubeconfig) = (pins.display(), self.cluster.kubeconfig());
        let text = format!(
            "node: {}\n\
             mode: enforce\n\
             cgroupRoot: {root}\n\
             pinDirectory: {pins}\n\
             stateDirectory: state\n\
             runtimeDirectory: run\n\
             identity: kubernetes\n\
             kubernetes: {{trustDomain: t, cluster: c, kubeconfig: {}, policies: false}}\n\
             policies: [policies/]\n\
             audit: {{file: audit.jsonl, foldSeconds: 1, checkpointSeconds: 1}}\n\
             listen: {}\n\
             interfaces: {{managed: [\"p1*\"]}}\n\
             limits: {{policyEntries: 1024, addresses: 1024, cidrs: 64, workloads: 256, flows: 4096, flowShare: 1024, ringBytes: 1048576}}\n",
            self.node,
            kubeconfig.display(),
            self.agent.listen(),
        );
        fs::write(self.agent.config(), text).unwrap();
    }

    /// Has the policies of the cluster count, too. Only in a cluster of its own:
    /// those of other tests would.
    pub fn follow_policies(&self) {
        let text = fs::read_to_string(self.agent.config()).unwrap();
        let text = text.replace(", policies: false}", "}");
        fs::write(self.agent.config(), text).unwrap();
    }

    /// Has the node claim nothing by a Lease, and believe none.
    pub fn without_leases(&self) {
        let text = fs::read_to_string(self.agent.config()).unwrap();
        let text = text.replace("policies: false}", "policies: false, leases: false}");
        fs::write(self.agent.config(), text).unwrap();
    }

    /// Has the node in audit mode, and its pods of our namespace in enforce mode.
    /// There is no default drop then.
    pub fn enforce_the_namespace_only(&self) {
        let text = fs::read_to_string(self.agent.config()).unwrap();
        let text = text.replace("mode: enforce", "mode: audit");
        fs::write(self.agent.config(), text).unwrap();
        let mode = format!("{MODE_ANNOTATION}=enforce");
        self.kubectl(&["annotate", "namespace", &self.namespace, &mode]);
    }

    /// Has no file with a policy.
    pub fn without_files(&self) {
        fs::remove_file(self.sandbox.directory().join("policies/core.yaml")).unwrap();
    }

    pub fn pins(&self) -> PathBuf {
        self.bpffs.path().join("zt")
    }

    /// Makes the object; gives its UID.
    pub fn object(&self, name: &str, account: &str, node: &str) -> String {
        self.pod_object(name, account, node, false)
    }

    /// The same of a pod of this node that is on its network.
    pub fn host_object(&self, name: &str, account: &str) -> String {
        self.pod_object(name, account, &self.node, true)
    }

    /// The same of one that no node was chosen for yet: an empty name says that.
    pub fn unbound_host_object(&self, name: &str, account: &str) -> String {
        self.pod_object(name, account, "", true)
    }

    /// Says what a scheduler says: that it is a pod of this node.
    pub fn bind(&self, name: &str) {
        let path = format!("/api/v1/namespaces/{}/pods/{name}/binding", self.namespace);
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.node},
        });
        let arguments = ["create", "--raw", &path, "-f", "-"];
        let bound = self.cluster.kubectl_with(&arguments, &binding.to_string());
        bound.unwrap().ok().unwrap();
    }

    fn pod_object(&self, name: &str, account: &str, node: &str, on_host: bool) -> String {
        self.create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "serviceAccountName": account, "nodeName": node, "hostNetwork": on_host,
                "containers": [{"name": "main", "image": "none"}],
            },
        }));
        self.kubectl(&["get", "pod", name, "-o=jsonpath={.metadata.uid}"])
    }

    /// Says what a kubelet says of it.
    pub fn report(&self, name: &str, phase: &str, address: Ipv4Addr) {
        let ip = address.to_string();
        let status =
            json!({"status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]}}).to_string();
        self.kubectl(&[
            "patch",
            "pod",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
    }

    pub fn delete(&self, name: &str) {
        self.kubectl(&["delete", "pod", name, "--force", "--grace-period=0"]);
    }

    /// What the kubelet makes for a pod: its cgroup.
    pub fn cgroup(&self, uid: &str, driver: Driver) -> Cgroup {
        let [systemd, cgroupfs] = &self.classes;
        let made = match driver {
            Driver::Systemd => {
                let uid = uid.replace('-', "_");
                systemd.child(&format!("kubepods-burstable-pod{uid}.slice"))
            }
            Driver::Cgroupfs => cgroupfs.child(&format!("pod{uid}")),
        };
        made.unwrap()
    }

    /// What the runtime makes for its container.
    pub fn container(&self, pod: &Cgroup, driver: Driver) -> Cgroup {
        let id = "0123456789abcdef".repeat(4);
        let name = match driver {
            Driver::Systemd => format!("cri-containerd-{id}.scope"),
            Driver::Cgroupfs => id,
        };
        pod.child(&name).unwrap()
    }

    /// A pod of this node that runs.
    pub fn pod(&self, name: &str, account: &str, driver: Driver, host: u8) -> Pod {
        let pod = self.young(name, account, driver, host);
        self.report(name, "Running", pod.address);
        pod
    }

    /// One that runs and of which the kubelet said nothing yet.
    pub fn young(&self, name: &str, account: &str, driver: Driver, host: u8) -> Pod {
        let uid = self.object(name, account, &self.node);
        let cgroup = self.cgroup(&uid, driver);
        let container = self.container(&cgroup, driver);
        let netns = self.network.join(name, host).unwrap();
        let workload = Workload::new(name, container, Some(netns));
        Pod {
            address: self.network.ipv4(host),
            pause: Actor::member(&workload),
            workload,
            cgroup,
        }
    }

    /// Somebody on the other node: a namespace with addresses there, without an
    /// object. Hosts from 200 on have no managed interface.
    pub fn far(&self, label: &str, host: u8) -> Workload {
        assert!(host >= 200, "of the other node, and not managed");
        let netns = self.network.join(label, host).unwrap();
        Workload::new(label, self.far.child(label).unwrap(), Some(netns))
    }

    /// Ends a pod as a kubelet does: its processes, its namespace, its cgroup.
    pub fn tear_down(&self, pod: Pod) {
        pod.cgroup.remove().unwrap();
        let port = format!("p{}", pod.address.octets()[3]);
        self.network
            .bridge()
            .ip(&["link", "delete", &port])
            .unwrap();
    }

    pub fn serve(&self, pod: &Pod) -> Server {
        let to = SocketAddr::from((pod.address, PORT));
        pod.workload.serve(&[to], &[]).unwrap()
    }

    pub fn connect(&self, from: &Workload, to: &Pod) -> Attempt {
        from.tcp((pod_ip(to), PORT).into(), PATIENT).unwrap()
    }

    #[track_caller]
    pub fn passes(&self, from: &Workload, to: &Pod) {
        let attempt = self.connect(from, to);
        assert!(attempt.replied(), "{}: {attempt:?}", from.name());
    }

    #[track_caller]
    pub fn is_denied(&self, from: &Workload, to: &Pod) {
        let attempt = self.connect(from, to);
        assert!(!attempt.connected, "{}: {attempt:?}", from.name());
    }

    /// Waits until somebody passes, or does not.
    #[track_caller]
    pub fn until(&self, from: &Workload, to: &Pod, passes: bool) {
        let to = (pod_ip(to), PORT).into();
        wait(SLOW, || {
            let attempt = from.tcp(to, SHORT).unwrap();
            if passes {
                attempt.replied()
            } else {
                !attempt.connected
            }
        });
    }

    pub fn view(&self) -> View {
        View::read(&Pins::new(self.pins())).unwrap()
    }

    /// The number of the identity of an account.
    pub fn number(&self, account: &str) -> Option<Number> {
        let id = format!("spiffe://t/c/{}/{account}", self.namespace);
        let name = Name::Spiffe(id.parse().unwrap());
        self.view().numbers.get(&name)
    }

    /// Whose an address is to the kernel, if it has a row of its own.
    pub fn who_is_at(&self, address: Ipv4Addr) -> Option<Number> {
        let key = AddressKey {
            ip: mapped(address.octets()),
            ..AddressKey::default()
        };
        let view = self.view();
        view.tables.address.get(&key).map(|peer| peer.identity)
    }

    /// What the agent says of itself.
    pub fn readiness(&self) -> (u16, String) {
        self.agent.readiness().unwrap()
    }

    /// What it does not believe of pods of the stage: others share the cluster.
    pub fn complaints(&self) -> Vec<String> {
        let status = self.agent.ask(&["status", "-o", "json"]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&status.output).unwrap();
        let complaints = status["agent"]["complaints"].as_array().unwrap().iter();
        let texts = complaints.map(|text| text.as_str().unwrap().to_owned());
        texts
            .filter(|text| text.contains(&self.namespace))
            .collect()
    }

    /// The whole lines of the audit file.
    pub fn records(&self) -> Vec<serde_json::Value> {
        agent::records(&self.sandbox.directory().join("audit.jsonl")).unwrap()
    }

    pub fn metric(&self, name: &str) -> f64 {
        agent::sample(&self.agent.metrics().unwrap(), name, &[]).unwrap()
    }
}

fn api_port(cluster: &Cluster) -> u16 {
    cluster.url().rsplit(':').next().unwrap().parse().unwrap()
}

fn pod_ip(pod: &Pod) -> IpAddr {
    pod.address.into()
}
