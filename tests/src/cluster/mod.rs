//! A real control plane for tests: etcd and kube-apiserver on loopback, without
//! nodes. What runs in a pod is the test's business. Other parts of Kubernetes
//! are started beside them where a test wants them.
//!
//! The programs are those that `cargo xtask setup` made; it hands their paths over
//! in [`KUBERNETES_VARIABLE`] and [`ETCD_VARIABLE`].

pub mod child;
mod directory;
mod etcd;
mod helm;
mod kubectl;
mod nodes;
mod programs;
mod servers;
mod shared;

pub use helm::HELM_VARIABLE;
pub use kubectl::Answer;
pub use nodes::{Controllers, Outside, User};
pub use programs::{ETCD_VARIABLE, KUBERNETES_VARIABLE, Programs, is_ci};
pub use servers::Cluster;
pub use shared::shared;
