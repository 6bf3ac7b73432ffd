//! Network namespaces: their files, and a look inside.

use std::{
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::{document::identities::NamespaceRef, kernel::netns::own_cookie};

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

/// Opens the file of a namespace.
///
/// # Errors
/// When it cannot be opened. Whether it is a network namespace shows when it
/// is entered.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening a pipe must not wait for its other end.
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// The cookies of several namespaces, in their order.
#[must_use]
pub fn cookies(paths: &[PathBuf]) -> Vec<io::Result<u64>> {
    let files = paths.iter().map(|path| open(path)).collect::<Vec<_>>();
    let cookies = inside(&files, own_cookie);
    cookies.into_iter().map(Result::flatten).collect()
}

/// The cookie of one that somebody else has opened.
///
/// # Errors
/// When it is no network namespace, or cannot be entered.
pub fn cookie_of(file: File) -> io::Result<u64> {
    let mut cookies = inside(&[Ok(file)], own_cookie);
    let missing = || io::Error::other("nothing was looked into");
    cookies.pop().ok_or_else(missing)?.flatten()
}

/// Looks into several namespaces, one after the other: what `look` finds in
/// each, in their order, or why it cannot be entered.
pub fn inside<T: Send>(
    namespaces: &[io::Result<File>],
    look: impl Fn() -> T + Sync,
) -> Vec<io::Result<T>> {
    if namespaces.is_empty() {
        return Vec::new();
    }
    let visit = |namespace: &io::Result<File>| {
        let file = namespace.as_ref().map_err(copy)?;
        setns(file, CloneFlags::CLONE_NEWNET)?;
        Ok(look())
    };
    // A thread of its own: the namespace it enters ends with it.
    thread::scope(|scope| {
        let entered = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || namespaces.iter().map(visit).collect());
        let result = entered.map(|thread| thread.join());
        match result {
            Ok(Ok(found)) => found,
            _ => namespaces
                .iter()
                .map(|_| Err(io::Error::other("no thread to look at it")))
                .collect(),
        }
    })
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(
        || io::Error::new(error.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
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
