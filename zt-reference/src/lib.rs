//! A second opinion on what a policy means.
//!
//! [`evaluate()`] answers one question by walking every policy and every rule,
//! straight from the written meaning of a policy. It shares no code with the
//! compiler, the difference or the kernel's decision, so that a differential
//! test between them can find a mistake in either. It is slow on purpose:
//! nothing is precomputed, nothing is cached.
//!
//! [`generate`] makes the small hostile worlds that such a test asks about.

mod evaluate;
pub mod generate;
mod matching;
mod peer;

pub use evaluate::{Answer, Question, evaluate};
pub use peer::Peer;
