//! What one run of a program for packets costs, under BPF_PROG_TEST_RUN.
//!
//! Each of the four (sent and received, of a socket and on a veth) runs these, with 1,
//! 1k and 64k entries in the policy map and as many live flows, keys at random:
//!
//! | case | compared with |
//! |---|---|
//! | empty | the harness itself |
//! | minimal | empty: what the lookups alone cost |
//! | cached | minimal: a verdict that is known |
//! | first, allowed | empty: a decision, its counters and its event |
//! | first, denied | the same, and it is looked at twice |
//!
//! and, of one flow, one packet again and again: what the CPU's caches leave.
//!
//! What cannot be seen here is the usual case of TCP, whose verdict is kept with the
//! socket: the socket of a test run has no protocol, and is another one each time.
//! `end-to-end` has that, and the programs for socket calls.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use zt_benches::{
    machine,
    micro::{report, rounds},
    output::{exit_code, put, put_json},
};
use zt_tests::interrupt;

const ROUNDS: usize = 15;
const QUICK_ROUNDS: usize = 3;

/// Measure runs of the programs for packets (as root).
#[derive(Parser)]
struct Arguments {
    /// Fewer rounds.
    #[arg(long)]
    quick: bool,
    /// The object file of zt-floor.
    #[arg(long, value_name = "FILE", default_value = "target/bpf/zt-floor.o")]
    floor: PathBuf,
    /// Where the results are written.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    output: PathBuf,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    interrupt::catch()?;
    let rounds = if arguments.quick {
        QUICK_ROUNDS
    } else {
        ROUNDS
    };
    let watch = machine::Watch::start()?;
    let costs = rounds::run(rounds, &arguments.floor, &mut |text| eprintln!("{text}"))?;
    let machine = watch.machine()?;
    let text = report::markdown(&machine, &costs);
    println!("{text}");
    put(&arguments.output, "program-run.md", &text)?;
    put_json(&arguments.output, "program-run.json", &machine, &costs)
}
