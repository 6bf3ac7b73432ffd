//! Where maps and links are pinned: `<directory>/maps/NAME`,
//! `<directory>/links/NAME`. That layout is an interface (bpftool, the README).
//!
//! The agent holds the directory open. A file system that is unmounted under it
//! then lives on until it ends, with every pin, and when there is one at its
//! place again the pins are made there anew ([`Pins::follow`]).

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::{ffi::OsStrExt, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{KernelError, sys};

/// The magic number of a bpf file system (`BPF_FS_MAGIC`, `linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Where every system mounts one.
const STANDARD: &str = "/sys/fs/bpf";

/// The pin directory.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
    held: Option<Arc<Held>>,
}

/// The directory, open and locked.
#[derive(Debug)]
struct Held {
    directory: File,
    lock: Mutex<Flock<File>>,
}

impl Held {
    /// A path that leads there wherever it is mounted, or if it no longer is.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.directory.as_raw_fd()).into()
    }
}

impl Pins {
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            held: None,
        }
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.base().join("maps").join(name)
    }

    #[must_use]
    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// The directory of the links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.base().join("links")
    }

    fn base(&self) -> PathBuf {
        let held = self.held.as_ref();
        held.map_or_else(|| self.directory.clone(), |held| held.path())
    }

    /// Holds the directory from now on, which must be there, and makes sure
    /// that nobody else writes to the maps that are pinned in it.
    ///
    /// # Errors
    /// When somebody does.
    pub fn hold(self) -> Result<Self, KernelError> {
        let lock = Mutex::new(self.lock()?);
        let directory = self.open()?;
        Ok(Self {
            held: Some(Arc::new(Held { directory, lock })),
            ..self
        })
    }

    fn open(&self) -> Result<File, KernelError> {
        File::open(&self.directory).map_err(KernelError::io(&self.directory))
    }

    /// Looks whether what is held is still at its place. If a bpf file system
    /// was mounted there since, everything is pinned in it, and held there.
    /// Gives whether that was so.
    ///
    /// # Errors
    /// [`KernelError::Unmounted`] while there is none: what is pinned ends with
    /// this process.
    pub fn follow(&self) -> Result<bool, KernelError> {
        let Some(held) = &self.held else {
            return Ok(false);
        };
        if self.is_in_place(held)? {
            return Ok(false);
        }
        let place = Self::new(&self.directory);
        if !place.can_be_made() {
            return Err(KernelError::Unmounted(self.directory.clone()));
        }
        place.prepare()?;
        let place = place.hold()?;
        self.copy_to(&place)?;
        let Some(new) = place.held.and_then(Arc::into_inner) else {
            return Ok(false);
        };
        let (from, to) = (new.directory.as_raw_fd(), held.directory.as_raw_fd());
        // SAFETY: both descriptors are open and ours; the one that is replaced
        // stays a descriptor of a directory, which is all that is known of it.
        let result = unsafe { libc::dup3(from, to, libc::O_CLOEXEC) };
        Errno::result(result).map_err(|errno| KernelError::io(&self.directory)(errno.into()))?;
        let lock = new.lock.into_inner();
        *held.lock.lock().unwrap_or_else(PoisonError::into_inner) =
            lock.unwrap_or_else(PoisonError::into_inner);
        Ok(true)
    }

    fn is_in_place(&self, held: &Held) -> Result<bool, KernelError> {
        let own = held.directory.metadata();
        let own = own.map_err(KernelError::io(&self.directory))?;
        let there = fs::metadata(&self.directory);
        Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())))
    }

    /// Whether its place is on a bpf file system, or on one that we mount.
    fn can_be_made(&self) -> bool {
        let mut above = self.directory.ancestors();
        let nearest = above.find(|path| path.exists());
        self.directory.starts_with(STANDARD)
            || nearest.is_some_and(|path| is_bpffs(path).unwrap_or(false))
    }

    /// Pins everything that is pinned here there, too.
    fn copy_to(&self, place: &Self) -> Result<(), KernelError> {
        for kind in ["maps", "links"] {
            let from = self.base().join(kind);
            let entries = match fs::read_dir(&from) {
                // Removed with everything in it: whoever holds the objects
                // pins them again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(KernelError::io(&from))?,
            };
            for entry in entries {
                let name = entry.map_err(KernelError::io(&from))?.file_name();
                let to = place.base().join(kind).join(&name);
                let what = name.to_string_lossy();
                let object = sys::get_pinned(&from.join(&name))
                    .map_err(KernelError::call("get", what.clone()))?;
                if to.exists() {
                    // Of somebody before us; what we hold is what is in force.
                    fs::remove_file(&to).map_err(KernelError::io(&to))?;
                }
                sys::pin(object.as_fd(), &to).map_err(KernelError::call("pin", what))?;
            }
        }
        Ok(())
    }

    /// Makes the directories; mounts a bpf file system at `/sys/fs/bpf` if
    /// they would lie there and it is missing, as bpftool does.
    ///
    /// # Errors
    /// [`KernelError::NotBpffs`] with the command to run.
    pub fn prepare(&self) -> Result<(), KernelError> {
        let standard = Path::new(STANDARD);
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
