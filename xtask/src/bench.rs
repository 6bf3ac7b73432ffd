//! What it costs: the pure parts by criterion, runs of the programs, and traffic
//! end to end beside what a user would pick instead.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use zt_tests::interrupt;

use crate::{build, dist, setup, step::Steps, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Fewer and shorter rounds: what they say is rough.
    #[arg(long)]
    quick: bool,
    /// Keep the reports and plots in docs/benchmarks.
    #[arg(long, conflicts_with = "quick")]
    keep: bool,
}

/// Where the programs write what they measured.
const RESULTS: &str = "target/bench";
/// What of that is kept.
const KEPT: &str = "docs/benchmarks";

/// Root: the programs are loaded into this kernel, below sandboxes of our own.
pub fn run(steps: &Steps, arguments: &Arguments) -> Result<()> {
    if !workspace::is_root() {
        bail!(
            "the benchmark loads kernel programs and makes cgroups and namespaces: run this as root"
        );
    }
    // What is running gets the signal too, and removes what it made: wait for it.
    interrupt::catch()?;
    let tools = setup::run(steps)?;
    let object = build::kernel_programs(steps, &tools, build::Warnings::Allowed)?;
    let floor = build::floor_programs(steps, &tools, build::Warnings::Allowed)?;
    let cargo = |subcommand: &str| {
        let mut command = workspace::cargo(subcommand);
        command.env(build::OBJECT_VARIABLE, &object);
        command
    };
    let mut programs = cargo("build");
    programs
        .args(["--profile", "bench", "--bins", "--bench=*"])
        .args(["--package", "zt-tests", "--package", "zt-benches"]);
    steps.run("Build the benchmarks", &mut programs)?;
    let agent = dist::binary(steps)?;
    let mut criterion = cargo("bench");
    let [warm_up, measurement] = if arguments.quick {
        ["0.2", "0.5"]
    } else {
        ["1", "2"]
    };
    criterion
        .args(["--package", "zt-benches", "--benches", "--"])
        .args(["--warm-up-time", warm_up])
        .args(["--measurement-time", measurement]);
    let output = steps.run("Parse, compile, judge", &mut criterion)?;
    output
        .lines()
        .filter(|line| line.contains("time:"))
        .for_each(|line| println!("{line}"));
    measure(
        steps,
        "Run the programs",
        &mut program("program-run", arguments),
    )?;
    let mut end_to_end = program("end-to-end", arguments);
    measure(
        steps,
        "Traffic end to end",
        end_to_end.arg("--floor").arg(floor),
    )?;
    let mut running = program("agent-run", arguments);
    measure(steps, "Run the agent", running.arg("--agent").arg(agent))?;
    if arguments.keep { keep() } else { Ok(()) }
}

/// Reports, plots, and the same for machines.
fn keep() -> Result<()> {
    let (from, to) = (
        workspace::root().join(RESULTS),
        workspace::root().join(KEPT),
    );
    fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(&from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        if let Some(name) = path.file_name() {
            fs::copy(&path, to.join(name)).with_context(|| path.display().to_string())?;
        }
    }
    println!("kept in {KEPT}");
    Ok(())
}

/// One of the programs of zt-benches.
fn program(name: &str, arguments: &Arguments) -> Command {
    let mut command = Command::new(format!("target/release/{name}"));
    command.current_dir(workspace::root());
    if arguments.quick {
        command.arg("--quick");
    }
    command
}

fn measure(steps: &Steps, title: &str, command: &mut Command) -> Result<()> {
    interrupt::check()?;
    let output = steps.run(title, command)?;
    println!("{output}");
    Ok(())
}
