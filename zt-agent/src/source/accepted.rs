//! The last documents that were put in force, verbatim, for a start at which
//! the present ones have errors.
//!
//! `accepted` is a symbolic link to a directory that is complete. What is about
//! to be put in force is written beside it first, and when it is in force the
//! link is moved. An agent that dies in between leaves both: the next one sees
//! by the generation in force which of them is.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use zt_common::version::Generation;

use super::{
    atomic,
    documents::{Documents, DocumentsError},
    file::FileError,
    resources::{KeptError, Resources},
};

const LINK: &str = "accepted";
const NEXT: &str = ".accepted-next";
/// The generation that was in force when it was written.
const AFTER: &str = "after";
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

    /// Finds out what is in force if an agent died while it changed that.
    /// `generation`: in force now; 0: none.
    ///
    /// # Errors
    /// When it cannot be put in order.
    pub fn recover(&self, generation: Generation) -> Result<(), FileError> {
        let next = self.state.join(NEXT);
        if !next.is_symlink() {
            return Ok(());
        }
        let after = fs::read_to_string(next.join(AFTER)).unwrap_or_default();
        let after: Option<Generation> = after.trim().parse().ok();
        match after {
            // It was not put in force.
            Some(after) if generation == after && generation != 0 => self.discard_next(),
            Some(_) if generation != 0 => self.accept_next(),
            // The machine died too, and what is written need not be all of it.
            _ => self.withdraw().and(self.discard_next()),
        }
    }

    /// Writes these beside those before: they are about to be put in force, and
    /// `generation` is now. Waits for no disk.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_next(
        &self,
        documents: &Documents,
        generation: Generation,
    ) -> Result<(), FileError> {
        self.try_write_next(documents, generation)
            .map_err(self.at(NEXT))
    }

    /// What was written last is in force.
    ///
    /// # Errors
    /// When it does not reach the disk; those before may be there still.
    pub fn accept_next(&self) -> Result<(), FileError> {
        self.try_accept_next().map_err(self.at(LINK))
    }

    /// What was written last is not in force.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard_next(&self) -> Result<(), FileError> {
        self.remove(NEXT)
    }

    /// Those that are there are not in force any more.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn withdraw(&self) -> Result<(), FileError> {
        self.remove(LINK)
    }

    /// A link, and what it leads to.
    fn remove(&self, name: &str) -> Result<(), FileError> {
        let link = self.state.join(name);
        let directory = fs::read_link(&link).ok();
        remove_if_there(&link).map_err(self.at(name))?;
        if let Some(directory) = directory {
            // Nothing leads there any more: it is only in the way.
            let _ = fs::remove_dir_all(self.state.join(directory));
        }
        Ok(())
    }

    /// Keeps these instead of those before: they are in force.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save(&self, documents: &Documents) -> Result<(), FileError> {
        self.write_next(documents, 0)?;
        self.accept_next()
    }

    fn at(&self, name: &str) -> impl FnOnce(io::Error) -> FileError {
        let path = self.state.join(name);
        move |error| FileError::at(&path, error)
    }

    fn try_write_next(&self, documents: &Documents, generation: Generation) -> io::Result<()> {
        let directory = tempfile::Builder::new()
            .prefix("accepted-")
            .tempdir_in(&self.state)?;
        fill(directory.path(), documents)?;
        fs::write(directory.path().join(AFTER), generation.to_string())?;
        let name = directory.path().file_name();
        let name = name.ok_or_else(|| io::Error::other("no name"))?;
        let temporary = self.state.join(".accepted-link");
        remove_if_there(&temporary)?;
        symlink(name, &temporary)?;
        fs::rename(&temporary, self.state.join(NEXT))?;
        // It belongs to the link now.
        let _ = directory.keep();
        Ok(())
    }

    fn try_accept_next(&self) -> io::Result<()> {
        let next = self.state.join(NEXT);
        let directory = self.state.join(fs::read_link(&next)?);
        sync_all(&directory)?;
        let old = fs::read_link(self.state.join(LINK)).ok();
        fs::rename(&next, self.state.join(LINK))?;
        atomic::sync_directory(&self.state)?;
        self.sweep(&directory, old.as_deref());
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
        // Those that were accepted before have a number already.
        let name = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
        fs::write(
            policies.join(format!("{number:04}-{name}.yaml")),
            source.text.as_bytes(),
        )?;
    }
    let identities = documents.identity_source.as_ref();
    fs::write(
        directory.join(IDENTITIES),
        identities.map_or("", |source| &*source.text),
    )?;
    if let Some(cluster) = &documents.cluster {
        fs::write(directory.join(CLUSTER), cluster.render()?)?;
    }
    Ok(())
}

fn sync_all(directory: &Path) -> io::Result<()> {
    for path in [&directory.join(POLICIES), directory] {
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
            assert_eq!(*source.text, *text(number));
        }
        assert!(accepted.exist());
        assert_eq!(fs::read_dir(&state).unwrap().count(), 2);
    }

    #[test]
    fn what_is_discarded_or_withdrawn_takes_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        fs::create_dir(&state).unwrap();
        let accepted = Accepted::below(&state, true, false);
        let documents = documents(directory.path(), IDENTITY_FILE);
        accepted.save(&documents).unwrap();
        for _ in 0..3 {
            accepted.write_next(&documents, 7).unwrap();
            accepted.discard_next().unwrap();
        }
        let kept = accepted.read().unwrap().identity_source.unwrap();
        assert_eq!(&*kept.text, IDENTITY_FILE);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 2);
        accepted.withdraw().unwrap();
        accepted.withdraw().unwrap();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
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
    fn of_what_an_agent_left_that_died_the_generation_says_what_is_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        fs::create_dir(&state).unwrap();
        let accepted = Accepted::below(&state, true, false);
        let (old, new) = (
            documents(directory.path(), IDENTITY_FILE),
            documents(directory.path(), &format!("{IDENTITY_FILE}# new\n")),
        );
        let text = || accepted.read().unwrap().identity_source.unwrap().text;
        let text_of = |documents: &Documents| documents.identity_source.clone().unwrap().text;
        accepted.recover(7).unwrap();
        assert!(!accepted.exist(), "there never were any");
        // The generation then, the generation now, what is in force.
        for (then, now, expected) in [(7, 7, &old), (7, 8, &new), (0, 1, &new)] {
            accepted.save(&old).unwrap();
            accepted.write_next(&new, then).unwrap();
            assert_eq!(text(), text_of(&old));
            accepted.recover(now).unwrap();
            assert_eq!(text(), text_of(expected), "{then} {now}");
            accepted.recover(now).unwrap();
            assert_eq!(text(), text_of(expected), "{then} {now}");
        }
        // After a reboot nobody knows.
        accepted.write_next(&old, 8).unwrap();
        accepted.recover(0).unwrap();
        assert!(!accepted.exist());
        accepted.save(&new).unwrap();
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
