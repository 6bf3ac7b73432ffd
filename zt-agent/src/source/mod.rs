//! Where the node model comes from: directories and files, watched.

pub mod atomic;
pub mod file;
pub mod policies;
pub mod quarantine;
