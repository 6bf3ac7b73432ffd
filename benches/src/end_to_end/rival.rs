//! A contender that can be put in place and taken away again. What takes long
//! is done once, when it is made.

use std::path::Path;

use anyhow::Result;

use super::{contender::Contender, floor::Floor, hooks::Hooks, nft::Nft, ours::Ours, place::Place};

pub trait Rival {
    /// Puts it between client and server.
    fn begin(&mut self, place: &Place) -> Result<()>;

    /// How many programs that is.
    fn hooks(&self) -> Hooks {
        Hooks::default()
    }

    /// Between two windows.
    fn rest(&mut self) -> Result<()> {
        Ok(())
    }

    /// Takes it away, also when something went wrong before.
    fn end(&mut self, place: &Place) -> Result<()>;

    /// How many entries it really has.
    fn entries(&self) -> usize {
        0
    }
}

struct Nothing;

impl Rival for Nothing {
    fn begin(&mut self, _place: &Place) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _place: &Place) -> Result<()> {
        Ok(())
    }
}

/// Makes one. `floor`: the object file with the programs of `zt-floor`.
pub fn make(contender: Contender, place: &Place, floor: &Path) -> Result<Box<dyn Rival>> {
    Ok(match contender {
        Contender::Nothing => Box::new(Nothing),
        Contender::Empty => Box::new(Floor::new(floor, "empty")?),
        Contender::Minimal => {
            let mut minimal = Floor::new(floor, "floor")?;
            minimal.fill(place)?;
            Box::new(minimal)
        }
        Contender::Audit => Box::new(Ours::audit(place)?),
        Contender::Enforce(entries) => Box::new(Ours::enforce(place, entries)?),
        Contender::Set(elements) => Box::new(Nft::set(place, elements)?),
        Contender::SetTracked(elements) => Box::new(Nft::set_tracked(place, elements)?),
        Contender::Linear(rules) => Box::new(Nft::linear(place, rules)?),
    })
}
