//! What a machine needs to enforce from its boot on, where the agent itself is
//! a pod that comes later: the binary, the configuration, and a unit that runs
//! `zt-agent boot restore` before the kubelet starts.
//!
//! | file, below the machine's root | what |
//! |---|---|
//! | [`DIRECTORY`]`/zt-agent` | a copy of this binary |
//! | [`DIRECTORY`]`/config.yaml` | a copy of the configuration |
//! | `/etc/systemd/system/zt-agent-boot.service` | the unit |
//! | `/etc/systemd/system/multi-user.target.wants/…` | a link to it: it is enabled |

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use crate::source::{atomic, file::FileError};

/// Where binary and configuration are, for the unit.
pub const DIRECTORY: &str = "/var/lib/zt-agent/boot";
const UNIT: &str = "etc/systemd/system/zt-agent-boot.service";
const WANTED: &str = "etc/systemd/system/multi-user.target.wants/zt-agent-boot.service";
const TEXT: &str = include_str!("boot/zt-agent-boot.service");

/// A machine's root directory, perhaps mounted somewhere.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Puts everything there; what is there already is replaced. The unit runs
    /// at the next boot.
    ///
    /// # Errors
    /// When a file cannot be read or written. What is there before the unit does
    /// nothing without it.
    pub fn install(&self, binary: &Path, config: &Path) -> Result<(), FileError> {
        let read = |path: &Path| fs::read(path).map_err(|error| FileError::at(path, error));
        let (binary, config) = (read(binary)?, read(config)?);
        let directory = self.root.join(&DIRECTORY[1..]);
        make(&directory)?;
        write(&directory.join("zt-agent"), &binary, 0o755)?;
        write(&directory.join("config.yaml"), &config, 0o600)?;
        write(&self.root.join(UNIT), TEXT.as_bytes(), 0o644)?;
        let wanted = self.root.join(WANTED);
        make(wanted.parent().unwrap_or(&self.root))?;
        let link = symlink("../zt-agent-boot.service", &wanted);
        match link {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(FileError::at(&wanted, error))
            }
            _ => atomic::sync_directory(wanted.parent().unwrap_or(&self.root))
                .map_err(|error| FileError::at(&wanted, error)),
        }
    }

    /// Whether the next boot enforces.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.root.join(WANTED).is_symlink()
    }

    /// Takes everything away again, the link first. What is enforced stays so
    /// until the next boot.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self) -> Result<(), FileError> {
        let files = [WANTED, UNIT].map(|name| self.root.join(name));
        let directory = self.root.join(&DIRECTORY[1..]);
        let files =
            (files.into_iter()).chain(["zt-agent", "config.yaml"].map(|name| directory.join(name)));
        for path in files {
            gone(fs::remove_file(&path)).map_err(|error| FileError::at(&path, error))?;
        }
        gone(fs::remove_dir(&directory)).map_err(|error| FileError::at(&directory, error))
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn make(directory: &Path) -> Result<(), FileError> {
    fs::create_dir_all(directory).map_err(|error| FileError::at(directory, error))
}

/// What is there already as it should be is left: the agent's pod does this whenever it
/// starts, and to write and sync it all each time would hold it up.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    if is_there(path, bytes, mode) {
        return Ok(());
    }
    let permissions = fs::Permissions::from_mode(mode);
    atomic::replace(path, Some(permissions), bytes).map_err(|error| FileError::at(path, error))
}

/// A file of its own, with these bytes and permissions, and nobody else's.
fn is_there(path: &Path, bytes: &[u8], mode: u32) -> bool {
    let is_so = |about: &fs::Metadata| {
        about.is_file()
            && about.mode() & 0o7777 == mode
            && about.uid() == nix::unistd::geteuid().as_raw()
            && about.len() == bytes.len() as u64
    };
    fs::symlink_metadata(path).is_ok_and(|about| is_so(&about))
        && fs::read(path).is_ok_and(|found| found == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_below(directory: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                found.extend(all_below(&path));
            } else {
                found.push(path);
            }
        }
        found
    }

    #[test]
    fn what_is_installed_is_where_the_unit_looks_and_goes_again() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("host");
        fs::create_dir_all(root.join("etc/systemd/system")).unwrap();
        let (binary, config) = (top.path().join("b"), top.path().join("c"));
        let machine = Machine::at(&root);
        for text in ["old", "new"] {
            fs::write(&binary, text).unwrap();
            fs::write(&config, "mode: enforce\n").unwrap();
            machine.install(&binary, &config).unwrap();
        }
        // What is right is left, and what somebody altered is not.
        let installed = root.join(&DIRECTORY[1..]).join("zt-agent");
        let number = || fs::metadata(&installed).unwrap().ino();
        let before = number();
        machine.install(&binary, &config).unwrap();
        assert_eq!(number(), before);
        fs::set_permissions(&installed, fs::Permissions::from_mode(0o777)).unwrap();
        machine.install(&binary, &config).unwrap();
        assert_ne!(number(), before);
        let run = TEXT
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        let words: Vec<&str> = run.unwrap().split(' ').collect();
        assert_eq!(words[1..4], ["boot", "restore", "--config"]);
        let installed = root.join(&words[0][1..]);
        assert_eq!(fs::read_to_string(&installed).unwrap(), "new");
        assert_eq!(fs::metadata(&installed).unwrap().mode() & 0o777, 0o755);
        let config = root.join(&words[4][1..]);
        assert_eq!(fs::metadata(&config).unwrap().mode() & 0o777, 0o600);
        // Through the link.
        assert_eq!(fs::read_to_string(root.join(WANTED)).unwrap(), TEXT);
        assert_eq!(all_below(&root).len(), 4);
        assert!(machine.is_enabled());
        machine.remove().unwrap();
        machine.remove().unwrap();
        assert!(!machine.is_enabled());
        assert_eq!(all_below(&root), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_cannot_be_read_or_written_is_named() {
        let top = tempfile::tempdir().unwrap();
        let config = top.path().join("config.yaml");
        let install = || Machine::at(top.path()).install(&config, &config);
        let error = install().unwrap_err().to_string();
        assert!(error.contains("config.yaml"), "{error}");
        fs::write(&config, "").unwrap();
        // No systemd is here.
        let error = install().unwrap_err().to_string();
        assert!(error.contains("zt-agent-boot.service"), "{error}");
        assert!(!top.path().join(WANTED).exists());
    }
}
