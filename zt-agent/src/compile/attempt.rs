//! The whole model if it fits, else as much of it as does.

use std::collections::BTreeSet;

use super::{
    CompileError, Compiled, Needs, Room, Shortage, TableFull, compile_with, fit::fit, names, share,
};
use crate::model::{NodeModel, Numbers, SpiffeId, names::OutOfNumbers};

/// What a model is compiled with.
pub trait Stock {
    type Error: From<CompileError> + From<Lack>;

    /// Gives a number to whatever needs one and has none.
    ///
    /// # Errors
    /// The inner one: less would do.
    fn give(&mut self, needs: &Needs) -> Result<Result<(), OutOfNumbers>, Self::Error>;

    /// Takes numbers back that nothing in force refers to, if any of a kind of which
    /// there are too few for these needs would come back.
    ///
    /// # Errors
    /// When they cannot be taken back.
    fn make_room(&mut self, needs: &Needs) -> Result<(), Self::Error>;

    fn numbers(&self) -> &Numbers;

    fn room(&self) -> Room<'_>;
}

/// Of what there is too little.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    #[error(transparent)]
    Full(#[from] TableFull),
    #[error(transparent)]
    Numbers(#[from] OutOfNumbers),
    #[error(
        "{wanted} Services of which several identities are behind a port want identity numbers, and {limit} are for them: give fewer Services backends of several service accounts, or at several ports"
    )]
    Services { wanted: usize, limit: usize },
}

/// Compiles as much of the model as there is room for; what it takes away in any
/// case.
///
/// # Errors
/// When the model contradicts itself, when numbers cannot be given, or when not
/// even what the kernel has already would fit.
pub fn compile_what_fits<S: Stock>(
    model: &NodeModel,
    stock: &mut S,
) -> Result<(Compiled, Option<Shortage>), S::Error> {
    let attempted = match share::check(model, stock.room().limits) {
        Ok(()) => attempt(model, false, Shortage::default(), stock)?,
        Err(lack) => {
            // Nobody has asked for numbers yet, and some may be nobody's.
            stock.make_room(&names(model))?;
            Err(lack)
        }
    };
    let lack = match attempted {
        Ok((compiled, short)) => {
            let is_short = short != Shortage::default();
            return Ok((compiled, is_short.then_some(short)));
        }
        Err(lack) => lack,
    };
    let part = fit(model, &stock.room(), stock.numbers());
    let (compiled, short) = attempt(&part.model, part.shut, part.shortage, stock)??;
    let short = Shortage {
        full: lack.to_string(),
        passes: matches!(lack, Lack::Numbers(_)),
        ..short
    };
    Ok((compiled, Some(short)))
}

type Attempted = Result<(Compiled, Shortage), Lack>;

fn attempt<S: Stock>(
    model: &NodeModel,
    shut: bool,
    mut short: Shortage,
    stock: &mut S,
) -> Result<Attempted, S::Error> {
    if let Err(out) = stock.give(&names(model))? {
        return Ok(Err(out.into()));
    }
    let (room, numbers) = (stock.room(), stock.numbers());
    let (compiled, cut) = compile_with(model, numbers, Some(&room), shut)?;
    if let Err(full) = room.check(&compiled.tables) {
        return Ok(Err(full.into()));
    }
    if let Some(cut) = cut {
        short.full = cut.full.to_string();
        short.policies.extend(cut.policies);
    }
    short.shut = who_is_shut(model, &compiled);
    Ok(Ok((compiled, short)))
}

fn who_is_shut(model: &NodeModel, compiled: &Compiled) -> BTreeSet<SpiffeId> {
    let rows = &compiled.tables.workload;
    let is_shut = |cgroup| rows.get(cgroup).is_some_and(|row| row.is_shut());
    let shut = model.workloads.iter().filter(|one| is_shut(&one.cgroup));
    shut.map(|one| one.identity.clone()).collect()
}
