//! The compiler: a pure function from the node model to the exact map contents.

pub mod tables;

pub use tables::Tables;
