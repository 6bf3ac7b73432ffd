//! Prometheus metrics and health, on the address that `listen` names.
//!
//! | file | job |
//! |---|---|
//! | `family` | one metric family, built by hand |
//! | `decisions` | the kernel's exact counters |
//! | `kernel` | how full the maps are |
//! | `state` | what the agent knows of itself |
//! | `latency` | how long decisions take |
//! | `server` | `/metrics`, `/healthz`, `/readyz` |

pub mod decisions;
pub mod family;
pub mod kernel;
pub mod latency;
#[cfg(test)]
mod mentions;
pub mod server;
pub mod state;

use std::sync::Arc;

use prometheus::{Registry, TextEncoder};

use crate::{
    agent::board::Board,
    kernel::{KernelError, counters::Counters, pins::Pins},
};

/// Everything that a scrape reads.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// # Errors
    /// When the counters are not pinned.
    ///
    /// # Panics
    /// When two collectors name one metric: a mistake in this folder.
    pub fn new(pins: &Pins, board: &Arc<Board>) -> Result<Self, KernelError> {
        let registry = Registry::new();
        let collectors: [Box<dyn prometheus::core::Collector>; 3] = [
            Box::new(decisions::Decisions::new(
                Counters::open(pins)?,
                board.clone(),
            )),
            Box::new(kernel::Maps::new(pins.clone())),
            Box::new(state::State::new(board.clone())),
        ];
        for collector in collectors {
            registry
                .register(collector)
                .expect("every metric has one collector");
        }
        Ok(Self { registry })
    }

    /// The text that a scrape gets. Takes milliseconds to tens of them: it
    /// walks maps.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "cannot encode the metrics");
        }
        text
    }
}
