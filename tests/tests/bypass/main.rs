//! What gets around what, and what stops it: one test per way that somebody
//! may try to get a packet past the programs.
//!
//! Each row runs with the programs detached first, and must arrive then; with
//! the socket layers, with all layers, and with the interface layer alone,
//! where either nothing arrives and one record says why, or the row says that
//! this layer does not see it; and once more with a rule that allows it.
//!
//! The table is printed at the end, also as Markdown into the file that
//! `ZT_TABLE` names.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod capture;
mod rig;
mod row;
mod rows;
mod table;

use zt_tests::packet;
