//! Control groups of our own, in the unified hierarchy.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::patience;

/// How long killed processes may take to leave their cgroup.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the unified hierarchy is mounted: on hybrid hosts not `/sys/fs/cgroup`.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    find_mount(&mounts).context("no cgroup2 file system is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let path = place.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| PathBuf::from(path))
    })
}

/// A cgroup that this run made. Dropping it removes nothing: the sandbox does.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup at the top of the hierarchy.
    pub(crate) fn at_top(name: &str) -> Result<Self> {
        Self::make(mount_point()?.join(name))
    }

    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Makes a cgroup below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name))
    }

    /// Its directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's cgroup ID: the directory's inode number.
    pub fn id(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.path);
        Ok(metadata
            .with_context(|| self.path.display().to_string())?
            .ino())
    }

    /// Moves a process here. Sockets that it has already stay where they were made.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.procs(), pid.to_string())
            .with_context(|| format!("cannot move {pid} to {}", self.path.display()))
    }

    /// The file that names the member processes and takes new ones.
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Kills every process here and below, and removes the directories.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.path)
    }
}

/// Kills what runs in a cgroup, and removes it with everything below.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let deadline = Instant::now() + patience::scaled(PATIENCE);
    loop {
        match kill_members(path).and_then(|()| remove_directories(path)) {
            Ok(()) => return Ok(()),
            // Somebody else swept it at the same time.
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                bail!("cannot remove {}: {error}", path.display())
            }
            Err(_) => sleep(Duration::from_millis(5)),
        }
    }
}

/// ENODEV is what the files of a cgroup answer that is being removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// `cgroup.kill` (Linux 5.14) reaches processes that are just forking; the loop
/// over process IDs, for older kernels, needs the caller's repetition for that.
fn kill_members(path: &Path) -> io::Result<()> {
    let kill_file = path.join("cgroup.kill");
    if kill_file.exists() {
        return fs::write(kill_file, "1");
    }
    for directory in children(path)? {
        kill_members(&directory)?;
    }
    for line in fs::read_to_string(path.join("cgroup.procs"))?.lines() {
        let Ok(pid) = line.parse() else { continue };
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn remove_directories(path: &Path) -> io::Result<()> {
    for directory in children(path)? {
        remove_directories(&directory)?;
    }
    fs::remove_dir(path)
}

fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        }
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_on_hybrid_and_pure_hosts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            38 31 0:35 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = find_mount(hybrid).unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified"));
        let pure = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_mount(pure).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(find_mount("31 23 0:28 / /tmp rw - tmpfs tmpfs rw\n"), None);
    }
}
