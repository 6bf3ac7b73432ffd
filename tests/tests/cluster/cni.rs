//! The CNI plugin as a runtime executes it: a pod's namespace and interface are
//! there, and no process of the pod.
//!
//! The node is in audit mode and has no default drop; the pods are enforced.

use std::{
    fmt, fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use zt_tests::{
    Workload,
    cgroup::Cgroup,
    cluster,
    netns::Netns,
    process,
    wire::{Wire, contains},
};

use crate::stage::{Driver, SLOW, Stage, wait};

const NAME: &str = "zt-agent-cni";
/// An ethertype for local experiments (IEEE 802): never allowed.
const EXPERIMENT: u16 = 0x88b6;
/// How long a pod sends from its first instruction on.
const FLOOD: Duration = Duration::from_millis(600);
/// How many pods start.
const PODS: u8 = 6;
/// How many start without the plugin, until one is seen to leak.
const CONTROLS: u8 = 8;
const HEX: &str = "0123456789abcdef";

/// What the runtime has made when it calls the plugin.
struct Prepared {
    uid: String,
    name: String,
    netns: Arc<Netns>,
    cgroup: Cgroup,
    container: Cgroup,
    /// Of the node's end of the interface.
    port: String,
}

/// What the plugin said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    output: String,
}

impl Said {
    fn value(&self) -> Value {
        serde_json::from_str(&self.output).unwrap_or_else(|_| panic!("{self:?}"))
    }

    #[track_caller]
    fn failed(&self, code: u64, why: &str) {
        let value = self.value();
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(value["cniVersion"], "1.1.0");
        assert_eq!(value["code"], code, "{self:?}");
        let details = value["details"].as_str().unwrap();
        assert!(details.contains(why), "{self:?}");
        assert!(value["msg"].as_str().is_some_and(|msg| !msg.is_empty()));
    }

    #[track_caller]
    fn succeeded(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }
}

struct Scene<'a> {
    stage: Stage<'a>,
    plugin: PathBuf,
    /// Seconds.
    timeout: u16,
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a cluster::Cluster, subnet: u8) -> Self {
        let stage = Stage::new(cluster, subnet);
        stage.enforce_the_namespace_only();
        let plugin = stage.sandbox.directory().join(NAME);
        fs::copy(stage.agent.program(), &plugin).unwrap();
        Self {
            stage,
            plugin,
            timeout: 20,
        }
    }

    /// As kubelet, runtime and the plugins before ours leave it.
    fn prepare(&self, name: &str, host: u8) -> Prepared {
        let stage = &self.stage;
        let uid = stage.object(name, "other", &stage.node);
        let cgroup = stage.cgroup(&uid, Driver::Systemd);
        Prepared {
            container: stage.container(&cgroup, Driver::Systemd),
            cgroup,
            netns: Arc::new(stage.network.join(name, host).unwrap()),
            name: name.to_owned(),
            port: format!("p{host}"),
            uid,
        }
    }

    fn config(&self, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": NAME,
            "socket": self.stage.sandbox.directory().join("run/agent.sock"),
            "timeoutSeconds": self.timeout,
        });
        let config_object = config.as_object_mut().unwrap();
        config_object.extend(more.as_object().unwrap().clone());
        config
    }

    fn call(&self, command: &str, of: Option<(&str, &str, &Path)>, config: &Value) -> Said {
        let mut plugin = Command::new(&self.plugin);
        plugin
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", self.stage.sandbox.directory());
        if let Some((uid, name, netns)) = of {
            let arguments = format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={uid}",
                self.stage.namespace,
                sandbox(uid),
            );
            plugin
                .env("CNI_CONTAINERID", sandbox(uid))
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_ARGS", arguments);
        }
        let mut running = plugin
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = running.stdin.take().unwrap();
        input.write_all(config.to_string().as_bytes()).unwrap();
        drop(input);
        let output = running.wait_with_output().unwrap();
        Said {
            code: output.status.code(),
            output: String::from_utf8(output.stdout).unwrap(),
        }
    }

    fn ask(&self, command: &str, pod: &Prepared) -> Said {
        self.claim(command, &pod.uid, &pod.name, &pod.netns.path())
    }

    fn claim(&self, command: &str, uid: &str, name: &str, netns: &Path) -> Said {
        let config = self.config(json!({"prevResult": previous()}));
        self.call(command, Some((uid, name, netns)), &config)
    }

    fn status(&self) -> Value {
        let said = self.stage.agent.ask(&["status", "-o", "json"]).unwrap();
        serde_json::from_str(&said.output).unwrap()
    }

    /// Both programs are at its interface, and the maps know whose it is.
    fn is_governed(&self, pod: &Prepared) -> bool {
        let status = self.status();
        let list = status["interfaces"].as_array().unwrap();
        let Some(found) = list.iter().find(|one| one["name"] == pod.port) else {
            return false;
        };
        let sides = found["sides"].as_array().unwrap();
        let attached = sides.iter().filter(|side| side["program_id"].is_u64());
        let index = u32::try_from(found["index"].as_u64().unwrap()).unwrap();
        let rows = self.stage.view().tables.interface;
        let row = rows.get(&index);
        attached.count() == 2 && row.is_some_and(|row| row.cgroup == pod.cgroup.id().unwrap())
    }

    /// The pod's first process sends as soon as it can. How many frames it sent,
    /// and when how many came to somebody whom nobody governs.
    fn flood(&self, pod: &Prepared, watcher: &Workload) -> Flooded {
        let netns = watcher.netns().unwrap();
        let wire = Wire::open(netns, "eth0").unwrap();
        let text = format!("zt-flood-{}-{}", self.stage.sandbox.name(), pod.name);
        let ending = AtomicBool::new(false);
        thread::scope(|scope| {
            let seen = scope.spawn(|| see(&wire, text.as_bytes(), &ending));
            let mut command = Command::new(process::built("zt-probe").unwrap().unwrap());
            let limit = FLOOD.as_millis().to_string();
            command.args(["flood", "--interface=eth0", "--for-ms", &limit]);
            command.args(["--text", &text, "--ethertype", &EXPERIMENT.to_string()]);
            let started = process::start(&mut command, &pod.container, Some(&pod.netns));
            let ended = started.and_then(|mut running| running.finish(FLOOD + SLOW));
            thread::sleep(Duration::from_millis(50));
            ending.store(true, Ordering::Relaxed);
            let (arrived, window) = seen.join().unwrap();
            let (status, lines) = ended.unwrap();
            assert!(status.success(), "{lines:?}");
            let sent = lines.iter().find_map(|line| line.strip_prefix("sent "));
            Flooded {
                sent: sent.unwrap().parse().unwrap(),
                arrived,
                window,
            }
        })
    }

    /// Descriptors of the agent that keep a namespace.
    fn held(&self, netns: &Netns) -> usize {
        let number = |path: PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        let wanted = number(netns.path());
        let directory = format!("/proc/{}/fd", self.stage.agent.pid().unwrap());
        let open = fs::read_dir(directory).unwrap().flatten();
        open.filter(|entry| number(entry.path()) == wanted).count()
    }
}

struct Flooded {
    sent: u64,
    arrived: u64,
    /// From the first that arrived to the last.
    window: Duration,
}

impl fmt::Display for Flooded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            arrived,
            window,
        } = self;
        write!(
            f,
            "{sent} frames sent, {arrived} arrived within {window:.0?}"
        )
    }
}

fn see(wire: &Wire, text: &[u8], ending: &AtomicBool) -> (u64, Duration) {
    let (mut count, mut first, mut last) = (0, None, Instant::now());
    while !ending.load(Ordering::Relaxed) {
        let frame = wire.next(Duration::from_millis(20)).unwrap();
        if frame.is_some_and(|frame| contains(&frame, text)) {
            count += 1;
            last = Instant::now();
            first.get_or_insert(last);
        }
    }
    (count, first.map_or(Duration::ZERO, |first| last - first))
}

fn sandbox(uid: &str) -> String {
    format!("{}{}", uid.replace('-', ""), HEX.repeat(2))
}

/// What the plugins before ours did.
fn previous() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x", "mtu": 1500}],
        "ips": [{"address": "10.89.1.10/24", "gateway": "10.89.1.1", "interface": 0}],
        "dns": {},
    })
}

#[test]
fn a_pod_that_the_plugin_showed_sends_nothing_forbidden_from_its_first_instruction_on() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut scene = Scene::new(cluster, 51);
    let watcher = scene.stage.far("watcher", 200);
    scene.stage.agent.start().unwrap();

    // Without the plugin there is a window, if not every time.
    let leaks = (0..CONTROLS).any(|number| {
        let pod = scene.prepare(&format!("without-{number}"), 10 + number);
        let flooded = scene.flood(&pod, &watcher);
        println!("without the plugin: {flooded}");
        flooded.arrived > 0
    });
    assert!(leaks, "the test sees what arrives");

    for number in 0..PODS {
        let pod = scene.prepare(&format!("with-{number}"), 20 + number);
        let start = Instant::now();
        let said = scene.ask("ADD", &pod);
        let took = start.elapsed();
        said.succeeded();
        assert_eq!(said.value(), previous(), "unchanged");
        assert!(scene.is_governed(&pod), "{:#}", scene.status());
        let flooded = scene.flood(&pod, &watcher);
        println!("with the plugin: ADD took {took:.0?}, {flooded}");
        assert!(flooded.sent > 0);
        assert_eq!(flooded.arrived, 0, "{flooded}");
        scene.ask("CHECK", &pod).succeeded();
    }
    let status = scene.status();
    assert_eq!(status["agent"]["cluster"]["attached"], PODS, "{status:#}");
}

#[test]
fn what_is_enforced_on_an_auditing_node_without_the_plugin_is_told() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut scene = Scene::new(cluster, 52);
    scene.stage.agent.start().unwrap();
    let shown = scene.prepare("shown", 10);
    scene.ask("ADD", &shown).succeeded();
    let told = || {
        let status = scene.status();
        let problems = status["problems"].as_array().unwrap().clone();
        let of_plugin = |text: &Value| text.as_str().unwrap().contains("without the CNI plugin");
        problems.into_iter().find(of_plugin)
    };
    assert_eq!(told(), None);
    let _unshown = scene.stage.pod("unshown", "other", Driver::Systemd, 11);
    wait(SLOW, || told().is_some());
    let told = told().unwrap();
    let expected = format!(
        "1 pods are enforced on this node, which is not, and were made without the CNI plugin ({}/unshown is one)",
        scene.stage.namespace
    );
    assert!(told.as_str().unwrap().starts_with(&expected), "{told}");
}

#[test]
fn without_an_agent_nothing_is_added_and_everything_can_be_deleted() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut scene = Scene::new(cluster, 53);
    let pod = scene.prepare("pod", 10);
    let status = |scene: &Scene| scene.call("STATUS", None, &scene.config(json!({})));
    scene
        .ask("ADD", &pod)
        .failed(11, "the agent is not running");
    status(&scene).failed(50, "the agent is not running");
    scene.ask("DEL", &pod).succeeded();
    scene.stage.agent.start().unwrap();
    status(&scene).succeeded();
    scene.ask("ADD", &pod).succeeded();
    scene.stage.agent.kill().unwrap();
    scene
        .ask("ADD", &pod)
        .failed(11, "the agent is not running");
    scene.ask("DEL", &pod).succeeded();
}

#[test]
fn a_namespace_is_only_one_pods_and_only_one_that_is_known_here() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut scene = Scene::new(cluster, 54);
    scene.timeout = 2;
    scene.stage.agent.start().unwrap();
    let owner = scene.prepare("owner", 10);
    let nobody = "0f0e0d0c-1111-4222-8333-0000000000cc";
    let path = owner.netns.path();
    scene
        .claim("ADD", nobody, "owner", &path)
        .failed(100, "not within 2 s: the API server has told of no pod");
    let elsewhere = scene
        .stage
        .object("elsewhere", "other", &scene.stage.other_node());
    scene
        .claim("ADD", &elsewhere, "elsewhere", &path)
        .failed(100, "has told of no pod");
    scene
        .claim("ADD", &owner.uid, "another", &path)
        .failed(100, "and not");
    let nodes = scene.stage.network.bridge().path();
    scene
        .claim("ADD", &owner.uid, "owner", &nodes)
        .failed(100, "the node's own");
    let file = scene.plugin.clone();
    scene
        .claim("ADD", &owner.uid, "owner", &file)
        .failed(100, "no network namespace");

    scene.ask("ADD", &owner).succeeded();
    let thief = scene.prepare("thief", 11);
    scene.claim("ADD", &thief.uid, "thief", &path).failed(
        100,
        &format!("the pod {} has this network namespace", owner.uid),
    );
    assert!(scene.is_governed(&owner));
    // Nor one that has it because its processes are there.
    let running = scene.stage.pod("running", "other", Driver::Systemd, 12);
    let taken = running.workload.netns().unwrap().path();
    let index = || {
        let status = scene.status();
        let list = status["interfaces"].as_array().unwrap().clone();
        list.iter().any(|one| one["name"] == "p12")
    };
    wait(SLOW, index);
    scene
        .claim("ADD", &thief.uid, "thief", &taken)
        .failed(100, "has this network namespace");
    // Its own is still to be had.
    scene.ask("ADD", &thief).succeeded();
    assert!(scene.is_governed(&thief) && scene.is_governed(&owner));
}

#[test]
fn what_is_deleted_is_forgotten_and_what_is_gone_too() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut scene = Scene::new(cluster, 55);
    scene.stage.agent.start().unwrap();
    let attached = |scene: &Scene| scene.status()["agent"]["cluster"]["attached"].clone();
    let [deleted, gone, collected] =
        [("deleted", 10), ("gone", 11), ("collected", 12)].map(|(name, host)| {
            let pod = scene.prepare(name, host);
            scene.ask("ADD", &pod).succeeded();
            pod
        });
    assert_eq!(attached(&scene), 3);
    assert!(scene.held(&deleted.netns) > 0);

    scene.ask("DEL", &deleted).succeeded();
    scene.ask("DEL", &deleted).succeeded();
    assert_eq!(attached(&scene), 2);
    assert_eq!(scene.held(&deleted.netns), 0);
    // The plugin that made the interface is asked after ours, and until then it
    // stays the pod's.
    assert!(scene.is_governed(&deleted));
    let bridge = scene.stage.network.bridge();
    bridge.ip(&["link", "delete", &deleted.port]).unwrap();
    wait(SLOW, || !scene.is_governed(&deleted));

    scene.stage.delete("gone");
    wait(SLOW, || attached(&scene) == 1);
    assert_eq!(scene.held(&gone.netns), 0);

    let valid = |sandboxes: &[String]| {
        let valid = sandboxes.iter();
        let valid = valid.map(|id| json!({"containerID": id, "ifname": "eth0"}));
        let valid = valid.collect::<Vec<_>>();
        let config = scene.config(json!({"cni.dev/valid-attachments": valid}));
        scene.call("GC", None, &config).succeeded();
    };
    valid(&[sandbox(&collected.uid)]);
    assert_eq!(attached(&scene), 1);
    valid(&[]);
    assert_eq!(attached(&scene), 0);
}

#[test]
fn an_agent_that_is_restarted_before_the_first_process_opens_no_window() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut scene = Scene::new(cluster, 56);
    let watcher = scene.stage.far("watcher", 200);
    scene.stage.agent.start().unwrap();
    let pod = scene.prepare("pod", 10);
    scene.ask("ADD", &pod).succeeded();
    scene.stage.agent.kill().unwrap();
    assert!(scene.is_governed(&pod));
    scene.stage.agent.start().unwrap();
    assert_eq!(scene.stage.readiness().0, 200);
    // It has listed everything, and looked around more than once.
    thread::sleep(Duration::from_millis(2500));
    assert!(scene.is_governed(&pod), "{:#}", scene.status());
    assert_eq!(scene.status()["agent"]["cluster"]["attached"], 1);
    let flooded = scene.flood(&pod, &watcher);
    println!("after a restart: {flooded}");
    assert!(flooded.sent > 0 && flooded.arrived == 0, "{flooded}");
    scene.ask("CHECK", &pod).succeeded();
}
