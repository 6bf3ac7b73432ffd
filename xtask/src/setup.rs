//! Installs what is missing to build and test. Quick when nothing is.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

use crate::kubernetes::{self, Kubernetes};
use crate::manifests::tools::ManifestTools;
use crate::step::Steps;
use crate::suites;
use crate::workspace::{self, NIGHTLY};

/// The newest bpf-linker that takes the compiler's own LLVM; later ones need a
/// system LLVM.
const BPF_LINKER: &str = "0.10.3";

/// A program that is run, and the Debian package that has it.
pub type Package = (&'static str, &'static str);

/// What every task needs. A C compiler is not among them: this program could
/// not have been linked without one.
const PACKAGES: [Package; 3] = [
    ("ip", "iproute2"),
    ("bpftool", "bpftool"),
    // The agent needs it not; its tests look with it at what the agent made.
    ("nft", "nftables"),
];

/// What the fuzz targets need besides: libFuzzer is C++.
const FUZZER_PACKAGES: [Package; 1] = [("c++", "g++")];

/// What the virtual machines need besides.
const MACHINE_PACKAGES: [Package; 2] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
];

/// What static binaries need besides.
const STATIC_PACKAGES: [Package; 1] = [("musl-gcc", "musl-tools")];

/// Where `sbin` may be missing from the PATH of a root shell.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// What a build needs that was found or installed.
pub struct Tools {
    pub bpf_linker: PathBuf,
}

/// What any task may need.
pub fn everything(steps: &Steps) -> Result<()> {
    run(steps)?;
    fuzzer(steps)?;
    for_machines(steps)?;
    for_kubernetes(steps)?;
    for_manifests(steps)?;
    Ok(())
}

/// What the fuzz targets need besides what [`run`] installs.
pub fn fuzzer(steps: &Steps) -> Result<()> {
    packages(steps, &FUZZER_PACKAGES)
}

pub fn run(steps: &Steps) -> Result<Tools> {
    packages(steps, &PACKAGES)?;
    components(steps)?;
    nightly(steps)?;
    let bpf_linker = bpf_linker(steps)?;
    Ok(Tools { bpf_linker })
}

/// What is missing to run the tests in virtual machines.
pub fn for_machines(steps: &Steps) -> Result<()> {
    packages(steps, &MACHINE_PACKAGES)?;
    for_static(steps)
}

/// What is missing to build static binaries.
pub fn for_static(steps: &Steps) -> Result<()> {
    packages(steps, &STATIC_PACKAGES)?;
    let installed = rustup(&["target", "list", "--installed"])?;
    if !installed.lines().any(|line| line == suites::TARGET) {
        let mut add = Command::new("rustup");
        add.args(["target", "add", suites::TARGET]);
        steps.run(&format!("Install Rust's {}", suites::TARGET), &mut add)?;
    }
    Ok(())
}

/// Installs the packages of those programs that are missing.
pub fn packages(steps: &Steps, wanted: &[Package]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!("not a Debian system; install what is in Debian's packages {names}, then try again");
    }
    if !workspace::is_root() {
        bail!("Debian packages are missing; as root: apt-get install {names}");
    }
    let _only = only_apt();
    steps.run("Update the package lists", apt_get().arg("update"))?;
    let mut install = apt_get();
    install
        .args(["install", "--yes", "--no-install-recommends"])
        .args(missing);
    steps.run(&format!("Install {names}"), &mut install)?;
    Ok(())
}

/// What the tests of a cluster start; nothing where it cannot be built.
pub fn for_kubernetes(steps: &Steps) -> Result<Option<Kubernetes>> {
    kubernetes::setup(steps)
}

/// What the tests of the manifests run.
pub fn for_manifests(steps: &Steps) -> Result<ManifestTools> {
    ManifestTools::setup(steps)
}

/// Held while apt-get runs: a second one would find its files locked.
pub fn only_apt() -> MutexGuard<'static, ()> {
    static APT: Mutex<()> = Mutex::new(());
    APT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the tests of clusters and of manifests need, while other work goes on: on a
/// new machine it is the longest part of all.
pub fn in_background(steps: &Steps) -> Background {
    let steps = steps.clone();
    Background(thread::spawn(move || {
        Ok((for_kubernetes(&steps)?, for_manifests(&steps)?))
    }))
}

/// See [`in_background`]. It ends with this process.
pub struct Background(JoinHandle<Result<(Option<Kubernetes>, ManifestTools)>>);

impl Background {
    pub fn wait(self) -> Result<(Option<Kubernetes>, ManifestTools)> {
        self.0
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// rustfmt and clippy for the stable toolchain that runs us.
fn components(steps: &Steps) -> Result<()> {
    let installed = rustup(&["component", "list", "--installed"])?;
    for component in ["rustfmt", "clippy"] {
        if !has_component(&installed, component) {
            let mut add = Command::new("rustup");
            add.args(["component", "add", component]);
            steps.run(&format!("Install {component}"), &mut add)?;
        }
    }
    Ok(())
}

fn nightly(steps: &Steps) -> Result<()> {
    let toolchains = rustup(&["toolchain", "list"])?;
    if toolchains.lines().any(|line| line.starts_with(NIGHTLY)) {
        let list = ["component", "list", "--installed", "--toolchain", NIGHTLY];
        if has_component(&rustup(&list)?, "rust-src") {
            return Ok(());
        }
    }
    let mut install = Command::new("rustup");
    install
        .args(["toolchain", "install", NIGHTLY, "--profile", "minimal"])
        .args(["--component", "rust-src", "--no-self-update"]);
    steps.run(&format!("Install Rust {NIGHTLY}"), &mut install)?;
    Ok(())
}

/// `clippy-x86_64-unknown-linux-gnu` is the component `clippy`.
fn has_component(installed: &str, component: &str) -> bool {
    installed.lines().any(|line| {
        line.strip_prefix(component)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

/// What a rustup command prints.
pub fn rustup(arguments: &[&str]) -> Result<String> {
    let output = Command::new("rustup")
        .args(arguments)
        .output()
        .context("cannot run rustup; install Rust with it: https://rustup.rs")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("rustup {}: {}", arguments.join(" "), error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A bpf-linker of the right version: the one on the PATH, or our own, which is
/// kept outside the clone so that a fresh clone need not build it again.
fn bpf_linker(steps: &Steps) -> Result<PathBuf> {
    let directory = tools_directory()?;
    let own = directory.join("bin/bpf-linker");
    let candidates = find_program("bpf-linker").into_iter().chain([own.clone()]);
    for candidate in candidates {
        if is_right_linker(&candidate) {
            return Ok(candidate);
        }
    }
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let mut install = workspace::cargo("install");
    install
        .args(["bpf-linker", "--version", BPF_LINKER, "--locked", "--root"])
        .arg(&directory)
        // What takes time in it is LLVM, which comes compiled: so it builds in a
        // quarter of the time and links as fast.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    steps.run(
        &format!("Build bpf-linker {BPF_LINKER} (a minute)"),
        &mut install,
    )?;
    if !is_right_linker(&own) {
        bail!("{} is not bpf-linker {BPF_LINKER}", own.display());
    }
    Ok(own)
}

fn is_right_linker(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).trim() == format!("bpf-linker {BPF_LINKER}")
    })
}

fn tools_directory() -> Result<PathBuf> {
    Ok(cache_directory()?.join("tools"))
}

/// What is kept outside the clone, so that a fresh one need not make it again.
pub fn cache_directory() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let cache = match cache {
        Some(cache) => cache,
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("zt-agent"))
}

/// Where a program of this system is.
pub fn program(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("there is no {name} on this system"))
}

/// Where a program of this system is, if it has it.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_found_with_and_without_its_target() {
        let installed = "clippy-x86_64-unknown-linux-gnu\nrust-src\n";
        assert!(has_component(installed, "clippy"));
        assert!(has_component(installed, "rust-src"));
        assert!(!has_component(installed, "rustfmt"));
        assert!(!has_component(installed, "rus"));
    }

    #[test]
    fn a_program_that_is_not_there_is_not_found() {
        assert_eq!(find_program("no-such-program-anywhere"), None);
        assert!(find_program("sh").is_some());
    }
}
