//! The agent of the demo.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use zt_tests::agent;
use zt_tests::process::Running;

use super::files::Files;
use super::stage::Stage;
use zt_tests::interrupt;

pub use zt_tests::agent::Answer;

pub struct Agent {
    agent: agent::Agent,
    pub files: Files,
}

impl Agent {
    /// Writes its files; it does not run yet.
    pub fn prepare(program: PathBuf, stage: &Stage) -> Result<Self> {
        let listen = agent::free_port()?;
        let files = Files::write(stage, listen)?;
        // Beside the managed tree, so that the sandbox kills what runs in it.
        let cgroup = stage.sandbox().cgroup().child("agent")?;
        let agent = agent::Agent::new(program, stage.sandbox().directory(), listen, cgroup)?;
        Ok(Self {
            // Where the other ends of the services' links are, as on a node.
            agent: agent.inside(stage.network().bridge().clone()),
            files,
        })
    }

    /// Starts it and waits until it is ready. Gives how long that took.
    pub fn start(&mut self) -> Result<Duration> {
        self.agent.start_while(interrupt::check)
    }

    /// Attaches `zt-agent observe`, whose lines are collected.
    pub fn observe(&self) -> Result<Running> {
        self.agent.attend(&["observe", "--output", "json"], None)
    }
}

impl Deref for Agent {
    type Target = agent::Agent;

    fn deref(&self) -> &agent::Agent {
        &self.agent
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut agent::Agent {
        &mut self.agent
    }
}
