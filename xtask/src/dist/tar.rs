//! Archives that are the same whoever writes them and when: POSIX ustar with
//! root's files of 1970.

use anyhow::{Result, ensure};

const BLOCK: usize = 512;

const FILE: u8 = b'0';
const DIRECTORY: u8 = b'5';

/// A member's metadata, as they lie in its header: field, offset, width.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const OWNER: (usize, usize) = (108, 8);
const GROUP: (usize, usize) = (116, 8);
const SIZE: (usize, usize) = (124, 12);
const TIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
const MAGIC: usize = 257;

#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.header(&format!("{name}/"), 0o755, 0, DIRECTORY)
    }

    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.header(name, mode, content.len(), FILE)?;
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// With the two empty blocks that end it.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn header(&mut self, name: &str, mode: u32, size: usize, kind: u8) -> Result<()> {
        ensure!(name.len() < NAME.1, "{name:?} is too long for an archive");
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        for ((at, width), value) in [
            (MODE, u64::from(mode)),
            (OWNER, 0),
            (GROUP, 0),
            (SIZE, size as u64),
            (TIME, 0),
        ] {
            let digits = format!("{value:0width$o}\0", width = width - 1);
            ensure!(
                digits.len() == width,
                "{name:?} is too large for an archive"
            );
            header[at..at + width].copy_from_slice(digits.as_bytes());
        }
        header[KIND] = kind;
        header[MAGIC..MAGIC + 8].copy_from_slice(b"ustar\x0000");
        // The checksum is over itself as blanks.
        let (at, width) = CHECKSUM;
        header[at..at + width].fill(b' ');
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        header[at..at + width].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        Ok(())
    }

    fn pad(&mut self) {
        let whole = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(whole, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::manifests::tools::here::output;

    #[test]
    fn tar_reads_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(BLOCK + 7).collect();
        let mut archive = Archive::default();
        archive.directory("a").unwrap();
        archive.file("a/run", 0o755, &content).unwrap();
        archive.file("a/empty", 0o644, &[]).unwrap();
        archive.file("last", 0o600, b"x").unwrap();
        let path = directory.path().join("all.tar");
        fs::write(&path, archive.finish()).unwrap();
        let listed = output(Command::new("tar").args(["--utc", "-tvf"]).arg(&path));
        let rows: Vec<String> = listed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            rows,
            [
                "drwxr-xr-x 0/0 0 1970-01-01 00:00 a/",
                "-rwxr-xr-x 0/0 519 1970-01-01 00:00 a/run",
                "-rw-r--r-- 0/0 0 1970-01-01 00:00 a/empty",
                "-rw------- 0/0 1 1970-01-01 00:00 last",
            ]
        );
        let mut unpack = Command::new("tar");
        output(unpack.arg("-xf").arg(&path).current_dir(directory.path()));
        assert_eq!(fs::read(directory.path().join("a/run")).unwrap(), content);
    }

    #[test]
    fn a_name_that_does_not_fit_is_an_error() {
        assert!(
            Archive::default()
                .file(&"n".repeat(100), 0o644, &[])
                .is_err()
        );
    }
}
