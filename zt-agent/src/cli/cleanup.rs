//! `zt-agent cleanup`

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::fcntl::{Flock, FlockArg};

use super::{Global, agent, output, settings};
use crate::{
    boot::Machine,
    document::Config,
    kernel::{cgroup, default_drop, frames, pins::Pins},
};

#[derive(Debug, clap::Args)]
pub struct CleanupArgs {
    /// Also while an agent runs
    #[arg(long)]
    pub force: bool,
}

/// Cgroups that `zt-agent exec` makes begin with this.
const EXEC_PREFIX: &str = "exec-";

pub fn run(global: &Global, args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let config = settings::load(global)?;
    settings::require_root()?;
    let lock = lock(&config.runtime_directory)?;
    if lock.is_none() && !args.force {
        let pid = agent::holder(&config.runtime_directory)?;
        let pid = pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
        anyhow::bail!(
            "an agent is running{pid}: stop it first, or use --force to take enforcement away under it"
        );
    }
    let removed = remove(&config, lock.is_some())?;
    output::text(&removed.render(lock.is_none()))?;
    Ok(ExitCode::SUCCESS)
}

/// The agent's lock, held so that none starts meanwhile; `None` if one runs.
/// There is nothing to lock without the directory.
fn lock(directory: &Path) -> io::Result<Option<Option<Flock<File>>>> {
    let path = directory.join(agent::LOCK);
    let file = match File::options().write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(None)),
        other => other?,
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(Some(lock))),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// What went, and what could not.
#[derive(Debug, Default)]
struct Removed {
    interfaces: usize,
    links: usize,
    maps: usize,
    directory: PathBuf,
    others: Vec<PathBuf>,
    kept: Vec<(PathBuf, io::Error)>,
    state: PathBuf,
    /// The next boot enforces again.
    boots: bool,
}

fn remove(config: &Config, stopped: bool) -> anyhow::Result<Removed> {
    let pins = settings::pins(config);
    let mut removed = Removed {
        links: entries(&pins, "links"),
        maps: entries(&pins, "maps"),
        directory: config.pin_directory.clone(),
        state: config.state_directory.clone(),
        boots: Machine::at(Path::new("/")).is_enabled(),
        ..Removed::default()
    };
    removed.interfaces = frames::remove(&pins)?;
    pins.remove()?;
    // Last: until here nothing leaves a managed interface undecided.
    if !config.interfaces.managed.is_empty() {
        default_drop::remove()?;
    }
    if stopped {
        removed.file(config.runtime_directory.join(agent::SOCKET));
    }
    for path in leftovers(config) {
        removed.cgroup(path);
    }
    Ok(removed)
}

fn entries(pins: &Pins, kind: &str) -> usize {
    fs::read_dir(pins.directory().join(kind)).map_or(0, Iterator::count)
}

/// Cgroups of commands that `exec` could not clear away itself.
fn leftovers(config: &Config) -> Vec<PathBuf> {
    let Ok(mount) = cgroup::mount() else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(mount.join(&config.cgroup_root)) else {
        return Vec::new();
    };
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        path.is_dir() && name.as_encoded_bytes().starts_with(EXEC_PREFIX.as_bytes())
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(ours)
        .collect()
}

impl Removed {
    fn file(&mut self, path: PathBuf) {
        let result = fs::remove_file(&path);
        self.note(path, result);
    }

    /// One with processes in it stays.
    fn cgroup(&mut self, path: PathBuf) {
        let result = fs::remove_dir(&path);
        self.note(path, result);
    }

    fn note(&mut self, path: PathBuf, result: io::Result<()>) {
        match result {
            Ok(()) => self.others.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.kept.push((path, error)),
        }
    }

    fn render(&self, under_agent: bool) -> String {
        let mut out = String::new();
        if self.links + self.maps == 0 {
            out += &format!("nothing was pinned below {}\n", self.directory.display());
        } else {
            out += &format!(
                "removed {} links and {} maps below {}\n",
                self.links,
                self.maps,
                self.directory.display()
            );
        }
        for path in &self.others {
            out += &format!("removed {}\n", path.display());
        }
        for (path, error) in &self.kept {
            out += &format!("kept {}: {error}\n", path.display());
        }
        out += "nothing is enforced on this node now: every workload may talk to everybody\n";
        out += &format!(
            "quarantine and the audit key stay in {}\n",
            self.state.display()
        );
        if self.boots {
            out += "the next boot enforces again, with nobody enrolled until an agent runs: `zt-agent boot remove` takes that away\n";
        }
        if under_agent {
            out += "the agent that runs has lost its maps: restart it to enforce again\n";
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_went_and_what_that_means() {
        let mut removed = Removed {
            links: 9,
            maps: 17,
            directory: "/bpf/zt".into(),
            state: "/var/lib/zt-agent".into(),
            boots: true,
            ..Removed::default()
        };
        removed.note("/run/agent.sock".into(), Ok(()));
        removed.note("/cg/exec-1".into(), Err(io::ErrorKind::ResourceBusy.into()));
        assert_eq!(
            removed.render(true),
            "removed 9 links and 17 maps below /bpf/zt\n\
             removed /run/agent.sock\n\
             kept /cg/exec-1: resource busy\n\
             nothing is enforced on this node now: every workload may talk to everybody\n\
             quarantine and the audit key stay in /var/lib/zt-agent\n\
             the next boot enforces again, with nobody enrolled until an agent runs: `zt-agent boot remove` takes that away\n\
             the agent that runs has lost its maps: restart it to enforce again\n"
        );
    }

    #[test]
    fn a_second_time_there_is_nothing() {
        let directory = tempfile::TempDir::new().unwrap();
        let config = Config {
            pin_directory: directory.path().join("bpf"),
            runtime_directory: directory.path().join("run"),
            cgroup_root: "no-such-cgroup-of-ours".into(),
            ..Config::default()
        };
        let removed = remove(&config, true).unwrap();
        assert!(
            removed
                .render(false)
                .starts_with("nothing was pinned below ")
        );
        assert!(lock(&config.runtime_directory).unwrap().is_some());
    }

    #[test]
    fn a_held_lock_is_respected() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = File::create(directory.path().join(agent::LOCK)).unwrap();
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        assert!(lock(directory.path()).unwrap().is_none());
        drop(held);
        assert!(lock(directory.path()).unwrap().is_some());
    }
}
