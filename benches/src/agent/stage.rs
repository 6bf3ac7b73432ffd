//! A real agent that governs one workload, which may reach many others elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use zt_agent::{admin, kernel::pins::Pins};
use zt_tests::{
    Sandbox, Workload,
    agent::{self, Agent},
    bpffs::Bpffs,
    cgroup::Cgroup,
    interrupt,
    node::{allow, identity},
};

use crate::{peer_address, policy, ports};

/// How long a start with everything may take.
const START: Duration = Duration::from_secs(60);

/// Dropped in the order of the fields: the agent first.
pub struct Stage {
    pub agent: Agent,
    pub managed: Cgroup,
    pub client: Workload,
    pub pins: Pins,
    directory: PathBuf,
    _bpffs: Bpffs,
    _sandbox: Sandbox,
}

impl Stage {
    /// With so many identities elsewhere, of which the workload may reach `peers`, on
    /// [`PORTS`](crate::PORTS) ports each. The agent, a program at this path, runs and
    /// is ready.
    pub fn new(agent: &Path, identities: u32, peers: u32) -> Result<(Self, Duration)> {
        let sandbox = Sandbox::new()?;
        let bpffs = sandbox.bpffs()?;
        let managed = sandbox.cgroup().child("services")?;
        let netns = sandbox.netns("client")?;
        let client = Workload::new("client", managed.child("client")?, Some(netns));
        let listen = agent::free_port()?;
        let cgroup = sandbox.cgroup().child("agent")?;
        let directory = sandbox.directory();
        let pins = bpffs.path().join("zt");
        let agent = Agent::new(agent.to_owned(), directory.clone(), listen, cgroup)?;
        let config = format!(
            "node: bench\nmode: enforce\ncgroupRoot: {}\npinDirectory: {}\n\
             stateDirectory: state\nruntimeDirectory: run\nidentities: identities.yaml\n\
             policies: [policies/]\naudit: {{file: audit.jsonl}}\nlisten: {listen}\n",
            managed.path().display(),
            pins.display(),
        );
        fs::write(agent.config(), config)?;
        fs::create_dir(directory.join("policies"))?;
        let ports = format!("{:?}", ports());
        let rules = (0..peers).map(|peer| allow("client", &format!("peer/{peer}"), &ports, "UDP"));
        fs::write(directory.join("policies/bench.yaml"), policy(rules))?;
        let text = everybody(&client, identities);
        fs::write(directory.join("identities.yaml"), text)?;
        let mut stage = Self {
            agent,
            managed,
            client,
            pins: Pins::new(pins),
            directory,
            _bpffs: bpffs,
            _sandbox: sandbox,
        };
        let took = stage.start()?;
        Ok((stage, took))
    }

    fn start(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.agent.launch()?;
        while !self.agent.readiness().is_ok_and(|(code, _)| code == 200) {
            interrupt::check()?;
            ensure!(
                start.elapsed() < START,
                "the agent is not ready: {}",
                self.agent.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(start.elapsed())
    }

    /// Where commands reach the agent.
    pub fn socket(&self) -> PathBuf {
        admin::socket(&self.directory.join("run"))
    }

    pub fn status(&self) -> Result<Value> {
        // Its exit code says how the node is, which is nothing to us.
        let answer = self.agent.ask(&["status", "-o", "json"])?;
        serde_json::from_str(&answer.output).with_context(|| answer.summary())
    }

    /// A field of `/proc/PID/status` in KiB.
    pub fn kibibytes(&self, field: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
        Ok(number.context(field.to_owned())?.parse()?)
    }

    /// What the agent used of processors since it started.
    pub fn processor(&self) -> Result<Duration> {
        /// Of what proc(5) counts, `USER_HZ`.
        const TICK: Duration = Duration::from_millis(10);
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        // The name before may have spaces in it.
        let (_, fields) = text.rsplit_once(')').context("/proc/PID/stat")?;
        // utime and stime, the 14th and 15th of all.
        let ticks = fields.split_ascii_whitespace().skip(11).take(2);
        let ticks: u32 = ticks.map(str::parse::<u32>).sum::<Result<_, _>>()?;
        Ok(TICK * ticks)
    }

    fn pid(&self) -> Result<u32> {
        self.agent.pid().context("the agent does not run")
    }
}

fn everybody(client: &Workload, identities: u32) -> String {
    let mut text = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n  - {{spiffe: \"{}\", cgroup: {}}}\nendpoints:\n",
        identity("client"),
        client.cgroup().path().display(),
    );
    for number in 0..identities {
        let spiffe = identity(&format!("peer/{number}"));
        let address = peer_address(number);
        text.push_str(&format!(
            "  - {{spiffe: \"{spiffe}\", addresses: [{address}]}}\n"
        ));
    }
    text
}
