//! Reading a file that a person wrote.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Largest file that is read, in bytes.
pub const LIMIT: u64 = 4 << 20;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: there is no such file or directory; create it or correct the path in the configuration", path.display())]
    Missing { path: PathBuf },
    #[error("{}: cannot be read: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: is no regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{}: is larger than {} MiB; split it", path.display(), LIMIT >> 20)]
    TooLarge { path: PathBuf },
}

impl FileError {
    /// An I/O error at a path.
    pub fn at(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Io { path, error },
        }
    }
}

/// The bytes of a regular file.
///
/// # Errors
/// When it is missing, unreadable, no regular file, or above [`LIMIT`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let error = |error| FileError::at(path, error);
    // Opening a pipe must not wait for its other end.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(error)?;
    if !file.metadata().map_err(error)?.is_file() {
        return Err(FileError::NotAFile { path: path.into() });
    }
    let mut bytes = Vec::new();
    // The size is not asked first: the file may grow while it is read.
    file.take(LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= LIMIT) {
        return Ok(bytes);
    }
    Err(FileError::TooLarge { path: path.into() })
}
