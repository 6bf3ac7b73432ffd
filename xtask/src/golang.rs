//! Programs for the tests that are built from Go modules, once, and kept outside
//! the clone.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::step::Steps;
use crate::vm::machine;
use crate::{setup, workspace};

/// What is built, and from what.
pub struct Program<'a> {
    /// Also the name of the file.
    pub name: &'a str,
    /// With its version and how long it takes, for people.
    pub title: String,
    /// Where its go.mod lies, below the root of the clone.
    pub sources: &'a str,
    /// The files there that it is built from.
    pub files: &'a [&'a str],
    /// The package to build, seen from there.
    pub package: &'a str,
    pub linker_flags: String,
}

impl Program<'_> {
    /// Builds it if it is missing. Nothing where there is no Go: the step says so,
    /// and so does every test that needs it. In CI that is an error.
    pub fn setup(&self, steps: &Steps) -> Result<Option<PathBuf>> {
        let sources = workspace::root().join(self.sources);
        let fingerprint = fingerprint(&sources, self.files)?;
        let directory = setup::cache_directory()?.join(self.name).join(fingerprint);
        let binary = directory.join(self.name);
        if binary.is_file() {
            return Ok(Some(binary));
        }
        let Some(go) = go() else {
            return self.without_go(steps);
        };
        self.build(steps, &go, &sources, &binary)?;
        Ok(Some(binary))
    }

    fn without_go(&self, steps: &Steps) -> Result<Option<PathBuf>> {
        const WHY: &str = "there is no Go toolchain (https://go.dev/dl, 1.25 or later)";
        let name = self.name;
        if zt_tests::cluster::is_ci() {
            bail!("{name} is needed in CI, and cannot be built: {WHY}");
        }
        steps.note(&format!(
            "skipped: build {name} for the tests; {WHY}. Tests that need it are skipped"
        ));
        Ok(None)
    }

    /// Half a binary is never taken for a whole one: it gets its name at the end.
    fn build(&self, steps: &Steps, go: &Path, sources: &Path, binary: &Path) -> Result<()> {
        let directory = binary.parent().context("the binary has a directory")?;
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let work = directory.join(format!("building-{}", std::process::id()));
        let mut command = Command::new(go);
        command
            .current_dir(sources)
            .args(["build", "-v", "-mod=readonly", "-trimpath"])
            // The linker strips it; without, it is built in five sixths of the time.
            .args(["-gcflags=all=-dwarf=false", "-ldflags"])
            .arg(&self.linker_flags)
            .arg("-o")
            .arg(&work)
            .arg(self.package)
            .env("CGO_ENABLED", "0")
            .env_remove("GOFLAGS");
        // It may be in the background of what fails.
        // SAFETY: the closure runs between fork and exec; it makes one system call
        // and does not allocate.
        unsafe { command.pre_exec(machine::end_with_us) };
        let built = steps.run(&self.title, &mut command);
        let named = built.and_then(|_| Ok(fs::rename(&work, binary)?));
        if named.is_err() {
            // What is left of it is of no use; the error says why.
            let _ = fs::remove_file(&work);
        }
        named
    }
}

/// Go on the PATH, or where its own archive puts it.
fn go() -> Option<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    setup::find_program("go").or_else(|| usual.is_file().then_some(usual))
}

/// Changes with whatever the binary is built from.
fn fingerprint(sources: &Path, files: &[&str]) -> Result<String> {
    let mut hash = Sha256::new();
    for name in files {
        let path = sources.join(name);
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        hash.update(&text);
    }
    let digits = hash
        .finalize()
        .iter()
        .take(8)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    Ok(digits)
}

/// The version of a module that the go.mod of `sources` asks for.
pub fn version(sources: &str, module: &str) -> Result<String> {
    let path = workspace::root().join(sources).join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    version_in(&text, module).with_context(|| format!("{}: no {module}", path.display()))
}

fn version_in(text: &str, module: &str) -> Option<String> {
    let line = |line: &str| {
        let line = line.trim().trim_start_matches("require ");
        let version = line.strip_prefix(module)?.strip_prefix(' ')?;
        Some(version.split(' ').next()?.to_owned())
    };
    text.lines().find_map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_go_mod_asks_for() {
        let text =
            "require (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.35.4 // indirect\n)\n";
        assert_eq!(version_in(text, "k8s.io/kubernetes").unwrap(), "v1.35.4");
        assert_eq!(version_in("require a v1\n", "a").unwrap(), "v1");
        assert_eq!(version_in(text, "k8s.io/kube"), None);
    }

    #[test]
    fn the_fingerprint_changes_with_a_file() {
        let sources = workspace::root().join("tests/helm");
        let one = fingerprint(&sources, &["go.mod"]).unwrap();
        assert_eq!(one.len(), 16);
        assert_ne!(one, fingerprint(&sources, &["go.mod", "go.sum"]).unwrap());
        assert!(fingerprint(&sources, &["missing"]).is_err());
    }
}
