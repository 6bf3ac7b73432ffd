//! Random policies and packets: the programs in the kernel, and what was
//! written about them, say the same.
//!
//! - `first_packets`: every packet is the first of its flow; against the
//!   reference evaluator.
//! - `sequences`: packets of a few flows, with changes of policy in between;
//!   against a model of the flow table.
//!
//! A run draws its own seed and names it when it fails; `ZT_SEED=N` repeats it.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

#[path = "differential/first_packets.rs"]
mod first_packets;
#[path = "differential/rig.rs"]
mod rig;
#[path = "differential/sequences.rs"]
mod sequences;
