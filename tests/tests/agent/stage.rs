//! Two clients, a server, and a real agent that governs them.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use zt_tests::{
    Sandbox, Workload,
    agent::{self, Agent, Answer, save},
    bpffs::Bpffs,
    cgroup::Cgroup,
    netns::Network,
    report::Attempt,
    workload::{Looping, Server},
};

pub use zt_tests::patience::wait;

pub const CLIENT: &str = "spiffe://t/client";
pub const OTHER: &str = "spiffe://t/other";
pub const SERVER: &str = "spiffe://t/server";
pub const PORT: u16 = 8080;

/// For what must answer.
pub const PATIENT: Duration = Duration::from_secs(2);
/// For one of many attempts.
const SHORT: Duration = Duration::from_millis(100);
/// Until a change is in force, on a machine that is busy.
const SLOW: Duration = Duration::from_secs(15);
/// A change must be in force within this, on a machine of the usual speed.
pub const PROMPT: Duration = Duration::from_secs(1);

/// The client may reach the server, and nobody else anybody.
pub const POLICY: &str = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata: {name: core}
spec:
  rules:
    - from: {spiffe: spiffe://t/client}
      to:
        - spiffe: spiffe://t/server
          ports: [8080]
";

/// A rule more: the other client may reach the server, too.
pub const ALSO_OTHER: &str = "    - from: {spiffe: spiffe://t/other}
      to:
        - spiffe: spiffe://t/server
          ports: [8080]
";

pub fn both() -> String {
    format!("{POLICY}{ALSO_OTHER}")
}

/// What differs from test to test.
#[derive(Clone, Debug)]
pub struct Settings {
    pub mode: &'static str,
    /// Identities in audit mode, whatever the node's.
    pub audited: &'static [&'static str],
    pub fold_seconds: u32,
    pub audit_file: &'static str,
    /// How often the agent reads its maps back.
    pub verify_seconds: u32,
    /// The agent runs where the other ends of the workloads' interfaces are.
    pub on_the_bridge: bool,
    /// `interfaces.managed`, in YAML.
    pub managed: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: "enforce",
            audited: &[],
            fold_seconds: 1,
            audit_file: "audit.jsonl",
            verify_seconds: 30,
            on_the_bridge: false,
            managed: "[]",
        }
    }
}

/// Dropped in the order of the fields: the agent first.
pub struct Stage {
    pub agent: Agent,
    serving: Server,
    pub client: Workload,
    pub other: Workload,
    pub server: Workload,
    pub network: Network,
    pub managed: Cgroup,
    pub listen: SocketAddr,
    pub settings: Settings,
    bpffs: Bpffs,
    pub sandbox: Sandbox,
}

impl Stage {
    /// The services talk; no agent runs yet.
    pub fn new(settings: Settings) -> Self {
        let sandbox = Sandbox::new().unwrap();
        let bpffs = sandbox.bpffs().unwrap();
        let network = sandbox.network(9).unwrap();
        let managed = sandbox.cgroup().child("services").unwrap();
        let workload = |label: &str, host| {
            let netns = network.join(label, host).unwrap();
            Workload::new(label, managed.child(label).unwrap(), Some(netns))
        };
        let client = workload("client", 10);
        let other = workload("other", 11);
        let server = workload("server", 20);
        let to = SocketAddr::from((network.ipv4(20), PORT));
        let serving = server.serve(&[to], &[to]).unwrap();
        let listen = agent::free_port().unwrap();
        let cgroup = sandbox.cgroup().child("agent").unwrap();
        let program = agent::built().unwrap();
        let mut agent = Agent::new(program, sandbox.directory(), listen, cgroup).unwrap();
        if settings.on_the_bridge {
            agent = agent.inside(network.bridge().clone());
        }
        let stage = Self {
            agent,
            serving,
            client,
            other,
            server,
            network,
            managed,
            listen,
            settings,
            bpffs,
            sandbox,
        };
        stage.write_files();
        stage
    }

    /// With the agent ready.
    pub fn running(settings: Settings) -> Self {
        let mut stage = Self::new(settings);
        stage.agent.start().unwrap();
        stage
    }

    fn write_files(&self) {
        fs::create_dir(self.policies()).unwrap();
        self.write_policy(POLICY);
        self.write_identities();
        self.write_config();
    }

    pub fn directory(&self) -> PathBuf {
        self.sandbox.directory()
    }

    pub fn policies(&self) -> PathBuf {
        self.directory().join("policies")
    }

    pub fn policy(&self) -> PathBuf {
        self.policies().join("core.yaml")
    }

    pub fn trail(&self) -> PathBuf {
        self.directory().join(self.settings.audit_file)
    }

    pub fn pins(&self) -> PathBuf {
        self.bpffs.path().join("zt")
    }

    pub fn write_policy(&self, text: &str) {
        save(&self.policy(), text).unwrap();
    }

    pub fn write_config(&self) {
        let Settings {
            mode,
            fold_seconds,
            audit_file,
            verify_seconds,
            managed,
            ..
        } = self.settings;
        let (root, pins) = (self.managed.path().display(), self.pins());
        let (pins, listen) = (pins.display(), self.listen);
        let text = format!(
            "node: test\n\
             mode: {mode}\n\
             cgroupRoot: {root}\n\
             pinDirectory: {pins}\n\
             stateDirectory: state\n\
             runtimeDirectory: run\n\
             identities: identities.yaml\n\
             policies: [policies/]\n\
             audit:\n  file: {audit_file}\n  foldSeconds: {fold_seconds}\n  checkpointSeconds: 1\n\
             verifySeconds: {verify_seconds}\n\
             listen: {listen}\n\
             interfaces: {{managed: {managed}}}\n\
             limits: {{policyEntries: 1024, addresses: 1024, cidrs: 64, workloads: 256, flows: 4096, flowShare: 1024, ringBytes: 1048576}}\n"
        );
        fs::write(self.agent.config(), text).unwrap();
    }

    pub fn write_identities(&self) {
        let mut text = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n".to_owned();
        for (workload, spiffe, host) in [
            (&self.client, CLIENT, 10),
            (&self.other, OTHER, 11),
            (&self.server, SERVER, 20),
        ] {
            let (cgroup, address) = (workload.cgroup().path().display(), self.network.ipv4(host));
            let netns = workload.netns().unwrap().name().to_owned();
            text += &format!(
                "  - spiffe: {spiffe}\n    cgroup: {cgroup}\n    addresses: [{address}]\n    networkNamespace: {netns}\n"
            );
            if self.settings.audited.contains(&spiffe) {
                text += "    mode: audit\n";
            }
        }
        save(&self.directory().join("identities.yaml"), &text).unwrap();
    }

    /// Where the server listens.
    pub fn to(&self) -> SocketAddr {
        (self.network.ipv4(20), PORT).into()
    }

    pub fn connect(&self, from: &Workload) -> Attempt {
        from.tcp(self.to(), PATIENT).unwrap()
    }

    /// A connection attempt and its outcome, asserted.
    #[track_caller]
    pub fn passes(&self, from: &Workload) {
        let attempt = self.connect(from);
        assert!(
            attempt.replied(),
            "{} is not answered: {attempt:?}",
            from.name()
        );
    }

    /// What arrived at the server, see [`Server::received`].
    pub fn received(&mut self) -> Vec<String> {
        self.serving.received().unwrap()
    }

    #[track_caller]
    pub fn is_denied(&self, from: &Workload) {
        let attempt = self.connect(from);
        assert!(
            is_refused(&attempt),
            "{} is not refused: {attempt:?}",
            from.name()
        );
    }

    /// How long it takes until the other client passes, or does not.
    #[track_caller]
    pub fn until_other(&self, passes: bool) -> Duration {
        // A connection that is cut while it is used is not answered at all.
        let attempt = || self.other.tcp(self.to(), SHORT).unwrap();
        let start = Instant::now();
        wait(SLOW, || {
            let attempt = attempt();
            if passes {
                attempt.replied()
            } else {
                is_refused(&attempt)
            }
        });
        start.elapsed()
    }

    pub fn looping(&self, from: &Workload, how_long: Duration) -> Looping {
        let pause = Duration::from_millis(2);
        from.tcp_loop(self.to(), how_long, pause, PATIENT).unwrap()
    }

    pub fn ask(&self, arguments: &[&str]) -> Answer {
        self.agent.ask(arguments).unwrap()
    }

    /// Asks and wants exit code 0.
    #[track_caller]
    pub fn tell(&self, arguments: &[&str]) -> Answer {
        let answer = self.ask(arguments);
        assert!(answer.is_success(), "{arguments:?}: {}", answer.summary());
        answer
    }

    /// `status -o json`, whatever its exit code.
    pub fn status(&self) -> Value {
        let answer = self.ask(&["status", "-o", "json"]);
        serde_json::from_str(&answer.output).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }

    /// The sum of a metric's samples with these labels; 0 if there is none.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        agent::sample(&self.agent.metrics().unwrap(), name, labels).unwrap_or(0.0)
    }

    /// The whole lines of the current audit file.
    pub fn records(&self) -> Vec<Value> {
        agent::records(&self.trail()).unwrap()
    }

    /// What is pinned, as paths.
    pub fn pinned(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(&self.pins(), &mut found);
        found
    }
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

pub fn is_refused(attempt: &Attempt) -> bool {
    !attempt.connected && attempt.errno.as_deref() == Some("EPERM")
}
