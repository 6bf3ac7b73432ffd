//! The running agent: what it takes, and whether its audit trail keeps up.
//!
//! | file | job |
//! |---|---|
//! | `stage` | a real agent, a workload, and many others elsewhere |
//! | `produce` | the workload's process, which makes decisions |
//! | `size` | memory and processor, idle and while workloads come and go |
//! | `trail` | decisions made, recorded and lost |
//! | `bare` | the same calls, and a ring with nothing else |
//! | `report` | the same for people |

pub mod bare;
pub mod produce;
pub mod report;
pub mod size;
mod stage;
pub mod trail;
