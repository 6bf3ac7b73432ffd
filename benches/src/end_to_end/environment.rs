//! On what traffic was measured, and beside what.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::{self, Machine};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub machine: Machine,
    /// CPUs of client and server.
    pub pinned: [usize; 2],
    pub nft: String,
}

impl Environment {
    /// # Errors
    /// When there is no nft.
    pub fn new(machine: Machine, pinned: [usize; 2]) -> Result<Self> {
        Ok(Self {
            machine,
            pinned,
            nft: nft()?,
        })
    }

    /// What a report begins with.
    #[must_use]
    pub fn head(&self) -> String {
        let mut doubts = self.machine.doubts();
        if self.pinned[0] == self.pinned[1] {
            doubts.push("client and server share a CPU".to_owned());
        }
        machine::head(self, &doubts)
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            machine,
            pinned: [client, server],
            nft,
        } = self;
        write!(
            f,
            "{machine}; {nft}; client on CPU {client}, server on {server}"
        )
    }
}

fn nft() -> Result<String> {
    let output = Command::new("nft").arg("--version").output();
    let output = output.context("cannot run nft: install Debian's nftables")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split(" (")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned())
}
