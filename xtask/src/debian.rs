//! A program of a Debian package, without what the package does besides, such as
//! starting a service. Kept outside the clone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::step::Steps;
use crate::{setup, workspace};

/// The system's `program`, or the one in `package`'s `/usr/bin`.
pub fn program(steps: &Steps, program: &str, package: &str) -> Result<PathBuf> {
    let cache = setup::cache_directory()?.join(program);
    let own = cache.join("usr/bin").join(program);
    if let Some(found) = setup::find_program(program).or_else(|| own.is_file().then(|| own.clone()))
    {
        return Ok(found);
    }
    if setup::find_program("apt-get").is_none() {
        bail!("not a Debian system; install {program}, then try again");
    }
    let work = cache.with_extension(format!("unpacking-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
    let unpacked = download(steps, package, &work).and_then(|()| {
        // What an earlier, interrupted run left has no program in it.
        let _ = fs::remove_dir_all(&cache);
        Ok(fs::rename(work.join("root"), &cache)?)
    });
    fs::remove_dir_all(&work)?;
    unpacked.with_context(|| package.to_owned())?;
    ensure!(own.is_file(), "{package} has no {}", own.display());
    Ok(own)
}

fn download(steps: &Steps, package: &str, work: &Path) -> Result<()> {
    let _only = setup::only_apt();
    if workspace::is_root() {
        let mut update = Command::new("apt-get");
        steps.run("Update the package lists", update.arg("update"))?;
    }
    let mut download = Command::new("apt-get");
    download
        // Its own user may not write into our cache.
        .args(["-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(work);
    steps.run(&format!("Download {package}"), &mut download)?;
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
