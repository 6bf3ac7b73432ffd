//! The sandbox in which tests and the demo run: cgroups, network namespaces,
//! bpffs mounts and processes of its own, all named after it, all removed with it.

pub mod actor;
pub mod agent;
pub mod bpffs;
pub mod cgroup;
pub mod cluster;
#[cfg(feature = "kernel")]
mod emptied;
pub mod feature;
pub mod guest;
pub mod interrupt;
mod named;
pub mod netns;
#[cfg(feature = "kernel")]
pub mod node;
pub mod packet;
pub mod patience;
#[cfg(feature = "kernel")]
pub mod pool;
pub mod process;
pub mod report;
pub mod sandbox;
pub mod stay;
pub mod stranger;
pub mod test_run;
pub mod wire;
pub mod workload;

pub use sandbox::Sandbox;
pub use workload::Workload;
