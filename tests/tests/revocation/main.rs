//! What is taken away ends what is open: connections, busy and idle, in both
//! directions, and a busy stream of datagrams. Their owners are told at once.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod causes;
mod covered;
mod scene;
mod shared;
#[path = "../agent/stage.rs"]
#[expect(dead_code, reason = "the tests of the running agent use the rest")]
mod stage;
