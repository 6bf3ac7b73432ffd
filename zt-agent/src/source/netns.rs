//! Cookies of network namespaces: how the kernel programs tell one from
//! another.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::document::identities::NamespaceRef;

/// Where `ip netns` keeps its namespaces.
const NAMED: &str = "/run/netns";

/// The file that stands for a namespace.
#[must_use]
pub fn path(namespace: &NamespaceRef) -> PathBuf {
    match namespace {
        NamespaceRef::Name(name) => Path::new(NAMED).join(&**name),
        NamespaceRef::Path(path) => path.clone(),
    }
}

/// The cookies of several namespaces, in their order.
#[must_use]
pub fn cookies(paths: &[PathBuf]) -> Vec<io::Result<u64>> {
    if paths.is_empty() {
        return Vec::new();
    }
    // A thread of its own: the namespace it enters ends with it.
    thread::scope(|scope| {
        let entered = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || paths.iter().map(|path| cookie(path)).collect());
        let result = entered.map(|thread| thread.join());
        match result {
            Ok(Ok(cookies)) => cookies,
            _ => paths
                .iter()
                .map(|_| Err(io::Error::other("no thread to look at it")))
                .collect(),
        }
    })
}

/// Enters the namespace; call it on a thread that ends soon.
fn cookie(path: &Path) -> io::Result<u64> {
    // Opening a pipe must not wait for its other end.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_below_run_netns() {
        let name = NamespaceRef::Name("a".into());
        assert_eq!(path(&name), Path::new("/run/netns/a"));
    }

    #[test]
    fn a_missing_namespace_is_an_error_of_its_own() {
        let own = PathBuf::from("/proc/self/ns/net");
        let found = cookies(&[own.clone(), "/nowhere".into(), own]);
        assert_eq!(
            found[1].as_ref().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        // Without privileges nobody can enter any.
        if let (Ok(first), Ok(last)) = (&found[0], &found[2]) {
            assert_eq!(first, last);
            assert_ne!(*first, 0);
        }
    }
}
