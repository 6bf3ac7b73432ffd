//! The disk of a run, which all nodes read: Kubernetes, the kernel's modules, images,
//! and the files of each node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::files::{self, Credentials, PAUSE_IMAGE};
use super::place::Place;
use super::root;
use crate::dist::image::{self, Image};
use crate::kubernetes::Kubernetes;
use crate::step::Steps;
use crate::vm::kernels::Kernel;
use crate::vm::suite::Suite;

/// What the pods of the services run.
pub const PROBE_IMAGE: &str = "localhost/zt-probe:1";
const PROBE: &str = "/usr/bin/zt-probe";

/// What is put on the disk.
pub struct Parts<'a> {
    pub kubernetes: &'a Kubernetes,
    pub kernel: &'a Kernel,
    pub programs: &'a Suite,
    pub credentials: &'a [(Place, Credentials)],
}

impl Parts<'_> {
    /// Writes the disk into `directory`.
    pub fn write(&self, steps: &Steps, directory: &Path) -> Result<PathBuf> {
        let tree = directory.join("parts");
        let disk = directory.join("parts.ext4");
        self.images(&tree.join("images"))?;
        let binary = tree.join("bin/kubernetes");
        fs::create_dir_all(tree.join("bin"))?;
        fs::copy(&self.kubernetes.binary, &binary)?;
        copy(&self.kernel.root.join("lib/modules"), &tree.join("modules"))?;
        files::write_common(&tree.join("files"))?;
        for (place, credentials) in self.credentials {
            let place = *place;
            let others: Vec<_> = Place::ALL
                .into_iter()
                .filter(|other| *other != place)
                .collect();
            let node = tree.join("nodes").join(place.name());
            files::write_node(&node, place, &others, credentials)?;
        }
        root::fill(steps, "Make the disk of this run", &tree, &disk, "1G")?;
        fs::remove_dir_all(&tree)?;
        Ok(disk)
    }

    fn images(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let agent = fs::read(&self.programs.program("zt-agent")?.path)?;
        let probe = fs::read(&self.programs.program("zt-probe")?.path)?;
        let image = |reference, arguments| Image {
            reference,
            program: PROBE,
            arguments,
            binary: &probe,
        };
        for (name, archive) in [
            ("agent", image::archive(&agent)?),
            ("probe", image::pack(&image(PROBE_IMAGE, &[]))?),
            ("pause", image::pack(&image(PAUSE_IMAGE, &["pause"]))?),
        ] {
            fs::write(directory.join(format!("{name}.tar")), archive)?;
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    let status = cp.arg("-a").arg(from).arg(to).status().context("cp")?;
    ensure!(status.success(), "cp {} failed", from.display());
    Ok(())
}
