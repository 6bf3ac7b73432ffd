//! The plugin's files on a node: the program where the runtime executes it, and
//! its object in the network's list.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    NAME,
    list::{self, ListError},
};
use crate::source::atomic;

/// Extensions of the files that runtimes look at.
const CONFIGS: [&str; 3] = ["conf", "conflist", "json"];

/// Where a node's runtime has its plugins and networks.
#[derive(Clone, Debug)]
pub struct Place {
    /// Of the programs.
    pub programs: PathBuf,
    /// Of the networks.
    pub networks: PathBuf,
}

/// What the plugin is told in its object.
#[derive(Clone, Debug)]
pub struct Options {
    pub socket: PathBuf,
    /// Seconds.
    pub timeout: u16,
}

impl Options {
    /// That object.
    fn plugin(&self) -> Value {
        json!({"type": NAME, "socket": self.socket, "timeoutSeconds": self.timeout})
    }
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What is there, or is there no more.
    pub program: PathBuf,
    /// Lists that were changed.
    pub changed: Vec<PathBuf>,
}

/// Why the plugin is not installed, or not removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("{path}: {source}; is the node's directory mounted there, and writable?")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} has no network yet: install the cluster's network first, and this again")]
    NoNetwork(PathBuf),
    #[error(
        "{0} is the network that the runtime uses, and has one plugin only: make it a list (a .conflist file with `plugins`), so that zt-agent-cni can come after it"
    )]
    NoList(PathBuf),
    #[error("{path}: {source}")]
    List { path: PathBuf, source: ListError },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { path, source }
}

impl Place {
    /// Puts a copy of a program there, and then names it in the list of the
    /// network that the runtime uses: the first one by name.
    ///
    /// # Errors
    /// Nothing names the plugin then that did not before.
    pub fn install(&self, program: &Path, options: &Options) -> Result<Done, InstallError> {
        let network = self.network()?;
        let copy = self.program();
        let source = File::open(program).map_err(at(program))?;
        let executable = Permissions::from_mode(0o755);
        atomic::replace(&copy, Some(executable), source).map_err(at(&copy))?;
        let plugin = options.plugin();
        let changed = change(&network, |text| list::with(text, &plugin))?;
        Ok(Done {
            program: copy,
            changed: changed.then_some(network).into_iter().collect(),
        })
    }

    /// Takes it out of every list, and then away.
    ///
    /// # Errors
    /// The program stays as long as a list may name it.
    pub fn remove(&self) -> Result<Done, InstallError> {
        let mut changed = Vec::new();
        for network in self.networks()? {
            if has_extension(&network, "conflist")
                && names_us(&network)?
                && change(&network, list::without)?
            {
                changed.push(network);
            }
        }
        let program = self.program();
        match fs::remove_file(&program) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&program)(error)),
            _ => Ok(Done { program, changed }),
        }
    }

    fn program(&self) -> PathBuf {
        self.programs.join(NAME)
    }

    fn networks(&self) -> Result<Vec<PathBuf>, InstallError> {
        let entries = fs::read_dir(&self.networks).map_err(at(&self.networks))?;
        let paths = entries.map(|entry| Ok(entry?.path()));
        let mut paths: Vec<PathBuf> = paths
            .collect::<io::Result<_>>()
            .map_err(at(&self.networks))?;
        paths.retain(|path| CONFIGS.iter().any(|known| has_extension(path, known)));
        paths.sort_unstable();
        Ok(paths)
    }

    fn network(&self) -> Result<PathBuf, InstallError> {
        let first = self.networks()?.into_iter().next();
        let first = first.ok_or_else(|| InstallError::NoNetwork(self.networks.clone()))?;
        if has_extension(&first, "conflist") {
            Ok(first)
        } else {
            Err(InstallError::NoList(first))
        }
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// A list that somebody else has broken and that does not is left alone.
fn names_us(network: &Path) -> Result<bool, InstallError> {
    let text = fs::read_to_string(network).map_err(at(network))?;
    Ok(text.contains(NAME))
}

/// `true`: it was changed.
fn change(
    network: &Path,
    how: impl FnOnce(&str) -> Result<Option<String>, ListError>,
) -> Result<bool, InstallError> {
    let text = fs::read_to_string(network).map_err(at(network))?;
    let changed = how(&text).map_err(|source| InstallError::List {
        path: network.to_owned(),
        source,
    })?;
    let Some(changed) = changed else {
        return Ok(false);
    };
    let permissions = fs::metadata(network).map_err(at(network))?.permissions();
    atomic::replace(network, Some(permissions), changed.as_bytes()).map_err(at(network))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;

    fn node() -> (tempfile::TempDir, Place, Options) {
        let top = tempfile::tempdir().unwrap();
        let place = Place {
            programs: top.path().join("bin"),
            networks: top.path().join("net.d"),
        };
        fs::create_dir(&place.programs).unwrap();
        fs::create_dir(&place.networks).unwrap();
        let options = Options {
            socket: "/run/zt-agent/agent.sock".into(),
            timeout: 30,
        };
        (top, place, options)
    }

    #[test]
    fn what_is_installed_is_installed_once_and_removed_again() {
        let (top, place, options) = node();
        let program = top.path().join("zt-agent");
        fs::write(&program, "program").unwrap();
        let (first, second) = (
            place.networks.join("05-a.conflist"),
            place.networks.join("10-b.conflist"),
        );
        fs::write(&first, LIST).unwrap();
        fs::write(&second, LIST).unwrap();
        fs::set_permissions(&first, Permissions::from_mode(0o640)).unwrap();
        let done = place.install(&program, &options).unwrap();
        assert_eq!(done.changed, std::slice::from_ref(&first));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&done.program), mode(&first)), (0o755, 0o640));
        assert_eq!(fs::read(&done.program).unwrap(), b"program");
        let list: Value = serde_json::from_str(&fs::read_to_string(&first).unwrap()).unwrap();
        assert_eq!(list["plugins"][1], options.plugin());
        assert_eq!(fs::read_to_string(&second).unwrap(), LIST);

        fs::write(&program, "newer").unwrap();
        let again = place.install(&program, &options).unwrap();
        assert_eq!(again.changed, Vec::<PathBuf>::new());
        assert_eq!(fs::read(&done.program).unwrap(), b"newer");

        assert_eq!(
            place.remove().unwrap().changed,
            std::slice::from_ref(&first)
        );
        assert_eq!(fs::read_to_string(&first).unwrap(), LIST);
        assert!(!done.program.exists());
        assert_eq!(place.remove().unwrap().changed, Vec::<PathBuf>::new());
        for (directory, files) in [(&place.programs, 0), (&place.networks, 2)] {
            assert_eq!(fs::read_dir(directory).unwrap().count(), files);
        }
    }

    #[test]
    fn a_network_that_is_none_or_no_list_is_named() {
        let (_top, place, options) = node();
        let program = Path::new("/proc/self/exe");
        let install = || place.install(program, &options).unwrap_err().to_string();
        assert!(install().contains("no network yet"));
        fs::write(place.networks.join("99-z.conflist"), "{").unwrap();
        assert!(install().contains("99-z.conflist: it is not understood"));
        fs::write(place.networks.join("10-a.conf"), "{}").unwrap();
        assert!(install().contains("10-a.conf is the network that the runtime uses"));
        fs::remove_dir_all(&place.networks).unwrap();
        assert!(install().contains("is the node's directory mounted"));
    }
}
