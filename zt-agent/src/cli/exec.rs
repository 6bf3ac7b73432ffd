//! `zt-agent exec`: a command as an enrolled workload.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getpgrp, tcgetpgrp},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use super::{Global, settings};
use crate::{
    admin::{
        self, client,
        protocol::{Enrol, ModeWord, OwnPort},
    },
    document::Config,
    kernel::cgroup::{self, Root},
    model::SpiffeId,
    source::quarantine::SpiffeIdText,
};

/// Cgroups of commands are called so, and the process ID.
const PREFIX: &str = "exec-";
/// Between attempts to enrol again when the agent was restarted.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// The SPIFFE ID that the command has while it runs
    #[arg(long = "as", value_name = "ID")]
    identity: SpiffeId,
    /// A port that is its own on every local address, for example 8080/tcp
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<OwnPort>,
    /// Enforce, or let pass and record what would have been denied [default:
    /// the node's mode]
    #[arg(long, value_enum)]
    mode: Option<ModeWord>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// # Errors
/// When the agent is not running or refuses, or the command cannot be started.
pub fn run(global: &Global, args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let config = settings::load(global)?;
    let socket = admin::socket(&config.runtime_directory);
    // Before anything is made.
    client::status(&socket)?;
    let cgroup = ExecCgroup::make(&config)?;
    if let Err(error) = enrol(&socket, args, &cgroup.path).and_then(|()| cgroup.enter()) {
        cgroup.remove();
        return Err(error);
    }
    let status = spawn_and_wait(&args.command);
    cgroup.remove();
    Ok(exit_code(status?))
}

/// Enrols, and again whenever the agent was restarted. The connection ends
/// with this process, and the enrolment with it.
fn enrol(socket: &Path, args: &ExecArgs, cgroup: &Path) -> anyhow::Result<()> {
    let request = Enrol {
        spiffe_id: SpiffeIdText(args.identity.clone()),
        cgroup: cgroup.to_owned(),
        ports: args.ports.clone(),
        mode: args.mode,
    };
    let mut connection = client::enrol(socket, request.clone())?;
    let socket = socket.to_owned();
    thread::spawn(move || {
        loop {
            // Says nothing until the agent ends.
            while let Ok(Some(_)) = connection.line() {}
            connection = loop {
                thread::sleep(AGAIN);
                if let Ok(connection) = client::enrol(&socket, request.clone()) {
                    break connection;
                }
            };
        }
    });
    Ok(())
}

fn spawn_and_wait(command: &[String]) -> anyhow::Result<ExitStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let program = command.first().map(String::as_str).unwrap_or_default();
        let mut child = Command::new(program)
            .args(command.iter().skip(1))
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        loop {
            tokio::select! {
                status = child.wait() => return Ok(status?),
                _ = interrupt.recv() => if !is_told_by_terminal() { pass_on(&child, Signal::SIGINT) },
                _ = terminate.recv() => pass_on(&child, Signal::SIGTERM),
            }
        }
    })
}

/// Ctrl-C goes to every process of the terminal's foreground group: the
/// command has heard it.
fn is_told_by_terminal() -> bool {
    tcgetpgrp(std::io::stdin()).is_ok_and(|foreground| foreground == getpgrp())
}

fn pass_on(child: &Child, signal: Signal) {
    // `None`: it has ended.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// As a shell has it: 128 and the signal's number.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    let code = code.and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The cgroup of one command.
#[derive(Debug)]
struct ExecCgroup {
    path: PathBuf,
    /// Where this process was before.
    home: PathBuf,
}

impl ExecCgroup {
    /// Makes it below the managed root, and removes those of commands that
    /// ended without doing so.
    fn make(config: &Config) -> anyhow::Result<Self> {
        let root = Root::open(&config.cgroup_root, config.allow_root_cgroup)?.path;
        remove_leftovers(&root);
        let path = root.join(format!("{PREFIX}{}", std::process::id()));
        // One of that name and without processes is of a dead one.
        let _ = fs::remove_dir(&path);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self {
            path,
            home: home()?,
        })
    }

    /// Moves this process, and so all of its children, into it.
    fn enter(&self) -> anyhow::Result<()> {
        enter(&self.path)
    }

    /// Leaves it, and removes it.
    fn remove(&self) {
        // A cgroup with this process in it cannot be removed.
        let _ = enter(&self.home);
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!(
                "zt-agent: {} stays: {error}; what the command left running there is no longer enrolled",
                self.path.display()
            );
        }
    }
}

/// The cgroup that this process is in.
fn home() -> anyhow::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.context("this process is in no cgroup v2")?;
    Ok(cgroup::mount()?.join(path))
}

fn enter(cgroup: &Path) -> anyhow::Result<()> {
    let path = cgroup.join("cgroup.procs");
    fs::write(&path, std::process::id().to_string()).with_context(|| path.display().to_string())
}

fn remove_leftovers(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // One with processes stays.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_shells() {
        let code = |raw| exit_code(ExitStatus::from_raw(raw));
        assert_eq!(code(0), ExitCode::SUCCESS);
        assert_eq!(code(7 << 8), ExitCode::from(7));
        assert_eq!(code(15), ExitCode::from(143));
    }

    #[test]
    fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
        let root = tempfile::tempdir().unwrap();
        let living = format!("{PREFIX}{}", std::process::id());
        for name in [living.as_str(), "exec-4194305", "exec-x", "other"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        remove_leftovers(root.path());
        let left = |name: &str| root.path().join(name).exists();
        assert!(left(&living) && left("other"));
        assert!(!left("exec-4194305"));
    }
}
