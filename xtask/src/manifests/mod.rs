//! What is in `deploy/`, checked by the programs that read it.
//!
//! | file | job |
//! |---|---|
//! | `tools` | promtool and Helm, made ready and handed over |
//! | `yaml` | documents as data |
//! | `alerts` | alerts and dashboard, by promtool (tests only) |
//! | `canary` | the overlay with two DaemonSets, by kubectl (tests only) |

#[cfg(test)]
mod alerts;
#[cfg(test)]
mod canary;
pub mod tools;
#[cfg(test)]
pub mod yaml;
