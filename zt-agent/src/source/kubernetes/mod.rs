//! Workloads from Kubernetes: who runs here and who is elsewhere, as the API
//! server says it and this node's cgroups show it.
//!
//! ```text
//! watches ─> tables ─> cluster ─> view ─┐
//!                                       ├─> pods ─> the same as an identity file gives
//! cgroups, namespaces, interfaces ──────┘
//! ```
//!
//! | file | job |
//! |---|---|
//! | `objects` | what is kept of pods, nodes and namespaces |
//! | `table` | the objects of one kind, from what a watch tells |
//! | `ranges` | which node may give which addresses to its pods |
//! | `cluster` | all objects, and the view of one node |
//! | `cgroup` | from a cgroup's path to a pod |

pub mod cgroup;
pub mod cluster;
pub mod objects;
mod ranges;
mod table;

pub use table::Change;
