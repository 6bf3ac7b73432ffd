//! One run's own corner of the machine: made at the start, removed at the end.
//!
//! All of it is named `zt-t<pid>-<number>`, so that removal needs no memory:
//! a sandbox removes everything of its name when it is dropped (also when a test
//! panics), and what a killed run left is found by the name and removed by the
//! next one. No other process may rely on anything of such a name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::bpffs::{self, Bpffs};
use crate::cgroup::{self, Cgroup};
use crate::named;
use crate::netns::{Netns, Network};
use crate::workload::Workload;

const PREFIX: &str = "zt-t";
const RUN: &str = "/run";

/// A corner of the machine. Keep it alive until the test ends.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    cgroup: Cgroup,
}

impl Sandbox {
    /// Makes an empty one: a cgroup and a directory. Needs root.
    pub fn new() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this needs root: it makes cgroups, network namespaces and mounts"
        );
        static SWEEP: Once = Once::new();
        SWEEP.call_once(|| {
            for problem in sweep() {
                eprintln!("sweeping up after earlier runs: {problem:#}");
            }
        });
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::named(format!("{PREFIX}{}-{number}", std::process::id()))
    }

    fn named(name: String) -> Result<Self> {
        // A leftover of an earlier process with our process ID.
        remove(&name)?;
        let cgroup = Cgroup::at_top(&name)?;
        // From here on the sandbox's drop cleans up.
        let sandbox = Self { name, cgroup };
        let directory = sandbox.directory();
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        Ok(sandbox)
    }

    /// Its name, and the start of everything's name in it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cgroup above all of its workloads: the managed root.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A directory for sockets, configuration and logs.
    pub fn directory(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    /// Mounts a BPF file system in the directory. At most one at a time.
    pub fn bpffs(&self) -> Result<Bpffs> {
        Bpffs::mount(self.directory().join("bpf"))
    }

    /// Makes a bridge for 10.89.SUBNET.0/24 and fd00:89:SUBNET::/64.
    pub fn network(&self, subnet: u8) -> Result<Network> {
        Network::make(&self.name, subnet)
    }

    /// Makes a network namespace with nothing but loopback.
    pub fn netns(&self, label: &str) -> Result<Netns> {
        Netns::make(format!("{}-{label}", self.name))
    }

    /// Makes a cgroup and a namespace on the network for one workload.
    pub fn workload(&self, network: &Network, label: &str, host: u8) -> Result<Workload> {
        let cgroup = self.cgroup.child(label)?;
        let netns = network.join(label, host)?;
        Ok(Workload::new(label, cgroup, netns.into()))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("the sandbox {} is not gone: {error:#}", self.name);
        }
    }
}

/// Removes the sandboxes of processes that are dead. Gives what went wrong.
///
/// One sweep at a time on a machine: of two, one would find gone what it is
/// about to remove.
pub fn sweep() -> Vec<anyhow::Error> {
    let found = alone().and_then(|alone| Ok((alone, leftovers()?)));
    let (_alone, names) = match found {
        Ok(found) => found,
        Err(error) => return vec![error],
    };
    let dead = names.iter().filter(|name| owner_is_dead(name));
    dead.filter_map(|name| remove(name).err()).collect()
}

/// Holds the place of all sandboxes' cgroups until it is dropped; other
/// processes' sweeps wait for that.
fn alone() -> Result<File> {
    let place = File::open(cgroup::mount_point()?)?;
    place.lock()?;
    Ok(place)
}

/// What exists of a sandbox: cgroups, named namespaces, directories. Nothing
/// after its end.
pub fn traces(name: &str) -> Result<Vec<PathBuf>> {
    let of_place = |place: &PathBuf| {
        let names = entries(place).into_iter();
        let ours = names.filter(|entry| sandbox_of(entry) == Some(name));
        ours.map(|entry| place.join(entry)).collect::<Vec<_>>()
    };
    Ok(places()?.iter().flat_map(of_place).collect())
}

/// Where the parts of a sandbox are.
fn places() -> Result<[PathBuf; 3]> {
    Ok([cgroup::mount_point()?, named::DIRECTORY.into(), RUN.into()])
}

/// The sandboxes of which anything exists.
fn leftovers() -> Result<Vec<String>> {
    let mut names: Vec<String> = places()?
        .iter()
        .flat_map(|place| entries(place))
        .filter_map(|entry| sandbox_of(&entry).map(str::to_owned))
        .collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// The names in a directory; none if there is no such directory.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// `zt-t17-0` of `zt-t17-0-client`; nothing of a name that is not ours.
fn sandbox_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(PREFIX)?;
    let (pid, rest) = rest.split_once('-')?;
    let number = rest.split('-').next()?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let length = PREFIX.len() + pid.len() + 1 + number.len();
    (is_number(pid) && is_number(number)).then(|| &name[..length])
}

/// An ID that a new process has since got counts as alive: that leaves the
/// leftover for a later run, and never removes what is in use.
fn owner_is_dead(name: &str) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// Removes everything of a sandbox, whatever of it exists: processes first, since
/// they hold the rest.
fn remove(name: &str) -> Result<()> {
    let cgroup = cgroup::remove_tree(&cgroup::mount_point()?.join(name));
    let mut results = vec![cgroup];
    for netns in entries(Path::new(named::DIRECTORY)) {
        if sandbox_of(&netns) == Some(name) {
            results.push(named::remove(&netns));
        }
    }
    let directory = Path::new(RUN).join(name);
    results.push(bpffs::unmount_below(&directory).and_then(|()| remove_directory(&directory)));
    results.into_iter().collect()
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| directory.display().to_string())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_are_taken_for_sandboxes() {
        assert_eq!(sandbox_of("zt-t17-0"), Some("zt-t17-0"));
        assert_eq!(sandbox_of("zt-t17-0-client-2"), Some("zt-t17-0"));
        for other in [
            "zt-t17", "zt-tx-0", "zt-t17-", "zt-t17-x", "zt-t-1", "zt-x", "a",
        ] {
            assert_eq!(sandbox_of(other), None, "{other}");
        }
    }

    #[test]
    fn our_own_process_is_alive_and_process_0_is_not() {
        let own = format!("{PREFIX}{}-0", std::process::id());
        assert!(!owner_is_dead(&own));
        assert!(owner_is_dead("zt-t0-0"));
    }
}
