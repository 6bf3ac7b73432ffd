//! The rows, by theme.

mod calls;
mod earlier;
mod fragments;
mod frames;
mod headers;
mod icmp;
mod inwards;
mod neighbours;
mod places;
mod raw;
mod spoofed;
mod strangers;
