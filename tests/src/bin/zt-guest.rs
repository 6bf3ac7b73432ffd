//! The first process of a virtual machine that runs the integration tests, and
//! on any machine: what its kernel makes of the programs.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sys::wait::WaitStatus;
use zt_tests::guest::{Message, PLAN, machine, machine::Outside, programs, suite};

#[derive(Parser)]
#[command(name = "zt-guest")]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Load the kernel programs, and print what the verifier made of each.
    Programs,
    /// Run the tests; the first process starts this.
    Suite,
}

fn main() -> ExitCode {
    // The kernel passes on to the first process what it does not know itself.
    let result = if std::process::id() == 1 {
        be_first()
    } else {
        match Arguments::parse().task {
            Some(Task::Programs) => print_programs(),
            Some(Task::Suite) => run_suite(),
            None => Err(anyhow::anyhow!(
                "see --help: outside a machine it needs a task"
            )),
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zt-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_programs() -> Result<()> {
    println!("{}", serde_json::to_string(&programs::load())?);
    Ok(())
}

/// Never returns while the machine can be ended: the kernel panics without its
/// first process, which the outside would see, too.
fn be_first() -> Result<()> {
    let result = machine::set_up().and_then(|()| attend());
    if let Err(error) = &result {
        let problem = Message::Problem(format!("{error:#}"));
        Outside::open().and_then(|outside| outside.say(&problem))?;
    }
    Err(machine::end()).context("cannot end the machine")
}

/// Runs the suite in a child, since the first process inherits every orphan.
fn attend() -> Result<()> {
    let child = machine::command(std::env::current_exe()?)
        .arg("suite")
        .spawn()
        .context("cannot start the suite")?;
    match machine::reap_until(child.id())? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => anyhow::bail!("the suite ended badly: {other:?}"),
    }
}

fn run_suite() -> Result<()> {
    let outside = Outside::open()?;
    let plan = fs::read_to_string(PLAN).context(PLAN)?;
    let plan = serde_json::from_str(&plan).context(PLAN)?;
    let release = machine::release()?;
    outside.say(&Message::Booted { release })?;
    outside.say(&Message::Programs(programs::load()))?;
    let result = suite::run(&plan, &outside);
    if let Err(error) = &result {
        outside.say(&Message::Problem(format!("{error:#}")))?;
    }
    outside.say(&Message::Done)?;
    Ok(())
}
