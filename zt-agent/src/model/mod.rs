//! The node model: plain data, what the sources say and the compiler reads.
//!
//! Nothing here knows YAML, Kubernetes or the kernel's maps.

pub mod interface_pattern;
pub mod names;
pub mod node;
pub mod policy;
pub mod problem;
pub mod service;
pub mod spiffe;
pub mod template;

pub use interface_pattern::{InterfacePattern, NoPattern};
pub use names::{Name, Numbers};
pub use node::{Endpoint, InterfaceSpec, Mode, NodeModel, Party, WorkloadSpec};
pub use policy::{
    Policy, PolicyMode, Ports, Position, Rule, RuleAction, RuleRef, Selector, Target,
};
pub use problem::{Problem, Severity};
pub use service::{Member, Service};
pub use spiffe::{SpiffeError, SpiffeId, SpiffePattern};
pub use template::{Place, Template};
