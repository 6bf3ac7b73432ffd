//! The node's key, which signs checkpoints.
//!
//! `audit-key.pem` (PKCS #8, 0600) is made at the first start; beside it lies
//! `audit-key.pub.pem` (0644), for `zt-agent audit verify` and for keeping
//! elsewhere: whoever can replace both files can sign a trail of their own.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey,
        spki::der::pem::LineEnding,
    },
};

use super::AuditError;

const PRIVATE: &str = "audit-key.pem";
const PUBLIC: &str = "audit-key.pub.pem";

/// Where the public key lies.
#[must_use]
pub fn public_path(directory: &Path) -> PathBuf {
    directory.join(PUBLIC)
}

/// Reads a public key from PEM.
///
/// # Errors
/// If it cannot be read or is no Ed25519 key.
pub fn read_public(path: &Path) -> Result<VerifyingKey, AuditError> {
    let text = fs::read_to_string(path).map_err(AuditError::io("read", path))?;
    VerifyingKey::from_public_key_pem(&text).map_err(|error| AuditError::Key {
        path: path.to_owned(),
        what: error.to_string(),
    })
}

/// Reads the node's key, or makes it; sees to it that the public one lies
/// beside it. `true`: it was made now.
///
/// # Errors
/// If the directory cannot be written, the key is no Ed25519 key, or others
/// may read it.
pub fn load_or_create(directory: &Path) -> Result<(SigningKey, bool), AuditError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .map_err(AuditError::io("create", directory))?;
    let path = directory.join(PRIVATE);
    let (key, made) = match File::open(&path) {
        Ok(file) => (read_private(file, &path)?, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (create(&path)?, true),
        Err(error) => return Err(AuditError::io("open", &path)(error)),
    };
    write_public(&key, &public_path(directory))?;
    Ok((key, made))
}

fn read_private(mut file: File, path: &Path) -> Result<SigningKey, AuditError> {
    let io_error = |error| AuditError::io("read", path)(error);
    let mode = file.metadata().map_err(io_error)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(AuditError::KeyMode(path.to_owned()));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(io_error)?;
    SigningKey::from_pkcs8_pem(&text).map_err(|error| AuditError::Key {
        path: path.to_owned(),
        what: error.to_string(),
    })
}

fn create(path: &Path) -> Result<SigningKey, AuditError> {
    let mut seed = [0; 32];
    // Unlike /dev/urandom it waits, early at boot, until there is entropy.
    let random = Path::new("/dev/random");
    File::open(random)
        .and_then(|mut file| file.read_exact(&mut seed))
        .map_err(AuditError::io("read", random))?;
    let key = SigningKey::from_bytes(&seed);
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|error| AuditError::Key {
            path: path.to_owned(),
            what: error.to_string(),
        })?;
    replace(path, pem.as_bytes(), 0o600)?;
    tracing::info!(path = %path.display(), "made the key that signs audit checkpoints");
    Ok(key)
}

fn write_public(key: &SigningKey, path: &Path) -> Result<(), AuditError> {
    let pem = key
        .verifying_key()
        .to_public_key_pem(LineEnding::LF)
        .map_err(|error| AuditError::Key {
            path: path.to_owned(),
            what: error.to_string(),
        })?;
    if fs::read_to_string(path).is_ok_and(|there| there == pem) {
        return Ok(());
    }
    replace(path, pem.as_bytes(), 0o644)
}

/// Writes a whole file or none: a crash must not leave half a key.
fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<(), AuditError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let _ = fs::remove_file(&new);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)
        .and_then(|mut file| {
            // Whatever the umask says.
            file.set_permissions(PermissionsExt::from_mode(mode))?;
            file.write_all(contents)?;
            file.sync_all()
        })
        .map_err(AuditError::io("write", &new))?;
    fs::rename(&new, path).map_err(AuditError::io("rename", &new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_key_is_made_once_and_only_its_owner_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let (key, made) = load_or_create(&state).unwrap();
        assert!(made);
        assert_eq!(mode(&state.join(PRIVATE)), 0o600);
        assert_eq!(mode(&state.join(PUBLIC)), 0o644);
        let (again, made) = load_or_create(&state).unwrap();
        assert_eq!((again.to_bytes(), made), (key.to_bytes(), false));
        let public = read_public(&public_path(&state)).unwrap();
        assert_eq!(public, key.verifying_key());
    }

    #[test]
    fn two_nodes_have_two_keys() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (load_or_create(a.path()), load_or_create(b.path()));
        assert_ne!(a.unwrap().0.to_bytes(), b.unwrap().0.to_bytes());
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        load_or_create(directory.path()).unwrap();
        let path = directory.path().join(PRIVATE);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = load_or_create(directory.path()).unwrap_err();
        assert!(matches!(error, AuditError::KeyMode(_)), "{error}");
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn a_lost_public_key_is_written_again_and_a_broken_private_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        load_or_create(directory.path()).unwrap();
        fs::remove_file(directory.path().join(PUBLIC)).unwrap();
        load_or_create(directory.path()).unwrap();
        assert!(directory.path().join(PUBLIC).exists());
        fs::write(directory.path().join(PRIVATE), "nonsense").unwrap();
        let error = load_or_create(directory.path()).unwrap_err();
        assert!(matches!(error, AuditError::Key { .. }), "{error}");
    }
}
