//! Policy files and directories, read as one transaction.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::{
    document::{SourceFile, policy},
    model::{Policy, Problem},
};

/// Largest policy file, in bytes.
pub const FILE_LIMIT: u64 = 4 << 20;

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
    #[error("{}: there is no such file or directory; check `policies` in the configuration, or ZT_POLICY_PATH", path.display())]
    Missing { path: PathBuf },
    #[error("{}: cannot be read: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: is neither a regular file nor a directory", path.display())]
    NotAFile { path: PathBuf },
    #[error("{}: is larger than {} MiB; split it", path.display(), FILE_LIMIT >> 20)]
    TooLarge { path: PathBuf },
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
        let name = path.display().to_string();
        match SourceFile::from_bytes(name, read(&path)?) {
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
        let kind = fs::metadata(path).map_err(|error| io_error(path, error))?;
        let found = if kind.is_dir() {
            entries(path)?
        } else {
            vec![path.clone()]
        };
        files.extend(found);
    }
    let mut seen = std::collections::BTreeSet::new();
    files.retain(|file| seen.insert(fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
    Ok(files)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let error = |error| io_error(directory, error);
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
fn is_policy_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let hidden = name.as_encoded_bytes().starts_with(b".");
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml"))
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let error = |error| io_error(path, error);
    // Opening a pipe must not wait for its other end.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(error)?;
    if !file.metadata().map_err(error)?.is_file() {
        return Err(LoadError::NotAFile { path: path.into() });
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= FILE_LIMIT) {
        return Ok(bytes);
    }
    Err(LoadError::TooLarge { path: path.into() })
}

fn io_error(path: &Path, error: io::Error) -> LoadError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => LoadError::Missing { path },
        _ => LoadError::Io { path, error },
    }
}

#[cfg(test)]
#[path = "policies_tests.rs"]
mod tests;
