//! The kernel side of the agent: programs, maps, links.

pub mod object;
