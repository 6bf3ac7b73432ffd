//! What a node goes through: agents that die and are replaced, file systems
//! that go away, maps and disks that are full, numbers that run out.
//!
//! Beside each fault an open connection, a loop of allowed and a loop of
//! forbidden connections run; see [`beside`]. Nothing forbidden arrives, nothing
//! allowed is cut, and what the agent holds before and after is compared.
//!
//! | fault | where |
//! |---|---|
//! | SIGKILL under load | `peers`: `cve_2023_27595_…`; `agent`: `restart` |
//! | upgrade to another binary | [`upgrade`] |
//! | agents started at once, a second one | [`upgrade`]; `agent`: `restart` |
//! | bpffs unmounted, and mounted again | [`unmounted`] |
//! | a map full | [`full`]; `attacks`: `a_change_that_does_not_fit_…`, `a_flood_of_flows_…` |
//! | the ring full | [`full`]; `attacks`: `a_full_ring_…` |
//! | disk full under the audit sink | `agent`: `audit` |
//! | clock steps | [`clock`] |
//! | a policy directory vanishes | [`files`]; `agent`: `policy_files` |
//! | 10,000 changes in a row (2,000 unless `ZT_CHANGES` says more) | [`churn`] |
//! | a thousand workloads come and go | [`churn`] |
//! | numbers run out | [`numbers`] |

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod beside;
mod churn;
mod clock;
mod files;
mod full;
#[expect(dead_code, reason = "shared with the tests of what got around others")]
#[path = "../peers/lab.rs"]
mod lab;
mod numbers;
#[expect(dead_code, reason = "shared with the tests of the running agent")]
#[path = "../agent/stage.rs"]
mod stage;
mod unmounted;
mod upgrade;
