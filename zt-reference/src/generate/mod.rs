//! Small hostile worlds, and questions about them.
//!
//! Every model is one that the parser could have made. What it could not make
//! is not here: a deny with a deadline, a CIDR at both ends of a rule, port 0,
//! an IPv4-mapped prefix, two policies of one name.

mod policies;
mod pool;
mod questions;
mod worlds;

use proptest::prelude::*;

pub use questions::question;
pub use worlds::{NOW, World, world};

/// A world and one question about it.
pub fn case() -> impl Strategy<Value = (World, crate::Question)> {
    world().prop_flat_map(|world| {
        let question = question(&world);
        (Just(world), question)
    })
}

/// A world and `count` questions about it, for tests to which a world is dear.
pub fn case_of(count: usize) -> impl Strategy<Value = (World, Vec<crate::Question>)> {
    world().prop_flat_map(move |world| {
        let questions = prop::collection::vec(question(&world), count);
        (Just(world), questions)
    })
}
