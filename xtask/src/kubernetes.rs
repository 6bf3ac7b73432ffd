//! A real control plane for the tests: Kubernetes built from source into one
//! binary, and Debian's etcd. Both are kept outside the clone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use zt_tests::cluster::{ETCD_VARIABLE, KUBERNETES_VARIABLE};

use crate::step::Steps;
use crate::{setup, workspace};

/// What the binary is built from, below the root of the clone.
const SOURCES: &str = "tests/kubernetes";
const SOURCE_FILES: [&str; 3] = ["main.go", "go.mod", "go.sum"];

const ETCD_PACKAGE: &str = "etcd-server";

/// What makes the key that signs service accounts' tokens.
const PACKAGES: [setup::Package; 1] = [("openssl", "openssl")];

/// What the tests of a cluster start.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// All parts of Kubernetes; the first argument says which.
    pub binary: PathBuf,
    pub etcd: PathBuf,
}

impl Kubernetes {
    /// Tells a test where they are.
    pub fn hand_over(&self, command: &mut Command) {
        command.env(KUBERNETES_VARIABLE, &self.binary);
        command.env(ETCD_VARIABLE, &self.etcd);
    }
}

/// Builds or downloads what is missing. Nothing where there is no Go: the step
/// says so, and so does every test that needs it. In CI that is an error.
pub fn setup(steps: &Steps) -> Result<Option<Kubernetes>> {
    let cache = setup::cache_directory()?;
    let sources = workspace::root().join(SOURCES);
    let directory = cache.join("kubernetes").join(fingerprint(&sources)?);
    let binary = directory.join("kubernetes");
    if !binary.is_file() {
        let Some(go) = go() else {
            return without_go(steps);
        };
        build(steps, &go, &sources, &binary)?;
    }
    setup::packages(steps, &PACKAGES)?;
    let etcd = etcd(steps, &cache.join("etcd"))?;
    Ok(Some(Kubernetes { binary, etcd }))
}

/// Go on the PATH, or where its own archive puts it.
fn go() -> Option<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    setup::find_program("go").or_else(|| usual.is_file().then_some(usual))
}

fn without_go(steps: &Steps) -> Result<Option<Kubernetes>> {
    const WHY: &str = "there is no Go toolchain (https://go.dev/dl, 1.25 or later)";
    if zt_tests::cluster::is_ci() {
        bail!("Kubernetes is needed in CI, and cannot be built: {WHY}");
    }
    steps.note(&format!(
        "skipped: build Kubernetes for the tests; {WHY}. Tests that need it are skipped"
    ));
    Ok(None)
}

/// Changes with whatever the binary is built from.
fn fingerprint(sources: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in SOURCE_FILES {
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

/// Half a binary is never taken for a whole one: it gets its name at the end.
fn build(steps: &Steps, go: &Path, sources: &Path, binary: &Path) -> Result<()> {
    let directory = binary.parent().context("the binary has a directory")?;
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let work = directory.join(format!("building-{}", std::process::id()));
    let version = version(&fs::read_to_string(sources.join("go.mod"))?)?;
    let mut command = Command::new(go);
    command
        .current_dir(sources)
        .args(["build", "-v", "-mod=readonly", "-trimpath", "-ldflags"])
        .arg(linker_flags(&version)?)
        .arg("-o")
        .arg(&work)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .env_remove("GOFLAGS");
    let title = format!("Build Kubernetes {version} for the tests (5 to 10 minutes, once)");
    let built = steps.run(&title, &mut command);
    let named = built.and_then(|_| Ok(fs::rename(&work, binary)?));
    if named.is_err() {
        // What is left of it is of no use; the error says why.
        let _ = fs::remove_file(&work);
    }
    named
}

/// The version of `k8s.io/kubernetes` that go.mod asks for.
fn version(module: &str) -> Result<String> {
    let line = |line: &str| {
        let version = line.trim().strip_prefix("k8s.io/kubernetes ")?;
        Some(version.trim().to_owned())
    };
    let found = module.lines().find_map(line);
    found.context("go.mod names no version of k8s.io/kubernetes")
}

/// Without them every part says that it is v0.0.0, and clients warn.
fn linker_flags(version: &str) -> Result<String> {
    const PACKAGE: &str = "k8s.io/component-base/version";
    let mut numbers = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("{version:?} is no version of Kubernetes");
    };
    Ok(format!(
        "-s -w -X {PACKAGE}.gitVersion={version} -X {PACKAGE}.gitMajor={major} -X {PACKAGE}.gitMinor={minor}"
    ))
}

/// The system's etcd, or the one of Debian's package, without what the package
/// does besides: it would start a service.
fn etcd(steps: &Steps, cache: &Path) -> Result<PathBuf> {
    let own = cache.join("usr/bin/etcd");
    if let Some(found) = setup::find_program("etcd").or_else(|| own.is_file().then(|| own.clone()))
    {
        return Ok(found);
    }
    if setup::find_program("apt-get").is_none() {
        bail!("not a Debian system; install etcd, then try again");
    }
    let work = cache.with_extension(format!("unpacking-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
    let unpacked = download(steps, &work).and_then(|()| {
        // What an earlier, interrupted run left has no etcd in it.
        let _ = fs::remove_dir_all(cache);
        Ok(fs::rename(work.join("root"), cache)?)
    });
    fs::remove_dir_all(&work)?;
    unpacked.context(ETCD_PACKAGE)?;
    ensure!(own.is_file(), "{ETCD_PACKAGE} has no {}", own.display());
    Ok(own)
}

fn download(steps: &Steps, work: &Path) -> Result<()> {
    if workspace::is_root() {
        let mut update = Command::new("apt-get");
        steps.run("Update the package lists", update.arg("update"))?;
    }
    let mut download = Command::new("apt-get");
    download
        // Its own user may not write into our cache.
        .args(["-o", "APT::Sandbox::User=root", "download", ETCD_PACKAGE])
        .current_dir(work);
    steps.run(&format!("Download {ETCD_PACKAGE}"), &mut download)?;
    let entries = fs::read_dir(work)?.flatten().map(|entry| entry.path());
    let package = entries
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "deb"));
    let mut unpack = Command::new("dpkg-deb");
    unpack
        .arg("-x")
        .arg(package.context("apt-get downloaded no package")?)
        .arg(work.join("root"));
    steps.run("Unpack it", &mut unpack)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_go_mod_asks_for() {
        let module = "require (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.35.4\n)\n";
        assert_eq!(version(module).unwrap(), "v1.35.4");
        assert!(version("module x\n").is_err());
    }

    #[test]
    fn every_part_is_told_its_version() {
        let flags = linker_flags("v1.35.4").unwrap();
        for flag in ["gitVersion=v1.35.4", "gitMajor=1", "gitMinor=35"] {
            assert!(flags.contains(flag), "{flags}");
        }
        assert!(linker_flags("latest").is_err());
    }

    #[test]
    fn the_sources_have_a_fingerprint() {
        let found = fingerprint(&workspace::root().join(SOURCES)).unwrap();
        assert_eq!(found.len(), 16);
    }
}
