//! The policy files that a command is about.

use std::path::PathBuf;

use crate::{
    cli::settings,
    document::Config,
    explain::wanted,
    kernel::view::View,
    model::{NodeModel, Policy},
    source::{
        clock,
        policies::{self, LoadError, PolicySet},
    },
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
    let clock = clock::read(&config.runtime_directory)?;
    Ok(wanted::live(
        &view.tables,
        &view.numbers,
        identities.as_ref(),
        config,
        policies,
        clock,
    ))
}
