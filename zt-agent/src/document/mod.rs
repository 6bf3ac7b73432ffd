//! Documents at the edge: YAML in, model types out, positions kept.
//!
//! Nothing behind this module knows YAML. A document is accepted as a whole
//! or refused with every problem that was found in it.

mod address;
mod cgroup;
pub mod config;
mod field;
pub mod identities;
mod metadata;
pub mod policy;
mod ports;
#[cfg(test)]
mod properties;
pub mod render;
mod rule;
mod selector;
pub mod text;
pub mod words;
mod yaml;

pub use config::Config;
pub use identities::IdentityFile;
pub use text::SourceFile;

/// The version that every document must name.
pub const API_VERSION: &str = "zt.hanzo.ai/v1";
