//! Who is quarantined: `quarantine.json` in the state directory, which
//! survives a reboot.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::file::{self, FileError};
use crate::model::{SpiffeError, SpiffeId};

/// Name of the file.
pub const FILE: &str = "quarantine.json";
/// Held while the file is replaced.
const LOCK: &str = "quarantine.lock";

/// Why the list cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {error}; correct it by hand: as long as it cannot be read nothing is lifted")]
    Malformed {
        path: PathBuf,
        error: serde_json::Error,
    },
    #[error(
        "{path}: {id:?} {error}; correct it by hand: as long as it cannot be read nothing is lifted"
    )]
    Identity {
        path: PathBuf,
        id: String,
        error: SpiffeError,
    },
    #[error("cannot write {path}: {error}; check the rights and the free space there")]
    Write { path: PathBuf, error: io::Error },
}

/// One quarantined identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub spiffe_id: SpiffeId,
    pub since: Timestamp,
    pub reason: Option<String>,
}

/// The list, and what was changed in it since it was read.
#[derive(Clone, Debug)]
pub struct Quarantine {
    directory: PathBuf,
    entries: Vec<Entry>,
    edits: Vec<Edit>,
}

#[derive(Clone, Debug)]
enum Edit {
    Add(Entry),
    Remove(SpiffeId),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    identities: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    spiffe_id: String,
    since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Quarantine {
    /// Reads the list; without a file it is empty.
    ///
    /// # Errors
    /// When there is a file and it cannot be understood.
    pub fn load(state_directory: &Path) -> Result<Self, QuarantineError> {
        Ok(Self {
            directory: state_directory.to_owned(),
            entries: read(&state_directory.join(FILE))?,
            edits: Vec::new(),
        })
    }

    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Quarantines; whether it was not before. The reason of one that is
    /// quarantined already is replaced if a new one is given.
    pub fn add(&mut self, id: SpiffeId, reason: Option<String>, now: Timestamp) -> bool {
        let entry = Entry {
            spiffe_id: id,
            since: now,
            reason,
        };
        let edit = Edit::Add(entry);
        let new = edit.apply(&mut self.entries);
        self.edits.push(edit);
        new
    }

    /// Lifts the quarantine; whether there was one.
    pub fn remove(&mut self, id: &SpiffeId) -> bool {
        let edit = Edit::Remove(id.clone());
        let found = edit.apply(&mut self.entries);
        self.edits.push(edit);
        found
    }

    /// Does to the file what was done to this list: what others changed there
    /// meanwhile stays.
    ///
    /// # Errors
    /// When it cannot be written; the old file is whole then.
    pub fn save(&mut self) -> Result<(), QuarantineError> {
        let path = self.directory.join(FILE);
        let failed = |error| QuarantineError::Write {
            path: path.clone(),
            error,
        };
        let _lock = lock(&self.directory).map_err(failed)?;
        let mut entries = read(&path)?;
        for edit in &self.edits {
            edit.apply(&mut entries);
        }
        write(&self.directory, &path, &entries).map_err(failed)?;
        self.entries = entries;
        self.edits.clear();
        Ok(())
    }
}

impl Edit {
    /// Whether it changed who is in the list.
    fn apply(&self, entries: &mut Vec<Entry>) -> bool {
        let before = entries.len();
        match self {
            Self::Remove(id) => entries.retain(|entry| entry.spiffe_id != *id),
            Self::Add(new) => match entries.iter_mut().find(|e| e.spiffe_id == new.spiffe_id) {
                Some(old) if new.reason.is_some() => old.reason.clone_from(&new.reason),
                Some(_) => {}
                None => entries.push(new.clone()),
            },
        }
        entries.len() != before
    }
}

fn read(path: &Path) -> Result<Vec<Entry>, QuarantineError> {
    let bytes = match file::read(path) {
        Err(FileError::Missing { .. }) => return Ok(Vec::new()),
        other => other?,
    };
    let document: Document =
        serde_json::from_slice(&bytes).map_err(|error| QuarantineError::Malformed {
            path: path.to_owned(),
            error,
        })?;
    let entry = |row: Row| match row.spiffe_id.parse() {
        Ok(spiffe_id) => Ok(Entry {
            spiffe_id,
            since: row.since,
            reason: row.reason,
        }),
        Err(error) => Err(QuarantineError::Identity {
            path: path.to_owned(),
            id: row.spiffe_id,
            error,
        }),
    };
    document.identities.into_iter().map(entry).collect()
}

fn lock(directory: &Path) -> io::Result<Flock<File>> {
    fs::create_dir_all(directory)?;
    let file = File::create(directory.join(LOCK))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

fn write(directory: &Path, path: &Path, entries: &[Entry]) -> io::Result<()> {
    let row = |entry: &Entry| Row {
        spiffe_id: entry.spiffe_id.to_string(),
        since: entry.since,
        reason: entry.reason.clone(),
    };
    let document = Document {
        identities: entries.iter().map(row).collect(),
    };
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer_pretty(&mut file, &document)?;
    file.write_all(b"\n")?;
    // It must be on disk before the old one is gone.
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/{name}").parse().unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = TempDir::new().unwrap();
        let state = directory.path().join("state");
        let mut list = Quarantine::load(&state).unwrap();
        assert!(list.add(id("a"), Some("stolen key".into()), now()));
        assert!(!list.add(id("a"), None, now()));
        assert!(list.add(id("b"), None, now()));
        assert!(list.remove(&id("b")));
        assert!(!list.remove(&id("b")));
        list.save().unwrap();
        let text = fs::read_to_string(state.join(FILE)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let row = serde_json::json!({
            "spiffe_id": "spiffe://td/a", "since": "2026-11-21T12:00:00Z", "reason": "stolen key"
        });
        assert_eq!(value, serde_json::json!({"identities": [row]}));
        assert_eq!(Quarantine::load(&state).unwrap().entries(), list.entries());
    }

    #[test]
    fn what_somebody_else_saved_meanwhile_stays() {
        let directory = TempDir::new().unwrap();
        let mut one = Quarantine::load(directory.path()).unwrap();
        let mut two = Quarantine::load(directory.path()).unwrap();
        one.add(id("a"), None, now());
        two.add(id("b"), None, now());
        one.save().unwrap();
        two.save().unwrap();
        assert_eq!(two.entries().len(), 2);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_list() {
        let directory = TempDir::new().unwrap();
        for damaged in [
            "",
            "{}",
            r#"{"identities":[{"spiffe_id":"x","since":"2026-11-21T12:00:00Z"}]}"#,
        ] {
            fs::write(directory.path().join(FILE), damaged).unwrap();
            assert!(Quarantine::load(directory.path()).is_err(), "{damaged}");
        }
    }
}
