//! What it costs: the pure parts by criterion, then runs of the programs.
//! Comparisons with what a user would pick instead are not here yet.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{build, setup, step::Steps, workspace};

/// Root: the programs are loaded into this kernel, below a sandbox of our own.
pub fn run(steps: &Steps) -> Result<()> {
    if !workspace::is_root() {
        bail!("the benchmark loads kernel programs and makes cgroups: run this as root");
    }
    let tools = setup::run(steps)?;
    let object = build::kernel_programs(steps, &tools, build::Warnings::Allowed)?;
    let cargo = |subcommand: &str| {
        let mut command = workspace::cargo(subcommand);
        command.env(build::OBJECT_VARIABLE, &object);
        command
    };
    let mut programs = cargo("build");
    programs.args([
        "--release",
        "--package",
        "zt-tests",
        "--package",
        "zt-benches",
    ]);
    steps.run("Build the benchmarks", programs.arg("--bins"))?;
    let mut criterion = cargo("bench");
    criterion
        .args(["--package", "zt-benches", "--benches", "--"])
        .args(["--warm-up-time", "1", "--measurement-time", "2"]);
    let output = steps.run("Parse, compile, judge", &mut criterion)?;
    output
        .lines()
        .filter(|line| line.contains("time:"))
        .for_each(|line| println!("{line}"));
    let mut runs = Command::new("target/release/program-run");
    let output = steps.run("Run the programs", runs.current_dir(workspace::root()))?;
    println!("{output}");
    Ok(())
}
