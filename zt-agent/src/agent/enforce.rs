//! Model → names → numbers → tables → kernel, all at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use zt_common::{identity::Number, version::Generation};

use super::board::Board;
use crate::{
    audit::Names,
    compile::{self, CompileError, TableFull, check_limits},
    kernel::{
        KernelError,
        names::NameMaps,
        store::{Applied, Store},
        trust::TrustMap,
    },
    model::{Name, NodeModel, Numbers, Problem, SpiffeId, names::OutOfNumbers},
    source::{documents::DocumentsError, quarantine::Quarantine},
};

/// Why a step did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("{0}")]
    Documents(#[from] DocumentsError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Full(#[from] TableFull),
    #[error(transparent)]
    Numbers(#[from] OutOfNumbers),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("there are no policy and identity files without errors yet; repair them first")]
    NothingToEnforce,
}

impl StepError {
    /// Trying again without a change may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Kernel(_))
    }
}

/// Owner of the store, and so of everything that is enforced.
pub struct Enforcer {
    board: Arc<Board>,
    store: Store,
    names: NameMaps,
    trust: TrustMap,
    limits: compile::Limits,
    numbers: Numbers,
    /// Enrolled cgroups and their paths, as last published.
    paths: BTreeMap<u64, Arc<str>>,
}

impl Enforcer {
    /// # Errors
    /// When the numbers cannot be read from the kernel.
    pub fn new(
        board: Arc<Board>,
        store: Store,
        names: NameMaps,
        trust: TrustMap,
        limits: compile::Limits,
    ) -> Result<Self, KernelError> {
        let numbers = names.read()?;
        board.names.send_replace(Arc::new(Names::new(&numbers, [])));
        Ok(Self {
            board,
            store,
            names,
            trust,
            limits,
            numbers,
            paths: BTreeMap::new(),
        })
    }

    /// In force; 0: none.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.store.control().generations().0
    }

    /// The MAC address of the other end of an interface, as the programs know
    /// it.
    #[must_use]
    pub fn mac(&self, interface: u32) -> Option<[u8; 6]> {
        Some(self.store.current().interface.get(&interface)?.mac)
    }

    /// Indices of the interfaces whose workload the programs know.
    #[must_use]
    pub fn interfaces(&self) -> BTreeSet<u32> {
        self.store.current().interface.keys().copied().collect()
    }

    /// The names of the reserved numbers were never written.
    fn is_fresh(&self) -> bool {
        self.generation() == 0
    }

    /// Makes the kernel enforce the model. Gives what is probably not meant.
    ///
    /// # Errors
    /// What was in force stays in force.
    pub fn apply(
        &mut self,
        model: &NodeModel,
        quarantine: Option<&Quarantine>,
    ) -> Result<(Applied, Vec<Problem>), StepError> {
        self.give_numbers(model)?;
        let compiled = compile::compile(model, &self.numbers)?;
        check_limits(&compiled.tables, &self.limits)?;
        self.publish_paths(model);
        // Before the rows: who is quarantined never has a moment of freedom.
        self.follow_quarantine(quarantine)?;
        let applied = self.store.apply(&compiled.tables, compiled.nested)?;
        Ok((applied, compiled.warnings))
    }

    /// Restores what is in force if somebody altered it behind our back.
    /// Gives the number of rows that meant something else.
    ///
    /// # Errors
    /// When a call fails.
    pub fn restore(&mut self, quarantine: Option<&Quarantine>) -> Result<usize, KernelError> {
        self.follow_quarantine(quarantine)?;
        self.store.restore()
    }

    fn give_numbers(&mut self, model: &NodeModel) -> Result<(), StepError> {
        let needs = compile::names(model);
        let mut numbers = self.numbers.clone();
        for name in &needs.names {
            numbers.intern(name)?;
        }
        for rule in &needs.rules {
            numbers.intern_rule(rule)?;
        }
        if numbers != self.numbers || self.is_fresh() {
            self.names.write(&numbers, &self.numbers)?;
            self.numbers = numbers;
        }
        Ok(())
    }

    /// Before the kernel uses them. Those that go keep their names until the
    /// next change: events of theirs may still be on their way.
    fn publish_paths(&mut self, model: &NodeModel) {
        let paths = model.workloads.iter().map(|w| (w.cgroup, w.path.clone()));
        let paths: BTreeMap<u64, Arc<str>> = paths.collect();
        let mut all = std::mem::replace(&mut self.paths, paths.clone());
        all.extend(paths);
        let names = Names::new(&self.numbers, all);
        self.board.names.send_replace(Arc::new(names));
    }

    /// Cuts off everybody whom the file names, as far as they have numbers.
    ///
    /// # Errors
    /// When a call fails.
    pub fn follow_quarantine(&self, quarantine: Option<&Quarantine>) -> Result<(), KernelError> {
        let Some(quarantine) = quarantine else {
            return Ok(());
        };
        let mut count = 0;
        for (id, number) in self.identities() {
            if quarantine.contains(id) {
                self.set_quarantined(id, number, true)?;
            }
            count += usize::from(self.trust.is_quarantined(number)?);
        }
        self.board.facts().quarantined = count;
        Ok(())
    }

    /// Releases those whom `now` no longer names. Who is cut off in the kernel
    /// and was not in the file before is being added, or the disk is full: he
    /// stays so, until the next start (`before` is `None` then).
    ///
    /// # Errors
    /// When a call fails.
    pub fn release(
        &self,
        before: Option<&Quarantine>,
        now: &Quarantine,
    ) -> Result<(), KernelError> {
        let was = |id| before.is_none_or(|before| before.contains(id));
        for (id, number) in self.identities() {
            if was(id) && !now.contains(id) {
                self.set_quarantined(id, number, false)?;
            }
        }
        Ok(())
    }

    fn identities(&self) -> impl Iterator<Item = (&SpiffeId, Number)> {
        self.numbers
            .names()
            .filter_map(|(name, number)| match name {
                Name::Spiffe(id) => Some((id, number)),
                Name::Class(_) => None,
            })
    }

    fn set_quarantined(
        &self,
        id: &SpiffeId,
        number: Number,
        wanted: bool,
    ) -> Result<(), KernelError> {
        if self.trust.is_quarantined(number)? != wanted {
            self.trust.set(number, wanted)?;
            tracing::warn!(spiffe_id = %id, quarantined = wanted, "quarantine");
        }
        Ok(())
    }
}
