//! What the running agent takes, and whether its trail keeps up.
//!
//! | case | what it is compared with |
//! |---|---|
//! | 10k identities, 64k entries, idle | 64 MiB |
//! | the same, 100 workloads a second come and go | idle |
//! | 50,000 distinct decisions a second | that none is lost |
//! | a million at once, by one and by two producers | that what is lost is counted; the same decisions and a reader that only counts; a ring with nothing but a record of each call, and that reader |
//!
//! Every decision is of another flow, so that folding has nothing to fold. They come
//! from connect(2) of UDP sockets: nothing is sent, and nobody answers.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use zt_benches::{
    agent::{
        bare::{self, Bare, Sender},
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
    /// The agent as it is shipped: static, with optimisations.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/x86_64-unknown-linux-musl/release/zt-agent"
    )]
    agent: PathBuf,
    /// Only this part.
    #[arg(long)]
    part: Option<Part>,
    /// Where the results are written.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    output: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What the agent takes.
    Size,
    /// Whether its trail keeps up.
    Trail,
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
    size: Option<Size>,
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
    let wanted = |part| arguments.part.is_none_or(|only| only == part);
    let mut text = String::new();
    let mut tell = |title: &str, part: &str| {
        println!("{part}");
        text.push_str(&format!("\n## {title}\n\n{part}"));
    };
    let mut size = None;
    if wanted(Part::Size) {
        let found = size::run(&arguments.agent, seconds, &mut say)?;
        tell("What it takes", &report::size(&found));
        size = Some(found);
    }
    let (mut trail, mut bare) = (Vec::new(), Vec::new());
    if wanted(Part::Trail) {
        let cases = cases(seconds);
        trail = trail::run(&arguments.agent, &cases, &mut say)?;
        for case in cases.iter().filter(|case| case.rate == 0) {
            for sender in [Sender::Floor, Sender::Ours] {
                say("the same calls and a reader that only counts");
                bare.push(bare::run(sender, *case, &arguments.floor)?);
            }
        }
        tell("Its trail", &report::trail(&trail, &bare));
    }
    let machine = watch.machine()?;
    let text = format!("# The agent\n\n{}{text}", machine.head());
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
