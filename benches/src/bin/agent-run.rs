//! What the running agent takes, and whether its trail keeps up.
//!
//! | case | what it is compared with |
//! |---|---|
//! | 10k identities, 64k entries, idle | 64 MiB |
//! | the same, 100 workloads a second come and go | idle |
//! | 50,000 distinct decisions a second | that none is lost |
//! | a million at once, by one and by two producers | that what is lost is counted |
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
        produce, report,
        size::{self, Size},
        trail::{self, Case, Outcome},
    },
    output::{exit_code, put, put_json},
};
use zt_tests::interrupt;

/// Measure the running agent (as root).
#[derive(Parser)]
struct Arguments {
    /// Shorter.
    #[arg(long)]
    quick: bool,
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
    let seconds = if arguments.quick { 3 } else { 15 };
    let size = size::run(seconds, &mut say)?;
    println!("{}", report::size(&size));
    let trail = trail::run(&cases(seconds), &mut say)?;
    println!("{}", report::trail(&trail));
    let text = format!(
        "# The agent\n\n## What it takes\n\n{}\n## Its trail\n\n{}",
        report::size(&size),
        report::trail(&trail)
    );
    put(&arguments.output, "agent.md", &text)?;
    put_json(&arguments.output, "agent.json", &Results { size, trail })
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
