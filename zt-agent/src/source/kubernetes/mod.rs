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
//! | `objects` | what is kept of pods, nodes, namespaces and policies |
//! | `table` | the objects of one kind, from what a watch tells |
//! | `services` | who answers at a Service's addresses |
//! | `lingering` | who did until a moment ago |
//! | `governing` | which nodes say that they enforce everything, by their Leases |
//! | `ranges` | which node may give which addresses to its pods |
//! | `cluster` | all objects, and the view of one node |
//! | `cgroup` | from a cgroup's path to a pod |
//! | `tree` | this node's cgroups: its pods, and their processes |
//! | `netns` | the network namespace of a pod, now or as it was seen last |
//! | `attached` | the namespaces that the CNI plugin showed |
//! | `pods` | view and machine together: what to enrol |
//! | `wire` | objects as the API server sends them |
//! | `watch` | follows the API server |
//! | `health` | whether it is followed |
//! | `denials` | tells denials as Events on pods |
//! | `report` | says in policies' statuses what this node makes of them |
//! | `tally` | on how many nodes a policy is enforced, and which of them writes that |
//! | `sums` | writes it |
//! | `leases` | renews this node's Lease and reads the others' |
//! | `tree_watch` | says when a pod's cgroup is made or goes |
//! | `shared` | between the watches and the reconcile thread |
//! | `stub` | an API server of a few lines, for tests |

mod attached;
pub mod cgroup;
pub mod cluster;
#[cfg(feature = "kubernetes")]
mod denials;
#[cfg(feature = "kubernetes")]
mod governing;
pub mod health;
#[cfg(feature = "kubernetes")]
pub mod leases;
mod lingering;
mod netns;
pub mod objects;
mod pods;
mod ranges;
#[cfg(feature = "kubernetes")]
mod report;
mod services;
mod shared;
#[cfg(feature = "kubernetes")]
#[cfg(test)]
mod stub;
#[cfg(feature = "kubernetes")]
mod sums;
mod table;
pub mod tally;
mod tree;
pub mod tree_watch;
mod unsaid;
#[cfg(feature = "kubernetes")]
pub mod watch;
#[cfg(feature = "kubernetes")]
mod wire;

pub use attached::Shown;
pub use shared::{Shared, Unattached};
pub use table::Change;
