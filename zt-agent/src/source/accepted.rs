//! The last documents that were put in force, verbatim, for a start at which
//! the present ones have errors.
//!
//! `accepted` is a symbolic link to a directory that is complete; a change
//! makes another directory and moves the link. It is taken away before
//! something else is put in force: what it leads to is never older than that.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{
    atomic,
    documents::{Documents, DocumentsError},
    file::FileError,
    resources::{KeptError, Resources},
};

const LINK: &str = "accepted";
const WITHDRAWN: &str = ".accepted-withdrawn";
const POLICIES: &str = "policies";
const IDENTITIES: &str = "identities.yaml";
const CLUSTER: &str = "cluster.json";

/// The accepted documents below a state directory.
#[derive(Clone, Debug)]
pub struct Accepted {
    state: PathBuf,
    /// Whether there is an identity file among them.
    with_identities: bool,
    /// Whether policies of the cluster are.
    with_cluster: bool,
}

impl Accepted {
    #[must_use]
    pub fn below(state_directory: &Path, with_identities: bool, with_cluster: bool) -> Self {
        Self {
            state: state_directory.into(),
            with_identities,
            with_cluster,
        }
    }

    /// Whether there are any.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.state.join(LINK).join(IDENTITIES).exists()
    }

    /// Reads them.
    ///
    /// # Errors
    /// When they cannot be read, or this version no longer understands them.
    pub fn read(&self) -> Result<Documents, DocumentsError> {
        let directory = self.state.join(LINK);
        let identities = directory.join(IDENTITIES);
        let mut documents = Documents::read(
            &[directory.join(POLICIES)],
            self.with_identities.then_some(&*identities),
        )?;
        documents.cluster = self.cluster().unwrap_or_default();
        Ok(documents)
    }

    /// The policies of the cluster among them. `None`: there were none to keep.
    ///
    /// # Errors
    /// When what was kept cannot be known any more, not even one of them: it may
    /// have been a deny.
    pub fn cluster(&self) -> Result<Option<Resources>, KeptError> {
        let path = self.state.join(LINK).join(CLUSTER);
        match fs::read_to_string(path) {
            Ok(text) if self.with_cluster => Resources::parse(&text).map(Some),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(None),
        }
    }

    /// Before something else is put in force.
    ///
    /// # Errors
    /// When it cannot be; the next agent may then take them for what is.
    pub fn withdraw(&self) -> Result<(), FileError> {
        self.move_link(LINK, WITHDRAWN)
    }

    /// After that failed.
    ///
    /// # Errors
    /// When it cannot be; then there are none.
    pub fn restore(&self) -> Result<(), FileError> {
        self.move_link(WITHDRAWN, LINK)
    }

    fn move_link(&self, from: &str, to: &str) -> Result<(), FileError> {
        let moved = match fs::rename(self.state.join(from), self.state.join(to)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            moved => moved.and_then(|()| atomic::sync_directory(&self.state)),
        };
        moved.map_err(|error| FileError::at(&self.state.join(from), error))
    }

    /// Keeps these instead of those before.
    ///
    /// # Errors
    /// When they cannot be written; those before are untouched then.
    pub fn save(&self, documents: &Documents) -> Result<(), FileError> {
        self.try_save(documents)
            .map_err(|error| FileError::at(&self.state.join(LINK), error))
    }

    fn try_save(&self, documents: &Documents) -> io::Result<()> {
        let link = self.state.join(LINK);
        let old = fs::read_link(&link).ok();
        let new = tempfile::Builder::new()
            .prefix("accepted-")
            .tempdir_in(&self.state)?;
        fill(new.path(), documents)?;
        let temporary = self.state.join(".accepted-link");
        remove_if_there(&temporary)?;
        let name = new
            .path()
            .file_name()
            .ok_or_else(|| io::Error::other("no name"))?;
        symlink(name, &temporary)?;
        fs::rename(&temporary, &link)?;
        remove_if_there(&self.state.join(WITHDRAWN))?;
        atomic::sync_directory(&self.state)?;
        let kept = new.keep();
        self.sweep(&kept, old.as_deref());
        Ok(())
    }

    /// Removes the directory before, and what a crash left.
    fn sweep(&self, kept: &Path, old: Option<&Path>) {
        let leftovers = fs::read_dir(&self.state).into_iter().flatten().flatten();
        let leftovers = leftovers.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("accepted-") && path.is_dir()
        });
        let old = old.map(|old| self.state.join(old));
        for path in leftovers.chain(old).filter(|path| path != kept) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn fill(directory: &Path, documents: &Documents) -> io::Result<()> {
    let policies = directory.join(POLICIES);
    fs::create_dir(&policies)?;
    for (number, source) in documents.policies.sources.iter().enumerate() {
        // Two directories may hold files of one name; the order is kept.
        let name = Path::new(&*source.name)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        fs::write(
            policies.join(format!("{number:04}-{name}.yaml")),
            &source.text,
        )?;
    }
    let identities = documents.identity_source.as_ref();
    fs::write(
        directory.join(IDENTITIES),
        identities.map_or("", |s| &s.text),
    )?;
    if let Some(cluster) = &documents.cluster {
        fs::write(directory.join(CLUSTER), cluster.render()?)?;
    }
    for path in [&policies, directory] {
        for entry in fs::read_dir(path)? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        atomic::sync_directory(path)?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY_FILE: &str = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads: []\n";

    fn documents(directory: &Path, text: &str) -> Documents {
        let identities = directory.join("ids.yaml");
        fs::write(&identities, text).unwrap();
        Documents::read(&[], Some(&identities)).unwrap()
    }

    #[test]
    fn the_last_saved_documents_are_read_and_older_ones_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        fs::create_dir(&state).unwrap();
        let accepted = Accepted::below(&state, true, false);
        assert!(!accepted.exist());
        // As a crash leaves it.
        fs::create_dir(state.join("accepted-crash")).unwrap();
        let text = |number| format!("{IDENTITY_FILE}# {number}\n");
        for number in 1..=3 {
            accepted
                .save(&documents(directory.path(), &text(number)))
                .unwrap();
            let source = accepted.read().unwrap().identity_source.unwrap();
            assert_eq!(source.text, text(number));
        }
        assert!(accepted.exist());
        assert_eq!(fs::read_dir(&state).unwrap().count(), 2);
    }

    #[test]
    fn policies_of_the_cluster_are_kept_with_the_rest_and_only_where_they_count() {
        let directory = tempfile::tempdir().unwrap();
        let accepted = Accepted::below(directory.path(), false, true);
        assert_eq!(accepted.cluster().unwrap(), None);
        accepted.save(&Documents::default()).unwrap();
        assert_eq!(accepted.cluster().unwrap(), None, "none were heard of");
        let documents = Documents {
            cluster: Some(Resources::default()),
            ..Documents::default()
        };
        accepted.save(&documents).unwrap();
        assert_eq!(accepted.read().unwrap(), documents);
        let elsewhere = Accepted::below(directory.path(), false, false);
        assert_eq!(elsewhere.read().unwrap().cluster, None);
        // Nobody knows what stood there.
        let kept = directory.path().join(LINK).join(CLUSTER);
        fs::write(kept, "[{]").unwrap();
        assert!(accepted.cluster().is_err());
    }

    #[test]
    fn what_is_withdrawn_is_there_again_only_if_it_is_restored_or_others_are_saved() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        fs::create_dir(&state).unwrap();
        let accepted = Accepted::below(&state, true, false);
        let save = |text: &str| accepted.save(&documents(directory.path(), text)).unwrap();
        let text = || accepted.read().unwrap().identity_source.unwrap().text;
        accepted.withdraw().unwrap();
        accepted.restore().unwrap();
        assert!(!accepted.exist(), "there never were any");

        save(IDENTITY_FILE);
        accepted.withdraw().unwrap();
        assert!(!accepted.exist(), "as an agent finds it that dies now");
        accepted.restore().unwrap();
        assert_eq!(text(), IDENTITY_FILE);

        accepted.withdraw().unwrap();
        let newer = format!("{IDENTITY_FILE}# newer\n");
        save(&newer);
        accepted.restore().unwrap();
        assert_eq!(text(), newer);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 2);
    }

    #[test]
    fn without_an_identity_file_nobody_is_enrolled_by_a_later_start_with_one() {
        let directory = tempfile::tempdir().unwrap();
        Accepted::below(directory.path(), false, false)
            .save(&Documents::default())
            .unwrap();
        let read = Accepted::below(directory.path(), false, false)
            .read()
            .unwrap();
        assert_eq!(read.identity_source, None);
        assert!(
            Accepted::below(directory.path(), true, false)
                .read()
                .is_err()
        );
    }
}
