//! All the files of a virtual machine: the suite, the tools that it calls with
//! their libraries, and the kernel's modules.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use zt_tests::guest::{self, Plan};

use super::cpio::Archive;
use super::kernels::Kernel;
use super::suite::{Executable, Suite};
use crate::setup;

/// What the suite and the agent call. `modprobe` is called by the kernel.
const TOOLS: [&str; 16] = [
    "bpftool", "bridge", "cat", "dd", "env", "false", "ip", "kill", "ls", "modprobe", "nft", "sh",
    "sleep", "sysctl", "tc", "true",
];

/// Directories that Debian merged: what is in them lies below `/usr`.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// What a first process needs to find, or to mount over.
const DIRECTORIES: [&str; 11] = [
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "suite",
    "suite/deps",
    "sys",
    "tmp",
    "usr",
    "var",
];

/// The program that becomes the first process.
pub const FIRST: &str = "zt-guest";

/// Writes the archive. Without tests it is one that only boots.
pub fn write(path: &Path, kernel: &Kernel, suite: &Suite, plan: &Plan) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut tree = Tree::new(BufWriter::new(file))?;
    tree.copy(&suite.program(FIRST)?.path, Path::new("/init"))?;
    for program in &suite.programs {
        let beside = Path::new(guest::BINARIES).parent();
        tree.executable(program, beside.context("the suite has a directory")?)?;
    }
    for test in &suite.tests {
        tree.executable(test, Path::new(guest::BINARIES))?;
    }
    tree.file(Path::new(guest::PLAN), &serde_json::to_vec(plan)?)?;
    for tool in TOOLS {
        // One that is missing here is missed by the test that calls it.
        if let Ok(tool) = setup::program(tool) {
            tree.tool(&tool)?;
        }
    }
    tree.modules(kernel, |_| true)?;
    tree.finish()
}

/// An archive that makes the directories above a file by itself.
pub struct Tree<W> {
    archive: Archive<W>,
    there: BTreeSet<PathBuf>,
}

impl<W: Write> Tree<W> {
    pub fn new(out: W) -> Result<Self> {
        let mut tree = Self {
            archive: Archive::new(out),
            there: BTreeSet::from([PathBuf::new()]),
        };
        for directory in DIRECTORIES {
            tree.directory(Path::new(directory))?;
        }
        for name in MERGED {
            tree.directory(&Path::new("usr").join(name))?;
            tree.archive.link(name, &format!("usr/{name}"))?;
        }
        tree.file(Path::new("/etc/passwd"), b"root:x:0:0:root:/root:/bin/sh\n")?;
        tree.file(Path::new("/etc/group"), b"root:x:0:\n")?;
        Ok(tree)
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        if !self.there.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        Ok(self.archive.directory(text(path)?)?)
    }

    /// Only the first of a name is kept.
    pub fn file(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        let path = merged(path);
        self.directory(path.parent().context("a file has a place")?)?;
        if self.there.insert(path.clone()) {
            self.archive.file(text(&path)?, contents)?;
        }
        Ok(())
    }

    pub fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let contents = fs::read(from).with_context(|| from.display().to_string())?;
        self.file(to, &contents)
    }

    fn executable(&mut self, executable: &Executable, directory: &Path) -> Result<()> {
        self.copy(&executable.path, &directory.join(&executable.name))
    }

    /// A program of this system at its place, with its libraries at theirs.
    pub fn tool(&mut self, program: &Path) -> Result<()> {
        self.copy(program, program)?;
        let output = Command::new("ldd").arg(program).output().context("ldd")?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            self.copy(&library, &library)?;
        }
        Ok(())
    }

    /// Those of a kernel's modules and their indexes whose file names are wanted.
    pub fn modules(&mut self, kernel: &Kernel, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let modules = kernel.root.join("lib/modules");
        self.directory_of(&modules, &kernel.root, &wanted)
    }

    fn directory_of(
        &mut self,
        directory: &Path,
        root: &Path,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            if path.is_dir() {
                self.directory_of(&path, root, wanted)?;
            } else if wanted(&entry.file_name().to_string_lossy()) {
                self.copy(&path, path.strip_prefix(root)?)?;
            }
        }
        Ok(())
    }

    /// Without this the archive has no end.
    pub fn finish(self) -> Result<()> {
        self.archive.finish()?;
        Ok(())
    }
}

/// Where a file of this system is in the archive.
fn merged(path: &Path) -> PathBuf {
    let path = path.strip_prefix("/").unwrap_or(path);
    if MERGED.iter().any(|name| path.starts_with(name)) {
        Path::new("usr").join(path)
    } else {
        path.to_owned()
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The paths in ldd's answer; none for a program without libraries.
fn libraries(answer: &str) -> Vec<PathBuf> {
    let words = answer.lines().flat_map(str::split_whitespace);
    let paths = words.filter(|word| word.starts_with('/') && !word.ends_with(':'));
    paths.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let answer = "\tlinux-vdso.so.1 (0x00007ffe)\n\
            \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f0)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f1)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libmnl.so.0",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries(answer), expected.map(PathBuf::from));
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn everything_lies_below_usr() {
        assert_eq!(
            merged(Path::new("/lib64/ld.so")),
            Path::new("usr/lib64/ld.so")
        );
        assert_eq!(merged(Path::new("/usr/bin/x")), Path::new("usr/bin/x"));
        assert_eq!(merged(Path::new("/library/x")), Path::new("library/x"));
    }
}
