//! Decision events become the audit trail.
//!
//! ```text
//! Event ─> record ─> intake (account, fold) ─> sink's queue ─> chain ─> files
//! ```
//!
//! The trail is provably complete: [`account`] says how, [`chain`] how a line
//! is checked, and [`verify`] does it.

pub mod account;
pub mod chain;
pub mod fold;
pub mod intake;
pub mod key;
pub mod names;
pub mod record;
pub mod rotate;
pub mod sink;
#[cfg(test)]
mod testing;
mod trail;
pub mod verify;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use account::{Cause, Losses};
pub use names::Names;
pub use record::{KernelTotals, Record};
pub use trail::{KernelState, Trail, TrailConfig, TrailStatus};
pub use verify::{Report, verify, verify_path};

/// Why there is no audit trail.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(
        "cannot {action} {path}: {error}; check that the agent may write there and that the disk has room"
    )]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error(
        "{0} is being written by another agent; stop that one, or give this one another audit file"
    )]
    Locked(PathBuf),
    #[error("{path} is no Ed25519 key in PEM ({what}); restore it, or move it away for a new one")]
    Key { path: PathBuf, what: String },
    #[error(
        "others may read the signing key {0}; run `chmod 600 {0}`, or move it away for a new one if that happened long ago"
    )]
    KeyMode(PathBuf),
    #[error("cannot start the audit writer: {0}; look at the limits on threads")]
    Thread(io::Error),
}

impl AuditError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io {
            action,
            path,
            error,
        }
    }
}
