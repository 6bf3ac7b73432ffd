//! Where maps and links are pinned: `<directory>/maps/NAME`,
//! `<directory>/links/NAME`. That layout is an interface (bpftool, the README).

use std::{
    ffi::CString,
    fs::{self, File},
    os::{fd::AsFd as _, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{KernelError, sys};

/// The magic number of a bpf file system (`BPF_FS_MAGIC`, `linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join("maps").join(name)
    }

    #[must_use]
    pub fn link(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(name)
    }

    /// Makes the directories; mounts a bpf file system at `/sys/fs/bpf` if
    /// they would lie there and it is missing, as bpftool does.
    ///
    /// # Errors
    /// [`KernelError::NotBpffs`] with the command to run.
    pub fn prepare(&self) -> Result<(), KernelError> {
        let standard = Path::new("/sys/fs/bpf");
        if self.directory.starts_with(standard) && !is_bpffs(standard)? {
            mount_bpffs(standard)?;
        }
        for path in [self.directory.join("maps"), self.directory.join("links")] {
            fs::create_dir_all(&path).map_err(KernelError::io(&path))?;
        }
        if is_bpffs(&self.directory)? {
            Ok(())
        } else {
            let _ = self.remove();
            Err(KernelError::NotBpffs(self.directory.clone()))
        }
    }

    /// Makes sure that nobody else writes to the maps that are pinned here.
    ///
    /// # Errors
    /// When somebody does.
    pub fn lock(&self) -> Result<Flock<File>, KernelError> {
        let directory = File::open(&self.directory).map_err(KernelError::io(&self.directory))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => KernelError::InUse(self.directory.clone()),
            errno => KernelError::io(&self.directory)(errno.into()),
        })
    }

    /// Whether anything of ours is pinned.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.map("zt_control_v1").exists()
    }

    /// Removes every pin: links first, so that enforcement ends before what it
    /// needs is gone.
    ///
    /// # Errors
    /// The first file that cannot be removed.
    pub fn remove(&self) -> Result<usize, KernelError> {
        let mut removed = 0;
        for kind in ["links", "maps"] {
            let path = self.directory.join(kind);
            let Ok(entries) = fs::read_dir(&path) else {
                continue;
            };
            for entry in entries.flatten() {
                let file = entry.path();
                if kind == "links" {
                    detach(&file);
                }
                fs::remove_file(&file).map_err(KernelError::io(&file))?;
                removed += 1;
            }
            fs::remove_dir(&path).map_err(KernelError::io(&path))?;
        }
        if self.directory.exists() {
            // Not ours to insist: the directory may be a mount point.
            let _ = fs::remove_dir(&self.directory);
        }
        Ok(removed)
    }
}

/// What cannot be detached ends with its last reference.
fn detach(link: &Path) {
    if let Ok(link) = sys::get_pinned(link)
        && let Err(error) = sys::link_detach(link.as_fd())
    {
        tracing::debug!(%error, "a link is not detached at once");
    }
}

fn is_bpffs(path: &Path) -> Result<bool, KernelError> {
    let stat = nix::sys::statfs::statfs(path).map_err(|errno| KernelError::Io {
        path: path.into(),
        source: errno.into(),
    })?;
    let magic = u64::try_from(stat.filesystem_type().0).unwrap_or_default();
    Ok(magic & 0xffff_ffff == BPF_FS_MAGIC)
}

fn mount_bpffs(path: &Path) -> Result<(), KernelError> {
    let target = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| KernelError::NotBpffs(path.into()))?;
    nix::mount::mount(
        Some("bpf"),
        target.as_c_str(),
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|_| KernelError::NotBpffs(path.into()))
}
