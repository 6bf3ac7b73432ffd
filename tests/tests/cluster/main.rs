//! Against a real API server: what Kubernetes itself makes of our resources.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod boot;
mod chart;
mod cni;
mod control_plane;
mod definitions;
mod denials;
mod deploy;
mod host;
mod identity;
mod leases;
mod policies;
mod proxy;
mod relay;
mod resources;
mod scale;
mod services;
mod stage;
