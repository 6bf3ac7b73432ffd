//! On what traffic was measured, and beside what.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    machine::{self, Machine},
    quiet::Quiet,
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub machine: Machine,
    /// CPUs of client and server.
    pub pinned: [usize; 2],
    pub nft: String,
    /// Of what is measured in windows: not all of the time counts.
    pub quiet: Option<Quiet>,
}

impl Environment {
    /// # Errors
    /// When there is no nft.
    pub fn new(machine: Machine, pinned: [usize; 2]) -> Result<Self> {
        Ok(Self {
            machine,
            pinned,
            nft: nft()?,
            quiet: None,
        })
    }

    /// Where only these windows count.
    #[must_use]
    pub fn within(self, quiet: Quiet) -> Self {
        Self {
            machine: Machine {
                stolen: 0.0,
                ..self.machine
            },
            quiet: Some(quiet),
            ..self
        }
    }

    /// What a report begins with.
    #[must_use]
    pub fn head(&self) -> String {
        /// More than this part of the windows disturbed, and the figures are in doubt.
        const DOUBTFUL: f64 = 0.1;
        let mut doubts = self.machine.doubts();
        let disturbed = self.quiet.as_ref().map_or(0.0, Quiet::disturbed_part);
        if disturbed > DOUBTFUL {
            let part = disturbed * 100.0;
            doubts.push(format!(
                "the processors were taken from this machine in {part:.0}% of the windows"
            ));
        }
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
            quiet,
        } = self;
        write!(
            f,
            "{machine}; {nft}; client on CPU {client}, server on {server}"
        )?;
        match quiet {
            Some(quiet) => write!(f, "; {quiet}"),
            None => Ok(()),
        }
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
