//! What traffic costs with us in its way, and with what a user would pick
//! instead.
//!
//! A client and a server, each in a network namespace and on a CPU of its own,
//! one veth between them. Each case is one that does this traffic:
//!
//! | workload | what is done | measured |
//! |---|---|---|
//! | connect | TCP connect, 64 bytes there and back, close | rate, p99 |
//! | request | 64 bytes there and back on an open connection | rate, p99 |
//! | stream | as much as goes in one direction | rate |
//! | datagram | UDP, 64 bytes there and back on a connected socket | rate, p99 |
//! | loaded | as request, on 16 connections at once | rate, p99 |
//!
//! with one of these between them, all compared with *none* and with the
//! minimal programs:
//!
//! | contender | what it is |
//! |---|---|
//! | none | nothing |
//! | empty programs | on the hooks, and they return at once |
//! | minimal programs | on the hooks, and they look up as often as ours, in maps as full as with 64k entries (`zt-floor`) |
//! | zt-agent, audit | our programs and maps in audit mode, one entry |
//! | zt-agent, 1, 1k, 64k | in enforce mode, with so many entries of the policy map for TCP, and one for UDP |
//! | nft set, 1, 1k, 64k | nftables, a set of (cgroup, address, port) for each protocol, looked up for each packet that goes out |
//! | nft set and conntrack | the same, looked up for the first packet of a connection |
//! | nft rules, 1k | nftables, a rule for each, the one that fits last |
//!
//! What a user would not have, a loop of `connect(2)` calls on a UDP socket
//! (`call`), says what the hook adds to a call, over what an empty program adds.
//!
//! Then the same for those with programs, and what the kernel says that each
//! program took: with a cached verdict (`request`, `datagram`), with a first
//! decision for every connection (`connect`), and of a call alone.
//!
//! And how long a policy takes into force (`benches/src/end_to_end/change.rs`).
//!
//! Every round runs every contender once, in an order that changes. Before it
//! is measured it has to show that it decides: a forbidden port is reached with
//! none, with the empty and the minimal programs and in audit mode, and with
//! nothing else. Whoever asks for one destination only finds its rows in the
//! CPU's caches: what a cold row costs is a matter of `program-run`. Our events
//! are read between the windows, so what the agent does with them costs nothing
//! here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use zt_benches::end_to_end::{
    self,
    change::{self, Counts},
    contender::Contender,
    environment::Environment,
    place::{self, Watched},
    programs, report,
    results::Settings,
    rounds, watch,
    workload::Workload,
};
use zt_benches::{machine, output::exit_code};
use zt_tests::interrupt;

const ROUNDS: usize = 15;
const WINDOW_MS: u64 = 500;
const QUICK_ROUNDS: usize = 5;
const QUICK_WINDOW_MS: u64 = 100;
const COUNTS: Counts = Counts {
    rounds: 9,
    changes: 200,
};
const QUICK_COUNTS: Counts = Counts {
    rounds: 3,
    changes: 20,
};

/// Measure traffic with us in its way, and with others (as root).
#[derive(Parser)]
struct Arguments {
    /// Fewer and shorter rounds: about a minute.
    #[arg(long)]
    quick: bool,
    /// How often each contender is measured.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// How long each workload runs, in milliseconds.
    #[arg(long, value_name = "N")]
    window: Option<u64>,
    /// Only contenders whose name contains this, and none.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Only this part.
    #[arg(long, value_enum, value_name = "PART")]
    part: Option<Part>,
    /// The object file of zt-floor.
    #[arg(long, value_name = "FILE", default_value = "target/bpf/zt-floor.o")]
    floor: PathBuf,
    /// Where the results are written.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    output: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What the traffic is like.
    Traffic,
    /// What each program takes.
    Programs,
    /// How long a policy takes into force.
    Changes,
}

/// What this program starts itself as.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    Client {
        #[arg(long)]
        cpu: usize,
    },
    Server {
        #[arg(long)]
        cpu: usize,
        addresses: Vec<SocketAddr>,
    },
    Watch {
        #[arg(long)]
        cpu: usize,
        watched: Watched,
        server: SocketAddr,
    },
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.role {
        Some(Role::Client { cpu }) => {
            place::stay_on(*cpu)?;
            end_to_end::serve_orders()
        }
        Some(Role::Server { cpu, addresses }) => {
            place::stay_on(*cpu)?;
            end_to_end::serve(addresses)
        }
        Some(Role::Watch {
            cpu,
            watched,
            server,
        }) => {
            place::stay_on(*cpu)?;
            match watched {
                Watched::Datagrams => watch::datagrams(*server),
                Watched::Connections => watch::connections(*server),
            }
        }
        None => compare(arguments),
    }
}

fn compare(arguments: &Arguments) -> Result<()> {
    interrupt::catch()?;
    let mut place = place::Place::new()?;
    let watch = machine::Watch::start()?;
    let cpus = place.cpus;
    let environment = || Environment::new(watch.machine()?, cpus);
    println!("{}", environment()?);
    let wanted = |part| arguments.part.is_none_or(|only| only == part);
    if wanted(Part::Traffic) {
        traffic(arguments, &mut place, &environment)?;
    }
    if wanted(Part::Programs) {
        programs(arguments, &mut place, &environment)?;
    }
    if wanted(Part::Changes) {
        changes(arguments, &mut place, &environment)?;
    }
    drop(place);
    println!("written to {}", arguments.output.display());
    Ok(())
}

fn say(text: &str) {
    eprintln!("{text}");
}

fn traffic(
    arguments: &Arguments,
    place: &mut place::Place,
    environment: &dyn Fn() -> Result<Environment>,
) -> Result<()> {
    let results = rounds::run(
        place,
        &arguments.contenders(),
        arguments.settings(),
        &arguments.floor,
        &mut say,
    )?;
    for workload in Workload::ALL {
        println!("\n{}\n", workload.title());
        print!("{}", report::table(&results, workload));
    }
    println!("\nzt-agent, 64k:\n\n{}", report::goals(&results));
    let environment = environment()?.within(results.quiet);
    println!("\n{}", environment.head());
    report::write(&environment, &results, &arguments.output)
}

fn programs(
    arguments: &Arguments,
    place: &mut place::Place,
    environment: &dyn Fn() -> Result<Environment>,
) -> Result<()> {
    let (costs, quiet) = programs::run(place, arguments.settings(), &arguments.floor, &mut say)?;
    let environment = environment()?.within(quiet);
    print!("{}", report::programs(&environment, &costs));
    report::write_programs(&environment, &costs, &arguments.output)
}

fn changes(
    arguments: &Arguments,
    place: &mut place::Place,
    environment: &dyn Fn() -> Result<Environment>,
) -> Result<()> {
    let counts = if arguments.quick {
        QUICK_COUNTS
    } else {
        COUNTS
    };
    let changes = change::run(place, counts, &arguments.floor, &mut say)?;
    let environment = environment()?;
    print!("{}", report::changes(&environment, &changes));
    report::write_changes(&environment, &changes, &arguments.output)
}

impl Arguments {
    fn contenders(&self) -> Vec<Contender> {
        let wanted = |one: &Contender| {
            let only = self.only.as_deref();
            *one == Contender::Nothing || only.is_none_or(|name| one.title().contains(name))
        };
        Contender::ALL.into_iter().filter(wanted).collect()
    }

    fn settings(&self) -> Settings {
        let (rounds, window) = if self.quick {
            (QUICK_ROUNDS, QUICK_WINDOW_MS)
        } else {
            (ROUNDS, WINDOW_MS)
        };
        let window_ms = self.window.unwrap_or(window).max(1);
        Settings {
            rounds: self.rounds.unwrap_or(rounds).max(1),
            window_ms,
            warm_up_ms: (window_ms / 5).max(1),
        }
    }
}
