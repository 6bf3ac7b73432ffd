//! A BPF file system of our own, to pin maps and links in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted BPF file system; unmounted when dropped, which drops every pin.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts one at a new directory.
    pub(crate) fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let none: Option<&str> = None;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), none)
            .with_context(|| format!("cannot mount a bpffs at {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is mounted, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

/// Unmounts every file system at or below a path, whoever mounted it there.
pub(crate) fn unmount_below(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    // The last one mounted lies on top.
    for place in places_below(&mounts, path).iter().rev() {
        unmount(place)?;
    }
    Ok(())
}

fn places_below(mountinfo: &str, path: &Path) -> Vec<PathBuf> {
    let places = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    places
        .map(PathBuf::from)
        .filter(|place| place.starts_with(path))
        .collect()
}

/// One that is not mounted (any more) is fine.
fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot unmount {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_path_are_those_of_whole_components() {
        let mounts = "1 0 0:1 / /run/a rw - tmpfs tmpfs rw\n\
            2 0 0:2 / /run/ab rw - tmpfs tmpfs rw\n\
            3 1 0:3 / /run/a/bpf rw - bpf bpf rw\n";
        let below = places_below(mounts, Path::new("/run/a"));
        assert_eq!(below, [Path::new("/run/a"), Path::new("/run/a/bpf")]);
    }
}
