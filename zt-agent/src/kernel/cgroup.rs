//! The cgroup v2 tree: where it is mounted, ids and depths, the managed root.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use zt_common::MAX_DEPTH;

use super::KernelError;

/// Where cgroup v2 is mounted: not always at `/sys/fs/cgroup` (hybrid hosts).
///
/// # Errors
/// [`KernelError::NoCgroup2`] if it is mounted nowhere.
pub fn mount() -> Result<PathBuf, KernelError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(KernelError::io(path))?;
    find_mount(&text).ok_or(KernelError::NoCgroup2)
}

/// The mount point of the first cgroup2 file system in a mountinfo.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mount_point = before.split(' ').nth(4)?;
        after
            .starts_with("cgroup2 ")
            .then(|| PathBuf::from(mount_point))
    })
}

/// Kernel id of a cgroup: the inode number of its directory.
///
/// # Errors
/// If the directory cannot be read.
pub fn id(path: &Path) -> Result<u64, KernelError> {
    Ok(fs::metadata(path).map_err(KernelError::io(path))?.ino())
}

/// The managed root: everything below it is governed.
#[derive(Debug)]
pub struct Root {
    /// Where cgroup v2 is mounted.
    pub mount: PathBuf,
    pub path: PathBuf,
    pub id: u64,
    /// Depth below the root of the cgroup tree.
    pub level: u32,
    pub directory: File,
}

impl Root {
    /// Opens the managed root and makes it if it is missing. `path` is
    /// absolute or relative to the mount.
    ///
    /// # Errors
    /// When it is the root cgroup and `allow_root` is not set, is not in a
    /// cgroup v2 tree, or cannot be made.
    pub fn open(path: &Path, allow_root: bool) -> Result<Self, KernelError> {
        let mount = mount()?;
        let path = mount.join(path);
        if !path.exists() {
            fs::create_dir_all(&path).map_err(KernelError::io(&path))?;
        }
        let path = path.canonicalize().map_err(KernelError::io(&path))?;
        let below = path
            .strip_prefix(&mount)
            .map_err(|_| KernelError::Outside {
                path: path.clone(),
                root: mount.clone(),
            })?;
        let level = below.components().count();
        if level == 0 && !allow_root {
            return Err(KernelError::RootCgroup(path));
        }
        Ok(Self {
            id: id(&path)?,
            level: u32::try_from(level).unwrap_or(u32::MAX),
            directory: File::open(&path).map_err(KernelError::io(&path))?,
            mount,
            path,
        })
    }

    /// Checks that `path` can be enrolled, and gives its id.
    ///
    /// # Errors
    /// When it is not below the root, or too deep.
    pub fn enrollable(&self, path: &Path) -> Result<u64, KernelError> {
        let (path, id) = found(path).map_err(KernelError::io(path))?;
        let depth = path
            .strip_prefix(&self.path)
            .map(|below| below.components().count())
            .unwrap_or(0);
        if depth == 0 {
            return Err(KernelError::Outside {
                path,
                root: self.path.clone(),
            });
        }
        if depth > MAX_DEPTH {
            return Err(KernelError::TooDeep {
                path,
                root: self.path.clone(),
                depth,
                max: MAX_DEPTH,
            });
        }
        Ok(id)
    }
}

/// Where a path leads, without links on the way, and the id of the same directory.
fn found(path: &Path) -> io::Result<(PathBuf, u64)> {
    let directory = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    let own = format!("/proc/self/fd/{}", directory.as_raw_fd());
    Ok((fs::read_link(own)?, directory.metadata()?.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_a_hybrid_host() {
        let mountinfo = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
";
        assert_eq!(find_mount(mountinfo), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_mount("1 2 0:3 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
