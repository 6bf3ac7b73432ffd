//! On what it was measured.

use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::idle;

/// More than this of the processors' time for somebody else, and the figures
/// are in doubt.
const DOUBTFUL: f64 = 0.05;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Release and build of the kernel.
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    /// Of client and server.
    pub pinned: [usize; 2],
    pub agent: String,
    pub nft: String,
    /// Without optimisation the figures mean nothing.
    pub optimised: bool,
    /// Whether the kernel compiles programs; otherwise it interprets them.
    pub compiled_programs: bool,
    /// How much of the processors others used before the first round, 0 to 1.
    pub busy: f64,
    /// How much the machine below this one took during the rounds, 0 to 1.
    pub stolen: f64,
}

impl Environment {
    /// # Errors
    /// When the kernel does not say, or there is no nft.
    pub fn look(pinned: [usize; 2]) -> Result<Self> {
        let kernel = nix::sys::utsname::uname().context("uname")?;
        let release = kernel.release().to_string_lossy();
        let version = kernel.version().to_string_lossy();
        let cpus = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable");
        Ok(Self {
            kernel: format!("Linux {release} {version}"),
            cpu: model(&cpus).unwrap_or("unknown CPU").to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            pinned,
            agent: concat!("zt-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            nft: nft()?,
            optimised: !cfg!(debug_assertions),
            // Where it cannot be asked, it is not a choice: always on.
            compiled_programs: jit.map_or(true, |value| value.trim() != "0"),
            busy: idle::busy()?,
            stolen: 0.0,
        })
    }

    /// What makes the figures doubtful; empty on an idle machine.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if !self.optimised {
            doubts.push("built without optimisation".to_owned());
        }
        if self.pinned[0] == self.pinned[1] {
            doubts.push("client and server share a CPU".to_owned());
        }
        if !self.compiled_programs {
            doubts.push("the kernel interprets programs".to_owned());
        }
        for (part, what) in [
            (self.busy, "others used the processors at the start"),
            (self.stolen, "the processors were taken from this machine"),
        ] {
            if part > DOUBTFUL {
                doubts.push(format!("{what} ({:.0}%)", part * 100.0));
            }
        }
        doubts
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            cpu,
            cpus,
            pinned: [client, server],
            agent,
            nft,
            ..
        } = self;
        write!(
            f,
            "{kernel}; {cpu}, {cpus} CPUs (client on {client}, server on {server}); {agent}; {nft}"
        )
    }
}

fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_machine_leaves_no_doubt_and_a_busy_one_does() {
        let idle = Environment {
            optimised: true,
            compiled_programs: true,
            pinned: [0, 1],
            busy: 0.01,
            ..Environment::default()
        };
        assert_eq!(idle.doubts(), Vec::<String>::new());
        let busy = Environment { busy: 0.5, ..idle };
        let said = "others used the processors at the start (50%)";
        assert_eq!(busy.doubts(), [said]);
    }

    #[test]
    fn the_model_is_found_in_cpuinfo() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t: x\n";
        assert_eq!(model(text), Some("A CPU @ 2 GHz"));
        assert_eq!(model("processor: 0\n"), None);
    }
}
