//! The compiler: a pure function from the node model to the exact map contents.
//!
//! ```text
//! model ─> needs (what wants a number) ─> [numbers are given out] ─> compile ─> tables
//! ```
//!
//! The order of workloads, endpoints and policies in the model never matters.

mod address;
mod error;
mod interface;
mod limits;
pub mod lookup;
mod needs;
mod network;
mod pairs;
mod ports;
mod precedence;
mod selection;
pub mod tables;
mod territory;
mod workload;

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod samples;

pub use error::CompileError;
pub use limits::{Limits, TableFull, check_limits};
pub use needs::{Needs, names};
pub use tables::Tables;

use crate::model::{NodeModel, Numbers, Problem};
use selection::Selection;
use territory::Territory;

/// What the maps should hold, and what a person should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub tables: Tables,
    /// Sorted by position.
    pub warnings: Vec<Problem>,
    /// An enrolled cgroup lies inside another one: a cgroup that is enrolled
    /// may take sockets from the one around it.
    pub nested: bool,
}

/// Compiles the model. `numbers` must know everything that [`names`] lists.
///
/// # Errors
/// When the model contradicts itself or a number is missing; see
/// [`CompileError`]. The previous tables then stay in force.
pub fn compile(model: &NodeModel, numbers: &Numbers) -> Result<Compiled, CompileError> {
    let territory = Territory::survey(model);
    let selection = Selection::index(model, &territory, numbers)?;
    let mut warnings = Vec::new();

    let (policy, range) = pairs::rows(model, &selection, numbers, &mut warnings)?;
    let tables = Tables {
        policy,
        range,
        address: address::rows(model, &selection, &mut warnings)?,
        cidr: territory.rows(&selection)?,
        workload: workload::rows(model, &selection)?,
        interface: interface::rows(model),
    };
    warnings.sort_by(|a, b| (&a.at, &a.field, &a.message).cmp(&(&b.at, &b.field, &b.message)));
    Ok(Compiled {
        tables,
        warnings,
        nested: workload::nested(model),
    })
}
