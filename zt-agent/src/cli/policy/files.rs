//! The policy files that a command is about.

use std::{io, path::PathBuf};

use anyhow::Context as _;

use crate::{
    cli::settings,
    document::Config,
    explain::wanted,
    kernel::view::View,
    model::{NodeModel, Policy},
    source::policies::{self, LoadError, PolicySet},
};

/// The given paths, or the configured ones.
pub fn paths(given: &[PathBuf], config: &Config) -> Vec<PathBuf> {
    if given.is_empty() {
        config.policies.clone()
    } else {
        given.to_vec()
    }
}

/// Loads files that must be without errors.
pub fn load(paths: &[PathBuf]) -> anyhow::Result<PolicySet> {
    policies::load(paths).map_err(|error| match error {
        LoadError::Problems { problems, sources } => settings::refused(&problems, &sources),
        LoadError::File(error) => error.into(),
    })
}

/// The node as the kernel has it, with these policies instead.
pub fn model(view: &View, config: &Config, policies: Vec<Policy>) -> anyhow::Result<NodeModel> {
    // Without the identity file only its endpoints are unknown, and those that
    // were applied are in the kernel.
    let identities = settings::identities(config).ok().map(|(file, _)| file);
    let offset = clock(libc::CLOCK_REALTIME)?.saturating_sub(boottime()?);
    Ok(wanted::live(
        &view.tables,
        &view.numbers,
        identities.as_ref(),
        config,
        policies,
        offset,
    ))
}

/// `CLOCK_BOOTTIME`, ns.
pub fn boottime() -> anyhow::Result<u64> {
    clock(libc::CLOCK_BOOTTIME)
}

fn clock(id: libc::clockid_t) -> anyhow::Result<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for a write for the length of the call.
    if unsafe { libc::clock_gettime(id, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot read a clock");
    }
    let seconds = u64::try_from(time.tv_sec)?;
    let nanoseconds = u64::try_from(time.tv_nsec)?;
    (seconds.checked_mul(1_000_000_000))
        .and_then(|whole| whole.checked_add(nanoseconds))
        .context("a clock is past the year 2554")
}
