//! What the processes are told and what they answer, a line of JSON each, and
//! the few bytes that they exchange.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::workload::Workload;

/// Bytes of a request and of a response.
pub const MESSAGE: usize = 64;

/// What the first message of a connection asks the server to do with it, in
/// its first byte.
pub mod kind {
    /// Send it back and close: the server is who closes first, and so keeps
    /// the connection's end for a minute, not the client.
    pub const ONCE: u8 = 0;
    /// Send back every message, before the next connection is taken.
    pub const ECHO: u8 = 1;
    /// Send back every message, beside other connections.
    pub const BESIDE: u8 = 2;
    /// Read to the end, and tell how many bytes came.
    pub const COUNT: u8 = 3;
}

/// What the client is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    pub task: Task,
    pub server: SocketAddr,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Task {
    /// Does it for so long and says how it went.
    Measure {
        workload: Workload,
        milliseconds: u64,
    },
    /// Exchanges one message by TCP, or gives up after so long.
    TryTcp {
        milliseconds: u64,
    },
    TryUdp {
        milliseconds: u64,
    },
}

/// What it answers; an error says what did not work.
pub type Answer = Result<Outcome, String>;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    Measured(Measured),
    /// Whether the message came back.
    Tried(bool),
}

/// What came of one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// In the workload's unit.
    pub rate: f64,
    /// Of one operation, microseconds: half were faster. 0 for a stream.
    pub median_us: f64,
    /// 99 of 100 were faster.
    pub p99_us: f64,
    /// Operations, or pieces of a stream.
    pub operations: u64,
    /// Datagrams without an answer.
    pub lost: u64,
}
