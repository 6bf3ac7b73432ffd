//! What the kernel's maps mean, in the terms of policies. Pure: maps in,
//! answers out; the commands print them.
//!
//! | file | job |
//! |---|---|
//! | `names` | numbers into words, short or full |
//! | `said` | what the rows say of a pair, port by port |
//! | `changes` | what another state would say instead |
//! | `wanted` | what the policy files want, for the workloads that are there |
//! | `ends` | whom a question means, as one end sees the other |
//! | `decide` | the verdict at every end that this node governs |
//! | `behind` | what is said of everybody behind a port of a Service |
//! | `place` | which row of which map decides |
//! | `sentence` | the answer in one sentence |

pub mod behind;
pub mod changes;
pub mod decide;
pub mod ends;
pub mod names;
pub mod place;
pub mod said;
pub mod sentence;
pub mod wanted;

use std::collections::BTreeSet;

use zt_common::{identity::Number, state::Control, version::Generation};

use crate::{compile::Tables, model::Numbers};

/// The state that questions are asked about.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    pub tables: &'a Tables,
    pub numbers: &'a Numbers,
    pub quarantined: &'a BTreeSet<Number>,
    pub generation: Generation,
    pub control: &'a Control,
    /// `CLOCK_BOOTTIME` ns.
    pub now: u64,
}
