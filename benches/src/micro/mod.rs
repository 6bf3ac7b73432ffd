//! Single runs of the kernel programs, under `BPF_PROG_TEST_RUN`.
//!
//! | file | job |
//! |---|---|
//! | `case` | which programs, and what is asked of them |
//! | `stage` | our programs and the ones to compare with, with maps as full as asked |
//! | `rounds` | everything, round by round |
//! | `report` | the same for people |

pub mod case;
pub mod report;
pub mod rounds;
mod stage;
