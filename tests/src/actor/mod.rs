//! Sockets in the hands of somebody: single socket calls, one by one, in a
//! process of a workload, in one that is no workload's, or in this process.

mod kinds;
mod passing;
pub mod sockets;
mod uring;
mod xdp;

use std::{
    io::{self, BufRead},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;

use crate::{
    Workload,
    netns::Netns,
    process::{self, Running},
    workload::probe,
};
use sockets::Sockets;

/// Marks what the actor answers.
const MARK: &str = "@@";
/// What a call may take, its own limits included.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who holds the sockets.
pub enum Actor {
    /// A process of its own.
    Member(Running),
    /// This process: to the programs, one of the node's.
    Host(Arc<Netns>, Sockets),
}

impl Actor {
    /// A process of a workload.
    ///
    /// # Panics
    /// As everything here: when the process cannot be started or asked.
    #[must_use]
    pub fn member(workload: &Workload) -> Self {
        let mut command = probe(&["act"]).expect("zt-probe is built");
        Self::Member(workload.start(&mut command).expect("the actor starts"))
    }

    /// A process in a workload's namespace and in no workload's cgroup.
    #[must_use]
    pub fn outside(netns: &Netns) -> Self {
        let mut command = probe(&["act"]).expect("zt-probe is built");
        let running = process::start_outside(&mut command, netns);
        Self::Member(running.expect("the actor starts"))
    }

    /// This process, inside a namespace for the time of each call.
    #[must_use]
    pub fn host(netns: &Arc<Netns>) -> Self {
        Self::Host(Arc::clone(netns), Sockets::default())
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match self {
            Self::Member(running) => running.pid(),
            Self::Host(..) => std::process::id(),
        }
    }

    /// Performs one call.
    ///
    /// # Errors
    /// The errno's name.
    pub fn act(&mut self, call: &str) -> Result<String, String> {
        match self {
            Self::Member(running) => ask(running, call),
            Self::Host(netns, sockets) => netns
                .enter(|| Ok(sockets.act(call)))
                .expect("the namespace can be entered")
                .map_err(|errno| format!("{errno:?}")),
        }
    }

    /// As [`Actor::act`], for what must succeed and gives a number.
    pub fn get(&mut self, call: &str) -> u32 {
        let number = self.act(call).expect(call);
        number.parse().expect(call)
    }
}

fn ask(running: &mut Running, call: &str) -> Result<String, String> {
    let seen = running.lines().len();
    running.write_line(call).expect("the actor lives");
    let answer = running
        .wait_after(seen, PATIENCE, |line| line.starts_with(MARK))
        .expect(call);
    match answer
        .strip_prefix(MARK)
        .and_then(|rest| rest.split_once(' '))
    {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some((_, errno)) => Err(errno.to_owned()),
        None => panic!("{call}: {answer}"),
    }
}

/// The process of an [`Actor::Member`]: answers each line of input. `inherited`:
/// descriptors that it has from before an exec; that it has them is its first
/// answer.
///
/// # Errors
/// When its input cannot be read or the program not be replaced.
pub fn run(inherited: &[i32]) -> Result<()> {
    let mut sockets = Sockets::inherited(inherited);
    if !inherited.is_empty() {
        println!("{MARK}ok ");
    }
    for call in io::stdin().lock().lines() {
        let call = call?;
        if call == "exec" {
            return Err(exec(&sockets.leave_open()?).into());
        }
        match sockets.act(&call) {
            Ok(text) => println!("{MARK}ok {text}"),
            Err(errno) => println!("{MARK}err {errno:?}"),
        }
    }
    Ok(())
}

/// Replaces the program by itself; returns only if that fails.
fn exec(descriptors: &[i32]) -> io::Error {
    use std::os::unix::process::CommandExt;
    let list: Vec<String> = descriptors.iter().map(ToString::to_string).collect();
    let mut command = Command::new("/proc/self/exe");
    command.args(["act", "--inherited", &list.join(",")]).exec()
}
