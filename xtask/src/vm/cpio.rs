//! Writes the archive that a kernel unpacks as its first file system: cpio in the
//! "newc" format of the kernel's Documentation/driver-api/early-userspace.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Ends the archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written. Paths have no leading slash.
pub struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// A directory; those above it must be there already.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// A file that may be executed.
    pub fn file(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | 0o755, contents)
    }

    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, target.as_bytes())
    }

    /// Without this the archive has no end.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let length = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let name_length = u32::try_from(path.len() + 1).map_err(io::Error::other)?;
        // Inode, mode, owner, group, links, time, length, four device numbers,
        // length of the name, checksum.
        let numbers = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            length,
            0,
            0,
            0,
            0,
            name_length,
            0,
        ];
        let mut header = "070701".to_owned();
        for number in numbers {
            header += &format!("{number:08X}");
        }
        header += path;
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(contents)
    }

    /// Everything begins at a multiple of four bytes.
    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.write_all(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_of_newc() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("a").unwrap();
        archive.file("a/bc", b"hello").unwrap();
        archive.link("d", "a/bc").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let entries: Vec<&str> = text.split("070701").collect();
        assert_eq!(entries.len(), 5);
        // Field 2 is the mode, 7 the length of the contents, 12 that of the name.
        let field = |entry: &str, number: usize| entry[(number - 1) * 8..number * 8].to_owned();
        assert_eq!(field(entries[1], 2), "000041ED");
        assert_eq!(field(entries[2], 2), "000081ED");
        assert_eq!(field(entries[2], 7), "00000005");
        assert_eq!(field(entries[2], 12), "00000005");
        assert_eq!(field(entries[3], 2), "0000A1FF");
        assert_eq!(&entries[2][104..], "a/bc\0\0hello\0\0\0");
        assert!(entries[4].contains(TRAILER));
    }
}
