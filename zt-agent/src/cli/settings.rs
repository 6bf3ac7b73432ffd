//! What the commands that look and act share: configuration, identity file,
//! pins.

use std::{io, path::Path};

use anyhow::Context as _;

use super::{Global, config, output::Paint};
use crate::{
    document::{Config, IdentityFile, SourceFile, identities, render},
    kernel::pins::Pins,
    model::Problem,
    source::{file, identity},
};

/// Where the configuration is if nobody says so; only this one may be missing.
const DEFAULT: &str = "/etc/zt-agent/config.yaml";

/// Reads the configuration. Without the default file every field has its
/// default.
///
/// # Errors
/// With every problem of the file, ready to print.
pub fn load(global: &Global) -> anyhow::Result<Config> {
    let path = &global.config;
    if path != Path::new(DEFAULT) || path.exists() {
        return config::read(path);
    }
    let nothing = SourceFile::new(DEFAULT, "");
    let directory = path.parent().unwrap_or(Path::new("/"));
    Config::parse(&nothing, directory, |name| std::env::var(name).ok())
        .map_err(|problems| refused(&problems, &[nothing]))
}

/// The pins that the configuration names.
#[must_use]
pub fn pins(config: &Config) -> Pins {
    Pins::new(&config.pin_directory)
}

/// Reads the identity file.
///
/// # Errors
/// With every problem of the file, ready to print; or that there is none.
pub fn identities(config: &Config) -> anyhow::Result<(IdentityFile, SourceFile)> {
    let Some(path) = identity::file(config) else {
        anyhow::bail!("identities come from the cluster; ask its API server");
    };
    let source = SourceFile::from_bytes(path.display().to_string(), file::read(path)?)
        .map_err(|problem| refused(&[*problem], &[]))?;
    match identities::parse(&source) {
        Ok(identities) => Ok((identities, source)),
        Err(problems) => Err(refused(&problems, &[source])),
    }
}

/// Problems as an error: what the command needs cannot be read.
#[must_use]
pub fn refused(problems: &[Problem], sources: &[SourceFile]) -> anyhow::Error {
    let text = render::problems(problems, sources, Paint::of_stdout().style());
    anyhow::anyhow!("a file has errors\n{}", text.trim_end())
}

/// The root user alone reads the kernel's maps: say so, not "permission
/// denied".
///
/// # Errors
/// For everybody else.
pub fn require_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(io::Error::from(io::ErrorKind::PermissionDenied))
        .context("only root can look into the kernel; run it with sudo")
}
