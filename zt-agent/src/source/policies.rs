//! Policy files and directories, read as one transaction.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::file::{self, FileError};
use crate::{
    document::{SourceFile, policy, text::printable},
    model::{Policy, Problem},
};

/// All policies of a set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    pub policies: Vec<Policy>,
    /// The files that they came from, in the order in which they were read.
    pub sources: Vec<SourceFile>,
}

/// Why a set of policy files is not taken; what was in force stays.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The files were read and say something wrong.
    #[error("{}", summary(problems))]
    Problems {
        problems: Vec<Problem>,
        sources: Vec<SourceFile>,
    },
}

/// Problems that a log line tells; [`LoadError::Problems`] has them all.
const SUMMARY: usize = 20;

fn summary(problems: &[Problem]) -> String {
    let mut lines: Vec<String> = (problems.iter().take(SUMMARY))
        .map(ToString::to_string)
        .collect();
    if let Some(more @ 1..) = problems.len().checked_sub(SUMMARY) {
        lines.push(format!("… and {more} more; see `zt-agent policy check`"));
    }
    lines.join("\n")
}

/// Reads files as they are given, and the `*.yaml` and `*.yml` of directories
/// in the order of their names, without their subdirectories.
///
/// # Errors
/// When anything cannot be read or is wrong: nothing is taken then.
pub fn load(paths: &[PathBuf]) -> Result<PolicySet, LoadError> {
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    for path in files(paths)? {
        let name = printable(&path.display().to_string());
        match SourceFile::from_bytes(name, file::read(&path)?) {
            Ok(source) => sources.push(source),
            Err(problem) => problems.push(*problem),
        }
    }
    match policy::parse(&sources) {
        Ok(policies) if problems.is_empty() => Ok(PolicySet { policies, sources }),
        result => {
            problems.extend(result.err().unwrap_or_default());
            Err(LoadError::Problems { problems, sources })
        }
    }
}

/// Every file once, also if it is given by name and by its directory.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, LoadError> {
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths {
        let kind = fs::metadata(path).map_err(|error| FileError::at(path, error))?;
        let found = if kind.is_dir() {
            entries(path)?
        } else {
            vec![path.clone()]
        };
        files.extend(found);
    }
    let mut seen = BTreeSet::new();
    files.retain(|file| seen.insert(fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
    Ok(files)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let error = |error| FileError::at(directory, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if is_policy_name(&path) {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Hidden names are left out: editors' files, and the `..data` directories by
/// which a mounted ConfigMap changes all at once.
pub(super) fn is_policy_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let hidden = name.as_encoded_bytes().starts_with(b".");
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml"))
}

#[cfg(test)]
#[path = "policies_tests.rs"]
mod tests;
