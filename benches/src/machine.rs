//! On what it was measured.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::idle::{self, Ticks};

/// More than this of the processors' time for somebody else, and the figures
/// are in doubt.
const DOUBTFUL: f64 = 0.05;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Release and build of the kernel.
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub agent: String,
    /// Without optimisation the figures mean nothing.
    pub optimised: bool,
    /// Whether the kernel compiles programs; otherwise it interprets them.
    pub compiled_programs: bool,
    /// How much of the processors others used before the first round, 0 to 1.
    pub busy: f64,
    /// How much the machine below this one took during the rounds, 0 to 1.
    pub stolen: f64,
}

impl Machine {
    fn look() -> Result<Self> {
        let kernel = nix::sys::utsname::uname().context("uname")?;
        let release = kernel.release().to_string_lossy();
        let version = kernel.version().to_string_lossy();
        let cpus = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable");
        Ok(Self {
            kernel: format!("Linux {release} {version}"),
            cpu: model(&cpus).unwrap_or("unknown CPU").to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            agent: concat!("zt-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
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

    /// What a report begins with.
    #[must_use]
    pub fn head(&self) -> String {
        head(self, &self.doubts())
    }
}

/// What a report begins with: where it was measured, and why not to believe it.
#[must_use]
pub fn head(place: &impl fmt::Display, doubts: &[String]) -> String {
    if doubts.is_empty() {
        return format!("{place}\n");
    }
    format!(
        "{place}\n\n**Not to be relied on**: {}.\n",
        doubts.join("; ")
    )
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            cpu,
            cpus,
            agent,
            ..
        } = self;
        write!(f, "{kernel}; {cpu}, {cpus} CPUs; {agent}")
    }
}

/// The machine while something is measured on it.
#[derive(Debug)]
pub struct Watch {
    machine: Machine,
    start: Ticks,
}

impl Watch {
    /// # Errors
    /// When the kernel does not say.
    pub fn start() -> Result<Self> {
        Ok(Self {
            machine: Machine::look()?,
            start: Ticks::now()?,
        })
    }

    /// As it was until now.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn machine(&self) -> Result<Machine> {
        Ok(Machine {
            stolen: self.start.stolen_until(Ticks::now()?),
            ..self.machine.clone()
        })
    }
}

fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_machine_leaves_no_doubt_and_a_busy_one_does() {
        let idle = Machine {
            kernel: "Linux".to_owned(),
            optimised: true,
            compiled_programs: true,
            busy: 0.01,
            ..Machine::default()
        };
        assert_eq!(idle.head(), "Linux; , 0 CPUs; \n");
        let busy = Machine { busy: 0.5, ..idle };
        let said = "**Not to be relied on**: others used the processors at the start (50%).";
        assert!(busy.head().contains(said), "{}", busy.head());
    }

    #[test]
    fn the_model_is_found_in_cpuinfo() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t: x\n";
        assert_eq!(model(text), Some("A CPU @ 2 GHz"));
        assert_eq!(model("processor: 0\n"), None);
    }
}
