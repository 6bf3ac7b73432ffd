//! The demo: the five services of the policy document at work on this machine,
//! with and without the agent, and everything that the agent says checked against
//! what the services see.

mod acts;
mod agent;
mod checks;
mod files;
mod forgery;
mod paint;
mod round;
pub mod services;
mod stage;
mod tally;
mod trail;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zt_tests::sandbox;

use crate::step::Steps;
use crate::{build, setup, workspace};
use agent::Agent;
use checks::Checks;
use stage::Stage;
use tally::Tally;
use zt_tests::interrupt;

#[derive(clap::Args)]
pub struct Arguments {
    /// Show this zt-agent instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

pub fn run(steps: &Steps, arguments: &Arguments) -> Result<()> {
    if !workspace::is_root() {
        bail!("the demo loads kernel programs and makes cgroups and namespaces: run it as root");
    }
    let agent = match &arguments.agent {
        Some(agent) => std::path::absolute(agent)?,
        None => build_agent(steps)?,
    };
    let mut probe = workspace::cargo("build");
    probe.args([
        "--package",
        "zt-tests",
        "--no-default-features",
        "--bin",
        "zt-probe",
    ]);
    steps.run("Build the services' program", &mut probe)?;
    show(&agent)
}

fn build_agent(steps: &Steps) -> Result<PathBuf> {
    let tools = setup::run(steps)?;
    build::everything(steps, &tools, build::Profile::Release)?;
    Ok(workspace::root().join(build::agent_path(build::Profile::Release)))
}

/// Everything that the acts work with. Dropped in the order of the fields: the
/// agent first, then the services and their places.
struct Demo<'a> {
    checks: &'a mut Checks,
    /// What the clients saw while the agent's programs were attached.
    tally: Tally,
    agent: Agent,
    stage: Stage,
}

fn show(agent: &Path) -> Result<()> {
    interrupt::catch()?;
    let mut checks = Checks::new();
    let mut name = None;
    if let Err(error) = play(agent, &mut checks, &mut name) {
        checks.abort(&error);
    }
    if let Some(name) = name {
        nothing_left(&name, &mut checks);
    }
    if checks.conclude() {
        return Ok(());
    }
    bail!("the demo failed")
}

/// Plays all acts. `name` becomes that of the sandbox, which is gone at the end.
fn play(agent: &Path, checks: &mut Checks, name: &mut Option<String>) -> Result<()> {
    checks.act("Five services, each a process in a cgroup and a network namespace");
    for problem in sandbox::sweep() {
        checks.say(&format!("left by an earlier run: {problem:#}"));
    }
    let stage = Stage::build().context("cannot set the stage")?;
    *name = Some(stage.sandbox().name().to_owned());
    let agent = Agent::prepare(agent.to_owned(), &stage)?;
    let mut demo = Demo {
        checks,
        tally: Tally::default(),
        agent,
        stage,
    };
    demo.show_stage();
    for act in acts::ALL {
        interrupt::check()?;
        act(&mut demo)?;
    }
    Ok(())
}

fn nothing_left(name: &str, checks: &mut Checks) {
    match sandbox::traces(name) {
        Ok(traces) if traces.is_empty() => {
            checks.check(
                true,
                "no cgroup, namespace, mount, file or pin of the demo is left",
            );
        }
        Ok(traces) => checks.check(false, &format!("nothing is left: there is {traces:?}")),
        Err(error) => checks.check(false, &format!("nothing is left: {error:#}")),
    }
}

impl Demo<'_> {
    fn show_stage(&self) {
        use services::{Service, Transport};
        for service in Service::ALL {
            let ipv4 = self.stage.address(service, Transport::Tcp4);
            let ipv6 = self.stage.address(service, Transport::Tcp6);
            let id = paint::dim(&service.spiffe());
            self.checks
                .say(&format!("{:<9} {ipv4:<17} {ipv6:<22} {id}", service.name()));
        }
    }

    fn act(&mut self, title: &str) {
        self.checks.act(title);
    }

    fn say(&self, text: &str) {
        self.checks.say(text);
    }

    fn check(&mut self, held: bool, claim: &str) {
        self.checks.check(held, claim);
    }

    /// Shows the matrix of a round and checks every cell of it.
    fn check_round(&mut self, round: &round::Round, claim: &str) {
        self.say(&round.matrix());
        let wrong = round.wrong();
        for cell in &wrong {
            self.check(false, cell);
        }
        let right = services::Cell::COUNT - wrong.len();
        self.check(
            wrong.is_empty(),
            &format!("{claim}: {right} of {} cells", services::Cell::COUNT),
        );
    }
}
