//! One agent per runtime directory.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

/// Held as long as the agent runs; the kernel releases it however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Why an agent cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("already running, pid {pid} (it holds {path}); stop that one first")]
    Running { pid: String, path: PathBuf },
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

impl Lock {
    /// Takes `agent.lock` in the runtime directory, which is made if missing.
    ///
    /// # Errors
    /// When another agent has it.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join("agent.lock");
        let failed = |error| LockError::Io {
            path: path.clone(),
            error,
        };
        make_private(directory).map_err(failed)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(running(path)),
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        lock.set_len(0).map_err(failed)?;
        writeln!(&mut *lock, "{}", std::process::id()).map_err(failed)?;
        Ok(Self(lock))
    }
}

fn running(path: PathBuf) -> LockError {
    let pid = fs::read_to_string(&path).unwrap_or_default();
    LockError::Running {
        pid: pid.trim().to_owned(),
        path,
    }
}

/// Makes a directory that only root looks into.
///
/// # Errors
/// When it cannot be made, or is there and others may write to it: they could
/// put files and links of theirs where we read and write.
pub fn make_private(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let found = fs::metadata(directory)?;
    if found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "others may write to {0}; make it root's alone: chown root {0} && chmod 700 {0}",
            directory.display()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_second_agent_is_told_who_runs() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lock::take(directory.path()).unwrap();
        let error = Lock::take(directory.path()).unwrap_err().to_string();
        let pid = std::process::id().to_string();
        assert!(error.contains("already running") && error.contains(&pid));
        drop(first);
        Lock::take(directory.path()).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(directory.path(), mode(0o770)).unwrap();
        let error = Lock::take(directory.path()).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
        fs::set_permissions(directory.path(), mode(0o755)).unwrap();
        Lock::take(directory.path()).unwrap();
    }
}
