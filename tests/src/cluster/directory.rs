//! Where a cluster keeps its data, removed with it.
//!
//! It is named after the process, so that what a killed run left is found and
//! removed by the next one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

const PREFIX: &str = "zt-cluster-";

/// Makes an empty directory that only we can read, and sweeps up after others.
pub fn make() -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;

    static NEXT: AtomicU32 = AtomicU32::new(0);
    let place = env::temp_dir();
    sweep(&place);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
    let mut builder = fs::DirBuilder::new();
    builder
        .mode(0o700)
        .create(&path)
        .with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Removes it; nothing is left to do where it is gone already.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("{} is not gone: {error}", path.display());
    }
}

fn sweep(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_left_over) {
            remove(&entry.path());
        }
    }
}

/// A process ID that was given again counts as alive: that leaves the directory
/// for a later run, and never removes what is in use.
fn is_left_over(name: &str) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next());
    let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_dead_processes_are_left_over() {
        assert!(is_left_over("zt-cluster-0-0"));
        assert!(!is_left_over("zt-cluster-1-0"));
        for other in ["zt-cluster-", "zt-cluster-x-0", "zt-0-0", "tmp"] {
            assert!(!is_left_over(other), "{other}");
        }
    }
}
