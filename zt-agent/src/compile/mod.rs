//! The compiler: a pure function from the node model to the exact map contents.
//!
//! ```text
//! model ─> needs (what wants a number) ─> [numbers are given out] ─> compile ─> tables
//! ```
//!
//! The order of workloads, endpoints and policies in the model never matters.

mod address;
mod attempt;
mod error;
mod fit;
mod interface;
mod limits;
pub mod lookup;
mod needs;
mod network;
mod pairs;
mod ports;
mod precedence;
mod selection;
mod services;
mod share;
mod shortage;
mod squeeze;
pub mod tables;
mod territory;
mod workload;

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod samples;

pub use attempt::{Lack, Stock, compile_what_fits};
pub use error::CompileError;
pub use interface::owner as owner_of_interface;
pub use limits::{Limits, Room, TableFull, links};
pub use needs::{Needs, names};
pub use shortage::Shortage;
pub use tables::Tables;

use std::collections::BTreeSet;

use crate::model::{NodeModel, Numbers, Problem};
use pairs::Cut;
use selection::Selection;
use territory::Territory;

/// What the maps should hold, and what a person should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub tables: Tables,
    /// Sorted by position.
    pub warnings: Vec<Problem>,
    /// A cgroup that is enrolled may take its sockets from somebody else, and
    /// with them what that one was allowed: from the cgroup around it, or from
    /// the node.
    pub takes_over: bool,
}

/// Compiles the model. `numbers` must know everything that [`names`] lists.
///
/// # Errors
/// When the model contradicts itself or a number is missing; see
/// [`CompileError`]. The previous tables then stay in force.
pub fn compile(model: &NodeModel, numbers: &Numbers) -> Result<Compiled, CompileError> {
    compile_with(model, numbers, None, false).map(|(compiled, _)| compiled)
}

/// The same for maps of these sizes. Of the policies' pairs what finds no room is
/// left out; no other table is looked at. `shut`: nobody may do anything.
fn compile_with(
    model: &NodeModel,
    numbers: &Numbers,
    room: Option<&Room<'_>>,
    shut: bool,
) -> Result<(Compiled, Option<Cut>), CompileError> {
    let territory = Territory::survey(model);
    let selection = Selection::index(model, &territory, numbers)?;
    let mut warnings = Vec::new();

    let (rows, cut) = pairs::rows(model, &selection, numbers, room, &mut warnings)?;
    let shut = if shut {
        let all = model.workloads.iter();
        all.map(|one| selection.identity(&one.identity)).collect()
    } else {
        Ok(cut
            .as_ref()
            .map_or_else(BTreeSet::new, |cut| cut.shut.clone()))
    };
    let mut tables = Tables {
        policy: rows.0,
        range: rows.1,
        address: address::rows(model, &selection, &mut warnings)?,
        cidr: territory.rows(&selection)?,
        workload: workload::rows(model, &selection, &shut?)?,
        interface: interface::rows(model),
    };
    let cut = services::add(model, &selection, numbers, room, &mut tables, cut)?;
    warnings.sort_by(|a, b| (&a.at, &a.field, &a.message).cmp(&(&b.at, &b.field, &b.message)));
    let compiled = Compiled {
        tables,
        warnings,
        takes_over: workload::takes_over(model),
    };
    Ok((compiled, cut))
}
