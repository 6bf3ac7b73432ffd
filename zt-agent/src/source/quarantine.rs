//! Who is cut off: `quarantine.json` in the state directory. It is the truth;
//! the kernel's trust map follows it, also after a reboot.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    atomic,
    file::{self, FileError},
};
use crate::model::SpiffeId;

/// One identity that is cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub spiffe_id: SpiffeIdText,
    /// RFC 3339.
    pub since: String,
    #[serde(default)]
    pub reason: String,
}

/// A SPIFFE ID that was checked when it was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeIdText(pub SpiffeId);

impl TryFrom<String> for SpiffeIdText {
    type Error = crate::model::SpiffeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl From<SpiffeIdText> for String {
    fn from(id: SpiffeIdText) -> Self {
        id.0.as_str().to_owned()
    }
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    pub identities: Vec<Entry>,
}

/// Why the file is not used; who is quarantined stays so.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {error}; repair it: nobody is released meanwhile")]
    Content {
        path: PathBuf,
        error: serde_json::Error,
    },
}

/// Where it lies.
#[must_use]
pub fn path(state_directory: &Path) -> PathBuf {
    state_directory.join("quarantine.json")
}

/// A copy of what was read last, for a start at which the file is damaged.
#[must_use]
pub fn last_read(state_directory: &Path) -> PathBuf {
    state_directory.join("quarantine.last.json")
}

impl Quarantine {
    /// Reads the file; a missing one is empty.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read(path: &Path) -> Result<Self, QuarantineError> {
        let bytes = match file::read(path) {
            Err(FileError::Missing { .. }) => return Ok(Self::default()),
            other => other?,
        };
        serde_json::from_slice(&bytes).map_err(|error| QuarantineError::Content {
            path: path.into(),
            error,
        })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// When it cannot be written; the old one is untouched then.
    pub fn write(&self, path: &Path) -> Result<(), QuarantineError> {
        let mut bytes =
            serde_json::to_vec_pretty(self).map_err(|error| QuarantineError::Content {
                path: path.into(),
                error,
            })?;
        bytes.push(b'\n');
        Ok(atomic::write(path, &bytes)?)
    }

    /// Whether `id` is cut off.
    #[must_use]
    pub fn contains(&self, id: &SpiffeId) -> bool {
        self.identities.iter().any(|e| e.spiffe_id.0 == *id)
    }

    /// Cuts `id` off from `since` (RFC 3339) on. `false`: it was already, and
    /// nothing changed.
    pub fn add(&mut self, id: SpiffeId, since: String, reason: String) -> bool {
        if self.contains(&id) {
            return false;
        }
        self.identities.push(Entry {
            spiffe_id: SpiffeIdText(id),
            since,
            reason,
        });
        true
    }

    /// Releases `id`. `false`: it was not there.
    pub fn remove(&mut self, id: &SpiffeId) -> bool {
        let before = self.identities.len();
        self.identities.retain(|entry| entry.spiffe_id.0 != *id);
        self.identities.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/{name}").parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path());
        assert_eq!(Quarantine::read(&path).unwrap(), Quarantine::default());
        let mut quarantine = Quarantine::default();
        let since = "2026-11-21T12:00:00Z".to_owned();
        assert!(quarantine.add(id("a"), since.clone(), "stolen key".into()));
        assert!(!quarantine.add(id("a"), since, String::new()));
        quarantine.write(&path).unwrap();
        let mut read = Quarantine::read(&path).unwrap();
        assert_eq!(read, quarantine);
        assert!(read.contains(&id("a")) && !read.contains(&id("b")));
        assert!(!read.remove(&id("b")));
        assert!(read.remove(&id("a")));
        assert!(read.identities.is_empty());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_list() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path());
        for text in ["", "{}", r#"{"identities":[{"spiffe_id":"x","since":""}]}"#] {
            std::fs::write(&path, text).unwrap();
            let error = Quarantine::read(&path).unwrap_err();
            assert!(
                matches!(error, QuarantineError::Content { .. }),
                "{text}: {error}"
            );
        }
    }
}
