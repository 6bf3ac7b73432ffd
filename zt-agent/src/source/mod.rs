//! Where the node model comes from: files or a cluster, watched; and this
//! machine itself.
//!
//! | file | job |
//! |---|---|
//! | `file`, `atomic` | read a file, replace a file |
//! | `policies` | policy files and directories |
//! | `documents` | policies and identity file together |
//! | `resources` | policies of the cluster: which version of each counts |
//! | `accepted` | the last documents that were put in force, kept on disk |
//! | `identity` | where identities come from |
//! | `identities` | cgroups, units and namespaces into kernel ids |
//! | `units` | the cgroups of systemd units |
//! | `netns` | network namespaces: a look inside, and their cookies |
//! | `interfaces` | which of our interfaces lead to which namespace |
//! | `kubernetes` | pods, nodes, namespaces and policies, watched |
//! | `node` | this machine's addresses, clocks, name |
//! | `clock` | what the wall clock showed at most |
//! | `quarantine` | who is cut off |
//! | `inotify` | tells what it was asked to |
//! | `watch` | says when a file changed |

pub mod accepted;
pub mod atomic;
pub mod clock;
pub mod documents;
pub mod file;
pub mod identities;
pub mod identity;
mod inotify;
pub mod interfaces;
pub mod kubernetes;
pub mod netns;
pub mod node;
pub mod policies;
pub mod quarantine;
pub mod resources;
mod units;
pub mod watch;
