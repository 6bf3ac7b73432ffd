//! A packet that watches how it is read.

use std::{cell::Cell, fmt};

use zt_common::packet::Bytes;

/// A packet in memory, with something else behind it.
pub struct Recorder<'a> {
    packet: &'a [u8],
    /// What every byte behind the packet is.
    behind: u8,
    outside: Cell<Option<Read>>,
}

/// A read that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    offset: u32,
    length: usize,
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a read of {} bytes at {}", self.length, self.offset)
    }
}

impl<'a> Recorder<'a> {
    pub fn new(packet: &'a [u8], behind: u8) -> Self {
        Self {
            packet,
            behind,
            outside: Cell::new(None),
        }
    }

    /// The first read that went past the packet, and was refused.
    pub fn outside(&self) -> Option<Read> {
        self.outside.get()
    }

    fn byte(&self, index: u64) -> u8 {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.packet.get(index).copied().unwrap_or(self.behind)
    }
}

impl Bytes for Recorder<'_> {
    /// A refused read leaves what lies behind the packet in `into`, as a reader
    /// without bounds would find it: whoever uses it nevertheless is caught.
    fn fill<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        let mut end = u64::from(offset);
        for byte in into.iter_mut() {
            *byte = self.byte(end);
            end += 1;
        }
        let inside = usize::try_from(end).is_ok_and(|end| end <= self.packet.len());
        if !inside && self.outside.get().is_none() {
            self.outside.set(Some(Read { offset, length: N }));
        }
        inside
    }
}
