//! Sockets of the node's own network namespace that are older than our
//! programs: whose they are is written into their storage, as the program at
//! socket(2) would have done. Otherwise nothing shows in which namespace they
//! were made, and a static pod that listened before the agent came would count
//! as unenrolled.
//!
//! The kernel takes a socket's descriptor for the key of its storage, so each is
//! borrowed from its process for a moment: pidfd_getfd(2).

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use zt_common::flow::{Owner, Socket};

use super::{
    KernelError,
    cgroup::{self, Root},
    netns,
    pins::Pins,
    sys,
    view::cgroup_paths,
};

/// Says whose the sockets are of processes below the root that are in the
/// caller's network namespace.
///
/// What comes or goes meanwhile is left alone: our programs are attached, and
/// see it themselves.
///
/// # Errors
/// When the storage is not pinned, or the caller's namespace cannot be told.
pub fn adopt(root: &Root, pins: &Pins) -> Result<Adopted, KernelError> {
    let storage = sys::get_pinned(&pins.map("zt_socket_v1"))
        .map_err(KernelError::call("get", "zt_socket_v1"))?;
    let cookie = netns::own_cookie().map_err(KernelError::io("the network namespace"))?;
    let own = namespace("self").map_err(KernelError::io("/proc/self/ns/net"))?;
    let mut cgroups = cgroup_paths(&root.path);
    cgroups.insert(root.id, root.path.clone());
    let mut adopted = Adopted::default();
    for (leaf, path) in &cgroups {
        let owner = owner(*leaf, path, &root.path, cookie);
        let value = Socket {
            owner,
            ..Socket::default()
        };
        let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        let here = |pid: &&str| namespace(pid).is_ok_and(|theirs| theirs == own);
        for process in processes.lines().filter(here) {
            each_socket(process, |socket| {
                let socket = match socket {
                    Ok(socket) => socket,
                    Err(error) => return adopted.refused(error),
                };
                let is_ours = netns::cookie(socket.as_fd()).is_ok_and(|made_in| made_in == cookie);
                // Those that are no IP sockets are never asked for.
                let put = || put(storage.as_fd(), &socket, &value).unwrap_or(false);
                adopted.sockets += usize::from(is_ours && put());
            });
        }
    }
    Ok(adopted)
}

/// Writes whose a socket is, unless that is known. A packet that came by before
/// this has left all but the namespace, and knows better than we do who made the
/// socket: we only see who has it now. `true`: it was not known.
fn put(storage: BorrowedFd<'_>, socket: &OwnedFd, value: &Socket) -> io::Result<bool> {
    let key = socket.as_raw_fd();
    if sys::map_insert(storage, &key, value)? {
        return Ok(true);
    }
    let found: Option<Socket> = sys::map_lookup(storage, &key)?;
    let Some(half) = found.filter(|found| found.owner.netns == 0) else {
        return Ok(false);
    };
    let whole = Socket {
        owner: whole(half.owner, value.owner),
        ..Socket::default()
    };
    sys::map_update(storage, &key, &whole)?;
    Ok(true)
}

/// What a program has left, and what it cannot know. Who has no cgroup is not known
/// at all: the kernel gives a program a storage of zeros, to fill in.
fn whole(half: Owner, ours: Owner) -> Owner {
    if half.leaf == 0 {
        return ours;
    }
    Owner {
        netns: ours.netns,
        ..half
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Adopted {
    /// How many our programs did not know.
    pub sockets: usize,
    /// Processes and sockets that could not be looked at, and why the last.
    pub refused: Option<(usize, io::Error)>,
}

impl Adopted {
    fn refused(&mut self, error: io::Error) {
        // It has ended, or closed it.
        if matches!(
            error.raw_os_error(),
            Some(libc::ESRCH | libc::EBADF | libc::ENOENT)
        ) {
            return;
        }
        let before = self.refused.take().map_or(0, |(count, _)| count);
        self.refused = Some((before + 1, error));
    }
}

/// As the program at socket(2) has it.
fn owner(leaf: u64, path: &Path, root: &Path, netns: u64) -> Owner {
    let mut owner = Owner {
        leaf,
        netns,
        ..Owner::default()
    };
    let below = path.strip_prefix(root).unwrap_or(Path::new(""));
    let mut at = root.to_owned();
    for (place, component) in (owner.below_root.iter_mut()).zip(below.components()) {
        at.push(component);
        *place = cgroup::id(&at).unwrap_or_default();
    }
    owner
}

fn namespace(pid: &str) -> io::Result<(u64, u64)> {
    fs::metadata(format!("/proc/{pid}/ns/net")).map(|found| (found.dev(), found.ino()))
}

/// Shows copies of the sockets that a process has open, one at a time: it may have
/// more than this process may. Or shows why one is not there to be shown.
fn each_socket(pid: &str, mut show: impl FnMut(io::Result<OwnedFd>)) {
    let open = || {
        let process = open_process(pid.parse().map_err(io::Error::other)?)?;
        Ok((process, fs::read_dir(format!("/proc/{pid}/fd"))?))
    };
    let (process, entries) = match open() {
        Ok(open) => open,
        Err(error) => return show(Err(error)),
    };
    let is_socket = |path: &PathBuf| {
        let target = fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().starts_with("socket:")
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_socket)
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .for_each(|fd| show(borrow(&process, fd)));
}

fn open_process(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn borrow(process: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let raw = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_sockets_of_a_process_are_borrowed_and_nothing_else() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (mut seen, mut same) = (0, false);
        each_socket(&std::process::id().to_string(), |socket| {
            // Other tests close theirs meanwhile.
            let Ok(socket) = socket else { return };
            let copy = TcpListener::from(socket);
            same |= copy.local_addr().is_ok_and(|found| found == address);
            seen += 1;
        });
        assert!(same && seen > 0);
        for nobody in ["self", "0"] {
            each_socket(nobody, |socket| assert!(socket.is_err()));
        }
    }

    #[test]
    fn what_has_ended_was_not_refused() {
        let mut adopted = Adopted::default();
        adopted.refused(io::Error::from_raw_os_error(libc::ESRCH));
        assert!(adopted.refused.is_none());
        for _ in 0..2 {
            adopted.refused(io::Error::from_raw_os_error(libc::EPERM));
        }
        assert_eq!(adopted.refused.unwrap().0, 2);
    }

    #[test]
    fn what_a_program_has_begun_to_write_is_written_as_a_whole() {
        let ours = Owner {
            leaf: 7,
            netns: 9,
            below_root: [3, 7, 0, 0],
        };
        assert_eq!(whole(Owner::default(), ours), ours);
        let half = Owner {
            leaf: 5,
            netns: 0,
            below_root: [5, 0, 0, 0],
        };
        assert_eq!(whole(half, ours), Owner { netns: 9, ..half });
    }

    #[test]
    fn an_owner_is_known_by_the_cgroups_above_it() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("a/b/c/d/e");
        fs::create_dir_all(&deep).unwrap();
        let id = |below: &str| cgroup::id(&top.path().join(below)).unwrap();
        let found = owner(7, &deep, top.path(), 9);
        let above = ["a", "a/b", "a/b/c", "a/b/c/d"].map(id);
        assert_eq!((found.leaf, found.netns, found.below_root), (7, 9, above));
        let found = owner(7, &top.path().join("a"), top.path(), 9);
        assert_eq!(found.below_root, [id("a"), 0, 0, 0]);
        assert_eq!(owner(7, top.path(), top.path(), 9).below_root, [0; 4]);
    }
}
