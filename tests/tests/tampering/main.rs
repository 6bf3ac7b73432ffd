//! Root alters what the agent wrote into the kernel, as bpftool would. It is
//! noticed, named, and put right where it can be.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod control;
mod cost;
mod interfaces;
mod links;
mod maps;
mod pins;
#[path = "../agent/stage.rs"]
#[expect(dead_code, reason = "the tests of the running agent use the rest")]
mod stage;
mod watched;
