//! The rows, by theme.

mod calls;
mod earlier;
mod frames;
mod neighbours;
mod places;
mod raw;
mod spoofed;
mod strangers;
