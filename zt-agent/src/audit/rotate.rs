//! The trail's files: `audit.jsonl`, and older ones as `.1`, `.2`, ….

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
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
        let directory = directory_of(path);
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory)
            .map_err(AuditError::io("create", directory))?;
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
        self.appender.file.sync_data()?;
        if self.is_in_place()? {
            return Ok(());
        }
        let file = open_current(&self.path)?;
        let len = cut_torn_line(&file)?;
        self.appender = Appender::new(file, len);
        Err(io::Error::other(
            "somebody moved or removed the file; the trail goes on in a new one",
        ))
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

impl Files {
    /// Whether the name still leads to the file that is written.
    fn is_in_place(&self) -> io::Result<bool> {
        let ours = self.appender.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Frees the name `.1`: moves every file one up, as far as there is no gap,
/// and removes what is then beyond `keep`.
fn make_room(path: &Path, keep: u32) -> io::Result<()> {
    for number in numbers(path)? {
        if number > keep {
            fs::remove_file(numbered(path, number))?;
        }
    }
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
    File::open(directory_of(path))?.sync_all()
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
    let mut files: Vec<_> = numbers(path)?
        .into_iter()
        .map(|number| numbered(path, number))
        .collect();
    // Between two steps of a rotation there is no current file.
    if files.is_empty() || path.exists() {
        files.push(path.to_owned());
    }
    Ok(files)
}

/// The numbers of the older files, highest first.
fn numbers(path: &Path) -> io::Result<Vec<u32>> {
    let name = path.file_name().unwrap_or_default();
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory_of(path))? {
        numbers.extend(number_of(&entry?.file_name(), name));
    }
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    Ok(numbers)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        names.sort();
        names
    }

    fn files(keep: u32) -> (tempfile::TempDir, PathBuf, Files) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit").join("a.jsonl");
        let files = Files::open(&path, keep).unwrap();
        (directory, path, files)
    }

    #[test]
    fn only_the_owner_may_read_the_trail() {
        let (_directory, path, _files) = files(1);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()) & 0o027, 0);
    }

    #[test]
    fn rotation_keeps_so_many_older_files() {
        let (_directory, path, mut files) = files(2);
        for text in ["one\n", "two\n", "three\n", "four\n"] {
            files.append(text.as_bytes()).unwrap();
            files.rotate().unwrap();
        }
        let names = names(path.parent().unwrap());
        assert_eq!(names, ["a.jsonl", "a.jsonl.1", "a.jsonl.2"]);
        assert_eq!(fs::read_to_string(numbered(&path, 1)).unwrap(), "four\n");
        assert_eq!(fs::read_to_string(numbered(&path, 2)).unwrap(), "three\n");
        assert_eq!(files.last_line().unwrap().as_deref(), Some(&b"four"[..]));
    }

    #[test]
    fn a_rotation_that_was_interrupted_is_finished() {
        let (_directory, path, mut files) = files(3);
        files.append(b"one\n").unwrap();
        fs::rename(&path, numbered(&path, 1)).unwrap();
        files.rotate().unwrap();
        assert_eq!(names(path.parent().unwrap()), ["a.jsonl", "a.jsonl.1"]);
        fs::rename(numbered(&path, 1), numbered(&path, 2)).unwrap();
        files.append(b"two\n").unwrap();
        files.rotate().unwrap();
        assert_eq!(fs::read_to_string(numbered(&path, 1)).unwrap(), "two\n");
        assert_eq!(fs::read_to_string(numbered(&path, 2)).unwrap(), "one\n");
    }

    #[test]
    fn keeping_fewer_than_before_removes_the_oldest() {
        let (_directory, path, mut files) = files(5);
        for _ in 0..5 {
            files.append(b"line\n").unwrap();
            files.rotate().unwrap();
        }
        files.keep = 2;
        files.append(b"line\n").unwrap();
        files.rotate().unwrap();
        let names = names(path.parent().unwrap());
        assert_eq!(names, ["a.jsonl", "a.jsonl.1", "a.jsonl.2"]);
    }

    #[test]
    fn a_file_that_was_taken_away_is_told_and_begun_again() {
        let (_directory, path, mut files) = files(1);
        files.append(b"one\n").unwrap();
        files.sync().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(files.sync().unwrap_err().to_string().contains("removed"));
        files.append(b"two\n").unwrap();
        files.sync().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn keeping_no_older_file_is_possible() {
        let (_directory, path, mut files) = files(0);
        files.append(b"one\n").unwrap();
        files.rotate().unwrap();
        assert_eq!(names(path.parent().unwrap()), ["a.jsonl"]);
        assert!(files.is_empty());
    }

    #[test]
    fn files_are_listed_oldest_first_by_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        for suffix in ["", ".2", ".10", ".1", ".01", ".1x", ".lock", ".0"] {
            fs::write(directory.path().join(format!("a.jsonl{suffix}")), "").unwrap();
        }
        let found = all_files(&path).unwrap();
        let wanted = [
            numbered(&path, 10),
            numbered(&path, 2),
            numbered(&path, 1),
            path,
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn two_writers_cannot_have_one_trail() {
        let (_directory, path, files) = files(1);
        let error = Files::open(&path, 1).unwrap_err();
        assert!(matches!(error, AuditError::Locked(_)), "{error}");
        drop(files);
        assert!(Files::open(&path, 1).is_ok());
    }

    #[test]
    fn a_torn_last_line_is_cut_off() {
        let (_directory, path, files) = files(1);
        drop(files);
        for (text, whole, last) in [
            ("one\ntwo\nthr".to_owned(), 8, Some("two")),
            ("thr".to_owned(), 0, None),
            ("one\n".to_owned(), 4, Some("one")),
            (format!("{}\ntorn", "x".repeat(9000)), 9001, Some("")),
        ] {
            fs::write(&path, &text).unwrap();
            let files = Files::open(&path, 1).unwrap();
            assert_eq!(files.len(), whole);
            assert_eq!(fs::metadata(&path).unwrap().len(), whole);
            let found = files.last_line().unwrap();
            match last {
                Some("") => assert_eq!(found.unwrap().len(), 9000),
                _ => assert_eq!(found.as_deref(), last.map(str::as_bytes)),
            }
        }
    }

    /// A disk with room for so many bytes.
    struct Disk {
        contents: Vec<u8>,
        room: usize,
        cuttable: bool,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room - self.contents.len());
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.contents.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Truncate for Disk {
        fn set_len(&mut self, len: u64) -> io::Result<()> {
            if !self.cuttable {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            self.contents.truncate(usize::try_from(len).unwrap());
            Ok(())
        }
    }

    #[test]
    fn half_a_line_is_taken_back_before_the_next() {
        for cuttable in [true, false] {
            let disk = Disk {
                contents: Vec::new(),
                room: 6,
                cuttable,
            };
            let mut appender = Appender::new(disk, 0);
            appender.append(b"one\n").unwrap();
            let error = appender.append(b"three\n").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert!(cuttable || appender.append(b"x\n").is_err());
            appender.file.cuttable = true;
            appender.file.room = 100;
            appender.append(b"four\n").unwrap();
            assert_eq!(appender.file.contents, b"one\nfour\n");
            assert_eq!(appender.len, 9);
        }
    }

    #[test]
    fn a_full_device_is_an_error() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = Appender::new(full, 0).append(b"one\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
