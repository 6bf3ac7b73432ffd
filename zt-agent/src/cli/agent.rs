//! Whether an agent runs, and what it says of itself.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::stat::{major, minor};
use serde_json::Value;

/// Locked by a running agent.
pub const LOCK: &str = "agent.lock";
/// Its admin socket.
pub const SOCKET: &str = "agent.sock";

/// How long to wait for the agent's answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Process id of the agent that holds the lock in `directory`.
///
/// It is looked up, not tried: to take the lock, if only for a moment, could
/// keep an agent from starting.
///
/// # Errors
/// When the kernel's list of locks cannot be read.
pub fn holder(directory: &Path) -> anyhow::Result<Option<u32>> {
    let Ok(metadata) = fs::metadata(directory.join(LOCK)) else {
        return Ok(None);
    };
    let locks = fs::read_to_string("/proc/locks").context("cannot read /proc/locks")?;
    let device = (major(metadata.dev()), minor(metadata.dev()));
    Ok(find(&locks, device, metadata.ino()))
}

/// The holder of an flock(2) lock in the text of `/proc/locks`:
/// `1: FLOCK  ADVISORY  WRITE 1234 00:1a:5678 0 EOF`.
fn find(locks: &str, device: (u64, u64), inode: u64) -> Option<u32> {
    let wanted = format!("{:02x}:{:02x}:{inode}", device.0, device.1);
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, file, ..] if file == wanted => pid.parse().ok(),
            _ => None,
        }
    })
}

/// Asks the agent for its status.
///
/// # Errors
/// When there is no answer, or none that can be understood.
pub fn status(directory: &Path) -> anyhow::Result<Value> {
    let path = directory.join(SOCKET);
    let mut stream =
        UnixStream::connect(&path).with_context(|| format!("cannot reach {}", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"{\"status\":{}}\n")?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("the agent does not answer")?;
    let mut answer: Value =
        serde_json::from_str(&line).context("the agent's answer cannot be understood")?;
    match answer.get_mut("ok") {
        Some(status) => Ok(status.take()),
        None => anyhow::bail!("the agent answers: {}", line.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_its_inode() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 11 00:1a:5678 0 EOF
2: FLOCK  ADVISORY  WRITE 12 00:1a:567 0 EOF
3: FLOCK  ADVISORY  WRITE 1234 00:1a:5678 0 EOF
";
        assert_eq!(find(locks, (0, 0x1a), 5678), Some(1234));
        assert_eq!(find(locks, (0, 0x1b), 5678), None);
    }

    #[test]
    fn a_held_lock_names_this_process() {
        let directory = tempfile::TempDir::new().unwrap();
        assert_eq!(holder(directory.path()).unwrap(), None);
        let file = fs::File::create(directory.path().join(LOCK)).unwrap();
        assert_eq!(holder(directory.path()).unwrap(), None);
        let _lock =
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        assert_eq!(holder(directory.path()).unwrap(), Some(std::process::id()));
    }
}
