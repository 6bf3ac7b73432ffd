//! What verifiers said of the programs, kept until somebody accepts it.
//!
//! A kernel says it only where it runs, which takes minutes; the programs that it
//! said it of are known by their hash.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::table::Table;
use crate::workspace;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Verified {
    /// Of the object.
    hash: String,
    /// Instructions by program, by kernel.
    kernels: BTreeMap<String, Vec<(String, u32)>>,
}

/// Keeps what kernels said of this object.
pub fn keep(elf: &[u8], kernels: BTreeMap<String, Vec<(String, u32)>>) -> Result<()> {
    keep_in(&path(), elf, kernels)
}

/// What they said of this object.
pub fn add_to(table: &mut Table, elf: &[u8]) -> Result<()> {
    for (series, programs) in kept_in(&path(), elf)?.kernels {
        table.add_verified(&series, &programs);
    }
    Ok(())
}

/// Such as `6.1` of `6.1.0-33-cloud-amd64`.
pub fn series(release: &str) -> String {
    let numbers: Vec<&str> = release.split(['.', '-']).take(2).collect();
    numbers.join(".")
}

fn path() -> PathBuf {
    workspace::root().join("target/verified.json")
}

fn keep_in(path: &Path, elf: &[u8], kernels: BTreeMap<String, Vec<(String, u32)>>) -> Result<()> {
    let mut verified = kept_in(path, elf)?;
    verified.kernels.extend(kernels);
    let text = serde_json::to_string(&verified)?;
    fs::write(path, text).with_context(|| path.display().to_string())
}

fn kept_in(path: &Path, elf: &[u8]) -> Result<Verified> {
    let hash = hash(elf);
    let nothing = Verified {
        hash: hash.clone(),
        ..Verified::default()
    };
    if !path.exists() {
        return Ok(nothing);
    }
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    // By another version of this task it says nothing.
    let verified: Verified = serde_json::from_slice(&text).unwrap_or_default();
    Ok(if verified.hash == hash {
        verified
    } else {
        nothing
    })
}

fn hash(elf: &[u8]) -> String {
    let digest = Sha256::digest(elf);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_of_other_programs_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verified.json");
        let one = |series: &str, count| {
            let programs = vec![("zt_egress".to_owned(), count)];
            BTreeMap::from([(series.to_owned(), programs)])
        };
        keep_in(&path, b"object", one("6.1", 5)).unwrap();
        keep_in(&path, b"object", one("6.12", 6)).unwrap();
        keep_in(&path, b"object", one("6.12", 7)).unwrap();
        let mut both = one("6.1", 5);
        both.extend(one("6.12", 7));
        assert_eq!(kept_in(&path, b"object").unwrap().kernels, both);
        assert!(kept_in(&path, b"other").unwrap().kernels.is_empty());
        keep_in(&path, b"other", one("6.1", 8)).unwrap();
        assert_eq!(kept_in(&path, b"other").unwrap().kernels, one("6.1", 8));
    }

    #[test]
    fn a_series_is_the_first_two_numbers() {
        assert_eq!(series("6.1.0-33-cloud-amd64"), "6.1");
        assert_eq!(series("6.12-rc1"), "6.12");
    }
}
