//! Policies and identity file together: accepted together or not at all.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    file,
    policies::{self, LoadError, PolicySet},
    resources::Resources,
};
use crate::{
    document::{
        IdentityFile, SourceFile, identities,
        render::{self, Style},
        text::printable,
    },
    model::{Policy, Problem},
};

/// What people wrote; a copy shares the parts, which can be large.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    /// Of files.
    pub policies: Arc<PolicySet>,
    /// Of the cluster; `None`: nothing was ever heard of them.
    pub cluster: Option<Resources>,
    pub identities: Arc<IdentityFile>,
    /// The identity file's text; `None`: identities come from elsewhere.
    pub identity_source: Option<SourceFile>,
}

/// What is wrong with the files; all of it.
#[derive(Debug, thiserror::Error)]
#[error("{}", join(.0))]
pub struct DocumentsError(pub Vec<LoadError>);

fn join(errors: &[LoadError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("\n")
}

impl DocumentsError {
    /// For a person: with excerpts of the files.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let one = |error: &LoadError| match error {
            LoadError::Problems { problems, sources } => render::problems(problems, sources, style),
            LoadError::File(error) => format!("{error}\n"),
        };
        self.0.iter().map(one).collect()
    }
}

impl Documents {
    /// Reads all of it. `identities`: the identity file, if there is to be
    /// one.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn read(policies: &[PathBuf], identities: Option<&Path>) -> Result<Self, DocumentsError> {
        let identities = identities.map(read_identities).transpose();
        match (policies::load(policies), identities) {
            (Ok(policies), Ok(identities)) => {
                let (identities, source) = identities.unzip();
                Ok(Self {
                    policies: policies.into(),
                    cluster: None,
                    identities: identities.unwrap_or_default().into(),
                    identity_source: source,
                })
            }
            (policies, identities) => {
                let errors = [policies.err(), identities.err()];
                Err(DocumentsError(errors.into_iter().flatten().collect()))
            }
        }
    }

    /// The files, for excerpts.
    #[must_use]
    pub fn sources(&self) -> Vec<SourceFile> {
        let policies = self.policies.sources.iter();
        let cluster = self.cluster.iter().flat_map(Resources::sources);
        let all = policies.chain(cluster).chain(&self.identity_source);
        all.cloned().collect()
    }

    /// All policies: of files, then of the cluster.
    pub fn all_policies(&self) -> impl Iterator<Item = &Policy> {
        let cluster = self.cluster.iter().flat_map(Resources::policies);
        self.policies.policies.iter().chain(cluster)
    }

    /// The names of the files' policies.
    #[must_use]
    pub fn names_of_files(&self) -> BTreeSet<Arc<str>> {
        let policies = self.policies.policies.iter();
        policies.map(|policy| policy.name.clone()).collect()
    }

    /// What loads and is probably not meant, of the identity file.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.identities.warnings
    }
}

/// Reads the identity file.
///
/// # Errors
/// When it cannot be read or is wrong.
pub fn read_identities(path: &Path) -> Result<(IdentityFile, SourceFile), LoadError> {
    let name = printable(&path.display().to_string());
    let source =
        SourceFile::from_bytes(name, file::read(path)?).map_err(|problem| LoadError::Problems {
            problems: vec![*problem],
            sources: Vec::new(),
        })?;
    match identities::parse(&source) {
        Ok(file) => Ok((file, source)),
        Err(problems) => Err(LoadError::Problems {
            problems,
            sources: vec![source],
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn errors_of_both_files_are_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let policy = directory.path().join("p.yaml");
        let identities = directory.path().join("i.yaml");
        fs::write(&policy, "kind: Nonsense\n").unwrap();
        fs::write(&identities, "kind: Nonsense\n").unwrap();
        let error = Documents::read(&[policy], Some(&identities)).unwrap_err();
        let text = error.render(Style::Plain);
        assert!(
            text.contains("p.yaml:1") && text.contains("i.yaml:1"),
            "{text}"
        );
    }
}
