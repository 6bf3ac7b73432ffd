//! Cutting connections that may no longer be.
//!
//! The kernel programs stop such a connection on its next packet, and nothing
//! here is needed for that. But its owner would wait for its own timeout:
//! so the sockets are looked at after everything that narrows, and those whose
//! flow is denied now are ended. The owner gets `ECONNABORTED`.
//!
//! | file | job |
//! |---|---|
//! | `verdict` | whether a socket's flow is still allowed; pure |
//! | `far` | who is at the other end of a socket; pure |
//! | `places` | the namespaces and cgroups in which sockets of ours can be |
//! | `cutter` | the thread that lists sockets, and ends them |
//!
//! The kernel's own reset towards the peer is a packet of a denied flow: our
//! programs drop it, and record that. So every connection that was idle when
//! it was cut has its denial in the audit trail.

pub mod cutter;
pub mod far;
pub mod places;
pub mod verdict;
