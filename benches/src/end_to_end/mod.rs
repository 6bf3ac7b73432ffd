//! Client and server in two network namespaces, and who decides between them.
//!
//! | file | job |
//! |---|---|
//! | `workload` | what the client does, and in which unit it is told |
//! | `traffic` | the two processes: what they are told, and what they answer |
//! | `client`, `server` | what each of them does |
//! | `place` | namespaces, veth, cgroups, and the two processes |
//! | `contender` | who is compared, and in which order |
//! | `rival` | one of them, put in place and taken away again |
//! | `floor`, `ours`, `nft` | the kinds of rivals |
//! | `hooks` | what the kernel really has between them |
//! | `rounds` | everybody, round by round |
//! | `programs` | the same, and what each program takes |
//! | `change`, `watch` | how long a policy takes into force, and who sees that |
//! | `environment` | on what it was measured |
//! | `results` | what was measured, as it is kept |
//! | `goals` | the ratios to reach |
//! | `report` | the same for people |

pub mod change;
mod client;
pub mod contender;
pub mod environment;
pub mod floor;
mod goals;
mod hooks;
mod nft;
mod ours;
pub mod place;
pub mod programs;
pub mod report;
pub mod results;
mod rival;
pub mod rounds;
mod server;
pub mod traffic;
pub mod watch;
pub mod workload;

pub use client::serve_orders;
pub use server::serve;
