//! Against a real API server: what Kubernetes itself makes of our resources.

mod control_plane;
mod identity;
mod relay;
mod stage;
