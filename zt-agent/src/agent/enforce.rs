//! Model → names → numbers → tables → kernel, all at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
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
        repair::{Repair, What},
        store::{Applied, Store},
        trust::TrustMap,
    },
    model::{Name, NodeModel, Numbers, Problem, SpiffeId, names::OutOfNumbers},
    revoke::cutter::{Cutter, InForce},
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
    cutter: Cutter,
    limits: compile::Limits,
    numbers: Numbers,
    /// Who was quarantined in the kernel when it was last looked at; not only
    /// the agent writes there.
    cut_off: Arc<BTreeSet<Number>>,
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
        cutter: Cutter,
        limits: compile::Limits,
    ) -> Result<Self, KernelError> {
        let numbers = names.read()?;
        board.names.send_replace(Arc::new(Names::new(&numbers, [])));
        Ok(Self {
            board,
            store,
            names,
            trust,
            cutter,
            limits,
            numbers,
            cut_off: Arc::default(),
            paths: BTreeMap::new(),
        })
    }

    /// In force; 0: none.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.store.control().generations().0
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
        self.cut(applied.narrows);
        Ok((applied, compiled.warnings))
    }

    /// Network namespaces in which there are workloads.
    pub fn declare(&self, namespaces: BTreeSet<PathBuf>) {
        self.cutter.declare(namespaces);
    }

    /// Tells who ends connections what is in force now.
    fn cut(&self, narrowed: bool) {
        if self.is_fresh() {
            return;
        }
        let in_force = InForce {
            tables: self.store.snapshot(),
            control: self.store.control().read(),
            quarantined: self.cut_off.clone(),
        };
        self.cutter.follow(in_force, narrowed);
    }

    /// A quick look whether somebody altered what every decision reads: the
    /// control element, and who is quarantined. Puts it right.
    ///
    /// # Errors
    /// When a call fails.
    pub fn check(&mut self, quarantine: Option<&Quarantine>) -> Result<Vec<Repair>, KernelError> {
        let altered = self.store.restore_control();
        if !matches!(altered, Ok(false)) {
            self.cut(true);
        }
        let mut repairs = self.store.take_repairs();
        let quarantined = self.follow_quarantine(quarantine);
        if let Ok(again @ 1..) = quarantined {
            let found = format!("zt_trust_v1: {again} identities were let out of quarantine");
            repairs.push(Repair::new(What::Quarantine, found));
        }
        for repair in &repairs {
            self.board.facts().repaired(repair);
        }
        altered.and(quarantined)?;
        Ok(repairs)
    }

    /// Reads everything back that the agent writes, and restores what somebody
    /// altered behind our back.
    ///
    /// # Errors
    /// When a call fails.
    pub fn restore(&mut self, quarantine: Option<&Quarantine>) -> Result<(), KernelError> {
        self.check(quarantine)?;
        let rows = self.store.restore();
        let mut repairs = self.store.take_repairs();
        if !repairs.is_empty() {
            self.cut(true);
        }
        let names = self.names.restore(&self.numbers);
        if let Ok(count @ 1..) = names {
            let found = format!("zt_identity_v1, zt_rule_v1: {count} names were altered");
            repairs.push(Repair::new(What::Names, found));
        }
        for repair in &repairs {
            self.board.facts().repaired(repair);
        }
        self.board.facts().restored += rows? as u64;
        names.map(drop)
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
    /// Gives how many were not.
    ///
    /// # Errors
    /// When a call fails.
    pub fn follow_quarantine(
        &mut self,
        quarantine: Option<&Quarantine>,
    ) -> Result<usize, KernelError> {
        let Some(quarantine) = quarantine else {
            return Ok(0);
        };
        let mut cut_off = BTreeSet::new();
        let mut count = 0;
        for (id, number) in self.identities() {
            if quarantine.contains(id) {
                count += usize::from(self.set_quarantined(id, number, true)?);
            }
            if self.trust.is_quarantined(number)? {
                cut_off.insert(number);
            }
        }
        self.board.facts().quarantined = cut_off.len();
        if cut_off != *self.cut_off {
            let more = !cut_off.is_subset(&self.cut_off);
            self.cut_off = Arc::new(cut_off);
            self.cut(more);
        }
        Ok(count)
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
    ) -> Result<bool, KernelError> {
        let differs = self.trust.is_quarantined(number)? != wanted;
        if differs {
            self.trust.set(number, wanted)?;
            tracing::warn!(spiffe_id = %id, quarantined = wanted, "quarantine");
        }
        Ok(differs)
    }
}
