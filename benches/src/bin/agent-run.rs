//! What the running agent takes, and whether its trail keeps up.
//!
//! | case | what it is compared with |
//! |---|---|
//! | 10k identities, 64k entries, idle | 64 MiB |
//! | the same, 100 workloads a second come and go | idle |
//! | 50,000 distinct decisions a second | that none is lost |
//! | a million at once, by one and by two producers | that what is lost is counted; a ring with nothing but a record of each call, and a reader that counts |
//!
//! Every decision is of another flow, so that folding has nothing to fold. They come
//! from connect(2) of UDP sockets: nothing is sent, and nobody answers.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde::Serialize;
use zt_benches::{
    agent::{
        bare::{self, Bare},
        produce::{self, Case},
        report,
        size::{self, Size},
        trail::{self, Outcome},
    },
    machine,
    output::{exit_code, put, put_json},
};
use zt_tests::interrupt;

/// Measure the running agent (as root).
#[derive(Parser)]
struct Arguments {
    /// Shorter.
    #[arg(long)]
    quick: bool,
    /// The object file of zt-floor.
    #[arg(long, value_name = "FILE", default_value = "target/bpf/zt-floor.o")]
    floor: PathBuf,
    /// Where the results are written.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    output: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program starts itself as.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    Produce {
        first: u64,
        count: u64,
        rate: u64,
        peers: u32,
    },
}

#[derive(Serialize)]
struct Results {
    size: Size,
    trail: Vec<Outcome>,
    bare: Vec<Bare>,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(Role::Produce {
        first,
        count,
        rate,
        peers,
    }) = arguments.role
    {
        return produce::run(first, count, rate, peers);
    }
    interrupt::catch()?;
    let mut say = |text: &str| eprintln!("{text}");
    let watch = machine::Watch::start()?;
    let seconds = if arguments.quick { 3 } else { 15 };
    let size = size::run(seconds, &mut say)?;
    println!("{}", report::size(&size));
    let cases = cases(seconds);
    let trail = trail::run(&cases, &mut say)?;
    say("the same calls and a bare ring");
    let fastest = cases.iter().filter(|case| case.rate == 0);
    let bare: Vec<Bare> = fastest
        .map(|case| bare::run(*case, &arguments.floor))
        .collect::<Result<_>>()?;
    println!("{}", report::trail(&trail, &bare));
    let machine = watch.machine()?;
    let text = format!(
        "# The agent\n\n{}\n## What it takes\n\n{}\n## Its trail\n\n{}",
        machine.head(),
        report::size(&size),
        report::trail(&trail, &bare)
    );
    put(&arguments.output, "agent.md", &text)?;
    let results = Results { size, trail, bare };
    put_json(&arguments.output, "agent.json", &machine, &results)
}

fn cases(seconds: u64) -> [Case; 4] {
    let case = |producers, count, rate| Case {
        producers,
        count,
        rate,
    };
    [
        case(1, 50_000 * seconds, 50_000),
        case(2, 25_000 * seconds, 25_000),
        case(1, 1_000_000, 0),
        case(2, 500_000, 0),
    ]
}
