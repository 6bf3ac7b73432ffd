//! The running agent, end to end: the real program in a process of its own, its
//! files edited, its commands run, killed and started again, while services talk.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod policy_files;
mod restart;
mod stage;
