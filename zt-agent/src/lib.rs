//! The agent: sources → node model → compile → diff → maps; events → audit.
//!
//! Folders follow that flow; see ARCHITECTURE.md.

pub mod admin;
pub mod agent;
pub mod audit;
pub mod boot;
pub mod cli;
pub mod cni;
pub mod compile;
pub mod diff;
pub mod document;
pub mod explain;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod resource;
pub mod revoke;
pub mod source;
