//! Replacing a file: a reader sees the old one or the new one, also after a
//! crash.

use std::{
    fs::{File, Permissions},
    io,
    io::Write as _,
    path::Path,
};

use super::file::FileError;

/// Writes `bytes` beside `path`, syncs them and renames them over it. Only
/// the owner may read the file.
///
/// # Errors
/// When the directory cannot be written; the old file is untouched then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace(path, None, bytes).map_err(|error| FileError::at(path, error))
}

/// The same of all that can be read from `content`, with permissions of one's own.
/// What is beside `path` meanwhile has no extension.
///
/// # Errors
/// Likewise, and when `content` cannot be read.
pub fn replace(
    path: &Path,
    permissions: Option<Permissions>,
    mut content: impl io::Read,
) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(directory)?;
    io::copy(&mut content, &mut file)?;
    file.flush()?;
    if let Some(permissions) = permissions {
        file.as_file().set_permissions(permissions)?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_directory(directory)
}

/// Makes renames in a directory survive a power cut.
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        write(&path, b"a longer first version").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
