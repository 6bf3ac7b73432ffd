//! The inside of a virtual machine that runs the integration tests: what its
//! first process does, and what it says to the outside.
//!
//! It finds a [`Plan`], runs each binary as a process of its own, and says
//! [`Message`]s over the second serial port, where no kernel message can garble
//! them. A test that hangs or crashes is known by its name, and the others of its
//! binary run nevertheless.

mod binary;
mod harness;
pub mod lines;
pub mod machine;
pub mod programs;
mod progress;
pub mod suite;

use serde::{Deserialize, Serialize};

/// Where the outside puts the plan.
pub const PLAN: &str = "/suite/plan.json";

/// The directory of the test binaries, below that of the programs they start:
/// as cargo has them.
pub const BINARIES: &str = "/suite/deps";

/// What the machine is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Run only tests whose `BINARY::NAME` contains one of these; none: all.
    pub filter: Vec<String>,
    /// And of those that this speaks of a share.
    pub share: Share,
    /// How many binaries run at a time.
    pub binaries: usize,
    /// How many tests of a binary run at a time.
    pub threads: usize,
    /// After how long a test counts as hanging.
    pub test_seconds: u64,
    /// See [`crate::patience`].
    pub patience: u32,
}

/// Tests of which each runs on one of several machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Those whose `BINARY::NAME` contains one of these.
    pub tests: Vec<String>,
    /// Which of the machines this is, from 0.
    pub machine: usize,
    pub machines: usize,
}

/// What the machine says, as JSON, a line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The first process runs.
    Booted {
        release: String,
    },
    /// What became of the kernel programs.
    Programs(Programs),
    /// The tests of a binary that are going to run. Each gets a [`Message::Test`].
    Planned {
        binary: String,
        tests: Vec<String>,
    },
    Test(Test),
    /// The end of what a test wrote that failed: its binary says it last.
    Output {
        binary: String,
        name: String,
        text: String,
    },
    /// Something other than a test went wrong.
    Problem(String),
    /// Nothing follows.
    Done,
}

/// Loading the kernel programs, without attaching them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Programs {
    /// Instructions that the verifier walked, by program.
    Accepted(Vec<(String, u32)>),
    /// The end of the error and of the verifier's log.
    Rejected(String),
}

/// One test that ran, or did not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Test {
    pub binary: String,
    pub name: String,
    pub outcome: Outcome,
    pub seconds: f64,
    /// Why it has no result of its own, if it hung or crashed; see also
    /// [`Message::Output`].
    pub output: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Passed,
    Failed,
    /// It did not end, and was killed.
    Hung,
    /// With what was probed.
    Skipped(String),
    /// Marked so in the source; it runs nowhere by itself.
    Ignored,
}
