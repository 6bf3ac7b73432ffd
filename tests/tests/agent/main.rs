//! The running agent, end to end: the real program in a process of its own, its
//! files edited, its commands run, killed and started again, while services talk.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod audit;
mod exec;
mod explain;
mod first_frame;
mod interfaces;
mod modes;
mod numbers;
mod observe;
mod policy_files;
mod quarantine;
mod restart;
mod stage;
mod stranger;
