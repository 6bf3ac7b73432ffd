//! What is in `deploy/`, checked by the programs that read it.
//!
//! | file | job |
//! |---|---|
//! | `tools` | promtool and Helm, made ready and handed over |
//! | `yaml` | documents as data |
//! | `alerts` | alerts and dashboard, by promtool (tests only) |

#[cfg(test)]
mod alerts;
pub mod tools;
#[cfg(test)]
mod yaml;
