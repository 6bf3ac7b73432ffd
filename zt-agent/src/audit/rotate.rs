//! The trail's files: `audit.jsonl`, and older ones as `.1`, `.2`, ….

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::AuditError;

/// Where the writer puts lines.
pub trait Store: Send {
    /// Bytes in the current file.
    fn len(&self) -> u64;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends all of `bytes`, or nothing.
    ///
    /// # Errors
    /// If they could not be written; then the file is as before.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Waits until everything appended is on the disk.
    ///
    /// # Errors
    /// If the disk says no.
    fn sync(&mut self) -> io::Result<()>;

    /// Starts a new, empty file.
    ///
    /// # Errors
    /// If it could not; it can be tried again.
    fn rotate(&mut self) -> io::Result<()>;
}

/// The trail's files on disk.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    keep: u32,
    appender: Appender<File>,
    /// Held for as long as this process may write. A file of its own, since
    /// the trail's is renamed.
    _lock: File,
}

impl Files {
    /// Opens or creates the current file for this process alone, and cuts off
    /// a last line that was not completely written.
    ///
    /// # Errors
    /// If another process has it, or the disk says no.
    pub fn open(path: &Path, keep: u32) -> Result<Self, AuditError> {
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(directory)
                .map_err(AuditError::io("create", directory))?;
        }
        let lock = lock(path)?;
        let file = open_current(path).map_err(AuditError::io("open", path))?;
        let len = cut_torn_line(&file).map_err(AuditError::io("repair", path))?;
        Ok(Self {
            path: path.to_owned(),
            keep,
            appender: Appender::new(file, len),
            _lock: lock,
        })
    }

    /// The last line of the trail, without its line end: of the current file
    /// or, if that is empty, of the one before.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn last_line(&self) -> io::Result<Option<Vec<u8>>> {
        if let Some(line) = last_line(&self.appender.file)? {
            return Ok(Some(line));
        }
        match File::open(numbered(&self.path, 1)) {
            Ok(file) => last_line(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Store for Files {
    fn len(&self) -> u64 {
        self.appender.len
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.appender.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.appender.file.sync_data()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.appender.file.sync_data()?;
        // Missing if an earlier attempt got this far and no farther.
        if self.path.exists() {
            make_room(&self.path, self.keep)?;
            if self.keep == 0 {
                fs::remove_file(&self.path)?;
            } else {
                fs::rename(&self.path, numbered(&self.path, 1))?;
            }
        }
        self.appender = Appender::new(open_current(&self.path)?, 0);
        sync_directory(&self.path)
    }
}

/// Frees the name `.1`: moves every file one up, as far as there is no gap,
/// and removes what is then beyond `keep`.
fn make_room(path: &Path, keep: u32) -> io::Result<()> {
    let free = (1..keep)
        .find(|number| !numbered(path, *number).exists())
        .unwrap_or(keep);
    for number in (1..free).rev() {
        fs::rename(numbered(path, number), numbered(path, number + 1))?;
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, AuditError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(AuditError::io("open", &name))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditError::Locked(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(AuditError::io("lock", &name)(error)),
    }
}

fn open_current(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Without it a crash can bring back the old names.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// `path.N`.
#[must_use]
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The files of a trail, oldest first.
///
/// # Errors
/// If the directory cannot be read, or there is no such trail.
pub fn all_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let name = path.file_name().unwrap_or_default();
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        numbers.extend(number_of(&entry?.file_name(), name));
    }
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let mut files: Vec<_> = numbers
        .into_iter()
        .map(|number| numbered(path, number))
        .collect();
    // Between two steps of a rotation there is no current file.
    if files.is_empty() || path.exists() {
        files.push(path.to_owned());
    }
    Ok(files)
}

fn number_of(found: &OsString, name: &std::ffi::OsStr) -> Option<u32> {
    let suffix = found.to_str()?.strip_prefix(name.to_str()?)?;
    let digits = suffix.strip_prefix('.')?;
    let number: u32 = digits.parse().ok()?;
    // "01" and "+1" are not ours.
    (number > 0 && number.to_string() == digits).then_some(number)
}

/// Cuts off what follows the last line end; returns the length.
fn cut_torn_line(file: &File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let end = end_of_last_line(file, len)?;
    if end < len {
        tracing::warn!(
            bytes = len - end,
            "the last line of the audit trail was not completely written; it was removed and is counted as lost"
        );
        file.set_len(end)?;
    }
    Ok(end)
}

/// The last line of a file whose end is a line end.
fn last_line(file: &File) -> io::Result<Option<Vec<u8>>> {
    let len = file.metadata()?.len();
    let end = end_of_last_line(file, len)?;
    if end == 0 {
        return Ok(None);
    }
    let start = end_of_last_line(file, end - 1)?;
    let mut line = Vec::new();
    let mut reader = file;
    reader.seek(SeekFrom::Start(start))?;
    reader.take(end - 1 - start).read_to_end(&mut line)?;
    Ok(Some(line))
}

/// One past the last line end before `end`; 0 if there is none.
fn end_of_last_line(mut file: &File, mut end: u64) -> io::Result<u64> {
    const BLOCK: u64 = 4096;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.clear();
        file.seek(SeekFrom::Start(start))?;
        file.take(end - start).read_to_end(&mut block)?;
        let offsets = (start + 1..).zip(&block);
        if let Some((after, _)) = offsets.filter(|(_, byte)| **byte == b'\n').last() {
            return Ok(after);
        }
        end = start;
    }
    Ok(0)
}

/// Something that can be cut to a length.
trait Truncate {
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

impl Truncate for File {
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }
}

/// Appends all or nothing.
#[derive(Debug)]
struct Appender<F> {
    file: F,
    /// Up to here lines are whole.
    len: u64,
    /// A write failed part way and could not be taken back yet.
    torn: bool,
}

impl<F> Appender<F> {
    const fn new(file: F, len: u64) -> Self {
        Self {
            file,
            len,
            torn: false,
        }
    }
}

impl<F: Write + Truncate> Appender<F> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.mend()?;
        if let Err(error) = self.file.write_all(bytes) {
            self.torn = true;
            // If this fails too it is tried again before the next write.
            let _ = self.mend();
            return Err(error);
        }
        self.len += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.len)?;
            self.torn = false;
        }
        Ok(())
    }
}
