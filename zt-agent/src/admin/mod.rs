//! The root-only Unix socket: live decisions, enrolment, reload, status.
//!
//! One JSON object per line. The client sends one request, then reads.

pub mod client;
mod descriptor;
pub mod protocol;
pub mod server;

use std::path::{Path, PathBuf};

/// Where the socket is.
#[must_use]
pub fn socket(runtime_directory: &Path) -> PathBuf {
    runtime_directory.join("agent.sock")
}
