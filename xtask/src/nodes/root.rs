//! A node's root file system: Debian with what a node of Kubernetes has, made once
//! and kept outside the clone. What is of a run is on another disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::step::Steps;
use crate::{setup, workspace};

const RELEASE: &str = "bookworm";

const SOURCES: [&str; 2] = [
    "deb http://deb.debian.org/debian bookworm main",
    "deb http://deb.debian.org/debian-security bookworm-security main",
];

const PACKAGES: &str = "systemd,systemd-sysv,dbus,util-linux,kmod,containerd,runc,\
    containernetworking-plugins,iproute2,iptables,nftables,conntrack,bpftool";

/// Of the disk; it takes only what is in it.
const SIZE: &str = "6G";

/// What makes it.
const TOOLS: [setup::Package; 2] = [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")];

/// The disk, made if it is not there yet.
pub fn disk(steps: &Steps) -> Result<PathBuf> {
    setup::packages(steps, &TOOLS)?;
    let directory = setup::cache_directory()?.join("node");
    let disk = directory.join(format!("root-{}.ext4", fingerprint()));
    if disk.is_file() {
        return Ok(disk);
    }
    if !workspace::is_root() {
        bail!("only root can make a node's root file system");
    }
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let work = directory.join(format!("making-{}", std::process::id()));
    let made = make(steps, &work).and_then(|made| Ok(fs::rename(made, &disk)?));
    fs::remove_dir_all(&work)?;
    made?;
    Ok(disk)
}

fn make(steps: &Steps, work: &Path) -> Result<PathBuf> {
    fs::create_dir_all(work)?;
    let (root, disk) = (work.join("root"), work.join("disk"));
    let mut mmdebstrap = Command::new(setup::program("mmdebstrap")?);
    mmdebstrap
        .args(["--variant=minbase", "--aptopt=Acquire::Languages \"none\""])
        .arg(format!("--include={PACKAGES}"))
        .arg(RELEASE)
        .arg(&root)
        .args(SOURCES);
    steps.run(
        "Make a node's root file system (2 minutes, once)",
        &mut mmdebstrap,
    )?;
    fs::create_dir_all(root.join("usr/lib/modules"))?;
    fill(steps, "Make its disk", &root, &disk, SIZE)?;
    Ok(disk)
}

/// Makes a disk with a file system of what is in a directory.
pub fn fill(steps: &Steps, title: &str, from: &Path, disk: &Path, size: &str) -> Result<()> {
    let mut mke2fs = Command::new(setup::program("mke2fs")?);
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-m", "0"])
        // Written once; an emulated machine need not do it again.
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1", "-d"])
        .args([from, disk])
        .arg(size);
    steps.run(title, &mut mke2fs)?;
    Ok(())
}

/// Changes with whatever it is made from.
fn fingerprint() -> String {
    let hash = Sha256::digest([RELEASE, PACKAGES, SIZE].join(" "));
    let digits = hash.iter().take(6).map(|byte| format!("{byte:02x}"));
    digits.collect()
}
