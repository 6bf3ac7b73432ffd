//! What got around others' enforcement: one test of ours for each.
//!
//! | advisory | what went wrong there | test |
//! |---|---|---|
//! | CVE-2023-27595 | the filters were gone for a moment while the agent started again | [`restart`] |
//! | CVE-2024-42488 | which event came first decided what was enforced | [`order`] |
//! | CVE-2023-39347, GHSA-pfhr-pccp-hwmh | a label that a user may set was taken for one that only the system sets | [`names`] |
//! | CVE-2026-39350 | the `.` of a service account matched any character | [`names`] |
//! | CVE-2021-39155 | names were compared by case where case means nothing | [`names`] |
//! | CVE-2024-47825 | a narrow allowed CIDR defeated the denied one around it | [`addresses`] |
//! | CVE-2023-27594 | an IPv6 source that nobody knew was taken for the node | [`addresses`] |
//! | CVE-2024-52529 | of overlapping port ranges only one was enforced | [`ports`] |
//! | GHSA-c66w-hq56-4q97 | an allowed echo's identifier let something else pass | [`icmp`] |
//! | CVE-2025-64715 | a set that resolved to nobody was not written, and nothing means everybody | [`empty`] |
//! | CVE-2022-21679 | one half of an upgrade did not know what the other half wrote | [`old_maps`] |

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

#[path = "peers/addresses.rs"]
mod addresses;
#[path = "peers/empty.rs"]
mod empty;
#[path = "peers/icmp.rs"]
mod icmp;
#[path = "peers/lab.rs"]
mod lab;
#[path = "peers/names.rs"]
mod names;
#[path = "peers/old_maps.rs"]
mod old_maps;
#[path = "peers/order.rs"]
mod order;
#[path = "peers/ports.rs"]
mod ports;
#[path = "peers/restart.rs"]
mod restart;
#[expect(dead_code, reason = "shared with the tests of the running agent")]
#[path = "agent/stage.rs"]
mod stage;
