//! The project's tasks: `cargo xtask --help`.

mod bench;
mod btf;
mod build;
mod bytecode;
mod census;
mod check;
mod debian;
mod demo;
mod dist;
mod fuzz;
mod golang;
mod kubernetes;
mod manifests;
mod mutate;
mod nodes;
mod setup;
mod stack;
mod step;
mod suites;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::step::Steps;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and show the agent")]
struct Arguments {
    /// Show the output of commands that succeed, too.
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and test, and nothing else.
    Setup,
    /// Build the kernel programs and the agent.
    Build(build::Arguments),
    /// Check and test everything, the kernel's side included (as root).
    Test(test::Arguments),
    /// Fuzz what reads bytes from somebody else.
    Fuzz(fuzz::Arguments),
    /// Run the integration tests on Linux 6.1 and 6.12, in virtual machines.
    Vm(vm::Arguments),
    /// Leave out one kernel program after the other, and see which tests notice
    /// (as root).
    Mutate(mutate::Arguments),
    /// Measure what a decision, a change and traffic cost, beside nothing, minimal
    /// programs and nftables (as root).
    Bench(bench::Arguments),
    /// Count what the kernel programs take, and compare with the last commit.
    Counts(census::Arguments),
    /// Write what is deployed: binary, image, manifests, Helm chart.
    Dist(dist::Arguments),
    /// Show a policy at work on this machine (as root).
    Demo(demo::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let steps = Steps::new(arguments.verbose);
    let result = match arguments.task {
        Task::Setup => setup::everything(&steps),
        Task::Build(arguments) => build::run(&steps, &arguments),
        Task::Test(arguments) => return test::run(&steps, &arguments),
        Task::Fuzz(arguments) => fuzz::run(&steps, &arguments),
        Task::Vm(arguments) => return vm::run(&steps, &arguments),
        Task::Mutate(arguments) => mutate::run(&steps, &arguments),
        Task::Bench(arguments) => bench::run(&steps, &arguments),
        Task::Counts(arguments) => census::run(&steps, &arguments),
        Task::Dist(arguments) => dist::run(&steps, &arguments),
        Task::Demo(arguments) => demo::run(&steps, &arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
