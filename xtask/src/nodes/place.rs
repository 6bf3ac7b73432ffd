//! The nodes that there are, and their addresses.

use std::fmt;
use std::net::Ipv4Addr;

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    A,
    B,
}

impl Place {
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    pub fn name(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    /// Towards the other nodes.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 20, 0, 10 + self.number())
    }

    /// The range of its pods.
    pub fn pods(self) -> String {
        format!("10.244.{}.0/24", self.number())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
