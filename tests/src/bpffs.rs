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

/// Unmounts a file system; one that is not mounted is fine.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot unmount {}", path.display())),
    }
}
