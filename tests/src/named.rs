//! Named network namespaces as `ip netns` keeps them, made without it: a sandbox
//! has several, and in an emulated machine a program that starts takes longer than
//! all that it does.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Where they are: a file each, on which the namespace is mounted.
pub const DIRECTORY: &str = "/run/netns";

/// Makes one with its loopback up.
pub fn make(name: &str) -> Result<File> {
    let path = Path::new(DIRECTORY).join(name);
    share_directory().context(DIRECTORY)?;
    let make = || -> Result<File> {
        File::create_new(&path)?;
        unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
        bind(Path::new("/proc/thread-self/ns/net"), &path)?;
        raise_loopback().context("loopback")?;
        Ok(File::open(&path)?)
    };
    // A thread of its own: it does not come back from there.
    let made = thread::scope(|scope| scope.spawn(make).join());
    made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        .with_context(|| format!("cannot make the network namespace {}", path.display()))
}

/// Removes one; its veths go with it.
pub fn remove(name: &str) -> Result<()> {
    let path = Path::new(DIRECTORY).join(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // Whoever made it got no further than the file.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    fs::remove_file(&path).with_context(|| path.display().to_string())
}

/// What is unmounted here is so in every mount namespace that got a copy, or the
/// network namespace would live on there. Two who do this at a time would mount
/// it twice.
fn share_directory() -> Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let lock = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive);
    let _lock = lock.map_err(|(_, error)| error)?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, DIRECTORY, None::<&str>, flags, None::<&str>)
    };
    match share() {
        // No mount point yet.
        Err(Errno::EINVAL) => {
            bind(Path::new(DIRECTORY), Path::new(DIRECTORY))?;
            Ok(share()?)
        }
        result => Ok(result?),
    }
}

fn bind(what: &Path, place: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    Ok(mount(Some(what), place, None::<&str>, flags, None::<&str>)?)
}

/// Of the caller's namespace. netdevice(7).
fn raise_loopback() -> Result<()> {
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all zeros are a value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP)?;
    // SAFETY: the request is of the kind that this one reads, and a local.
    let result =
        unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}
