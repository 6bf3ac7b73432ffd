//! One step: what the sources say now becomes true in the kernel, all at
//! once. Whatever goes wrong, what was in force stays in force.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use super::{
    board::Board,
    enrolments::{Enrolments, Ticket},
    model::{self, Machine},
};
use crate::{
    admin::protocol::{Applied, Enrol},
    audit::{Names, record::Time},
    compile::{self, CompileError, TableFull, check_limits},
    document::{
        Config,
        render::{self, Style},
    },
    kernel::{
        KernelError,
        cgroup::Root,
        names::NameMaps,
        store::{self, Store},
        trust::TrustMap,
    },
    model::{Name, NodeModel, Numbers, Problem, names::OutOfNumbers},
    source::{
        accepted::Accepted,
        documents::{Documents, DocumentsError},
        identities, node,
        quarantine::{self, Quarantine},
        watch::{Fingerprint, Watched},
    },
};

/// Owner of the store, and so of everything that is enforced.
pub struct Reconciler {
    config: Arc<Config>,
    board: Arc<Board>,
    root: Arc<Root>,
    store: Store,
    names: NameMaps,
    trust: TrustMap,
    limits: compile::Limits,
    numbers: Numbers,
    /// Enrolled cgroups and their paths, as last published.
    paths: BTreeMap<u64, Arc<str>>,
    accepted: Accepted,
    watched: Watched,
    fingerprint: Fingerprint,
    /// What the kernel enforces.
    in_force: Option<Attempt>,
    /// Documents that say something new.
    proposed: Option<Attempt>,
    /// `None`: the file was never readable; the kernel's word counts.
    quarantine: Option<Quarantine>,
    enrolments: Enrolments,
    errors: Errors,
    warned: Vec<Problem>,
    last: Applied,
}

/// Documents, and the machine with which they were last compiled; `None`: try
/// again in any case.
#[derive(Clone, Debug)]
struct Attempt {
    documents: Arc<Documents>,
    tried: Option<Machine>,
}

impl Attempt {
    fn new(documents: Documents) -> Self {
        Self {
            documents: Arc::new(documents),
            tried: None,
        }
    }
}

/// What is wrong now, for a person; each until it is right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Errors {
    /// The files say something wrong.
    files: Option<String>,
    /// They say something that cannot be put in force.
    proposed: Option<String>,
    /// What is in force cannot follow this machine.
    in_force: Option<String>,
    quarantine: Option<String>,
}

impl Errors {
    fn of_policy(&self) -> Option<&String> {
        let files = self.files.as_ref().or(self.proposed.as_ref());
        files.or(self.in_force.as_ref())
    }
}

/// How thoroughly to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At what may have changed by itself.
    Glance,
    /// At the files too, even if they look unchanged.
    Read,
}

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
    fn is_passing(&self) -> bool {
        matches!(self, Self::Kernel(_))
    }
}

/// What the reconciler needs of the kernel.
pub struct Parts {
    pub root: Arc<Root>,
    pub store: Store,
    pub names: NameMaps,
    pub trust: TrustMap,
    pub limits: compile::Limits,
}

impl Reconciler {
    /// # Errors
    /// When the numbers cannot be read from the kernel.
    pub fn new(
        config: Arc<Config>,
        board: Arc<Board>,
        watched: Watched,
        parts: Parts,
    ) -> Result<Self, KernelError> {
        let numbers = parts.names.read()?;
        let enrolments = Enrolments::restore(&config, &parts.root);
        let reconciler = Self {
            accepted: Accepted::below(&config.state_directory),
            config,
            board,
            root: parts.root,
            store: parts.store,
            names: parts.names,
            trust: parts.trust,
            limits: parts.limits,
            numbers,
            paths: BTreeMap::new(),
            watched,
            fingerprint: Fingerprint::default(),
            in_force: None,
            proposed: None,
            quarantine: None,
            enrolments,
            errors: Errors::default(),
            warned: Vec::new(),
            last: Applied::default(),
        };
        let names = Names::new(&reconciler.numbers, []);
        reconciler.board.names.send_replace(Arc::new(names));
        Ok(reconciler)
    }

    /// The first step: with the files, or those that were accepted last, or
    /// with what an agent before this one left in force.
    ///
    /// # Errors
    /// What is wrong with the files, if there is none of the three.
    pub fn begin(&mut self) -> Result<(), String> {
        let Err(error) = self.step(Look::Read) else {
            return Ok(());
        };
        if self.accepted.exist() {
            match self.go_on_with_accepted() {
                Ok(()) => {
                    tracing::warn!("enforcing the files that were accepted last");
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!(%error, "nor can those that were accepted last be used")
                }
            }
        }
        let (generation, _) = self.store.control().generations();
        if generation == 0 {
            return Err(error);
        }
        self.board.facts().generation = generation;
        self.follow_quarantine()
            .map_err(|error| error.to_string())?;
        tracing::warn!(
            generation,
            "what was enforced before stays in force until the files are repaired"
        );
        Ok(())
    }

    fn go_on_with_accepted(&mut self) -> Result<(), StepError> {
        let mut attempt = Attempt::new(self.accepted.read()?);
        let machine = self.look_around(&attempt.documents);
        self.apply(&attempt.documents, &machine)?;
        attempt.tried = Some(machine);
        self.in_force = Some(attempt);
        Ok(())
    }

    /// Makes the kernel follow the sources. `Ok` if everything that they say
    /// now is in force.
    ///
    /// # Errors
    /// Why it is not. The board says so too, until it is.
    pub fn step(&mut self, look: Look) -> Result<Applied, String> {
        let anew = self.is_anything_new(look);
        if anew {
            self.read_documents();
            self.read_quarantine();
        }
        self.last.rows = 0;
        let accepted = self.try_proposal(anew);
        self.follow_machine(anew && !accepted);
        self.report();
        match self.errors.of_policy() {
            None => Ok(self.last),
            Some(error) => Err(error.clone()),
        }
    }

    /// Enrols a cgroup; `Ok` once it is enforced.
    ///
    /// # Errors
    /// Why it is not enrolled.
    pub fn enrol(&mut self, request: &Enrol) -> Result<(Ticket, Applied), String> {
        let added = self.enrolments.add(request, &self.root, &self.config);
        let ticket = added.map_err(|error| error.to_string())?;
        let _ = self.step(Look::Glance);
        let error = match (&self.in_force, &self.errors.in_force) {
            (Some(_), None) => return Ok((ticket, self.last)),
            (None, _) => StepError::NothingToEnforce.to_string(),
            (_, Some(error)) => error.clone(),
        };
        self.withdraw(ticket);
        Err(error)
    }

    /// Ends an enrolment.
    pub fn withdraw(&mut self, ticket: Ticket) {
        self.enrolments.withdraw(ticket);
        let _ = self.step(Look::Glance);
    }

    fn is_anything_new(&mut self, look: Look) -> bool {
        let fingerprint = self.watched.fingerprint();
        let same = fingerprint == self.fingerprint;
        self.fingerprint = fingerprint;
        !same || look == Look::Read
    }

    /// Reads the files; what they say becomes the proposal if it is new.
    fn read_documents(&mut self) {
        // Whatever was proposed before no longer stands in the files.
        self.proposed = None;
        self.errors.files = None;
        self.errors.proposed = None;
        match Documents::read(&self.config.policies, &self.config.identities) {
            Err(error) => self.errors.files = Some(error.render(Style::Plain)),
            Ok(documents) => {
                let known = self.in_force.as_ref();
                if known.is_none_or(|known| *known.documents != documents) {
                    self.warned.clear();
                    self.proposed = Some(Attempt::new(documents));
                }
            }
        }
    }

    fn read_quarantine(&mut self) {
        match Quarantine::read(&quarantine::path(&self.config.state_directory)) {
            Ok(quarantine) => {
                self.errors.quarantine = None;
                self.quarantine = Some(quarantine);
            }
            // Nobody is released by a damaged file.
            Err(error) => self.errors.quarantine = Some(error.to_string()),
        }
    }

    /// Puts the proposal in force, if there is one that was not tried on this
    /// machine yet. Whether it is in force now.
    fn try_proposal(&mut self, anew: bool) -> bool {
        let Some(mut proposal) = self.proposed.take() else {
            return false;
        };
        let machine = self.look_around(&proposal.documents);
        if !anew && proposal.tried.as_ref() == Some(&machine) {
            self.proposed = Some(proposal);
            return false;
        }
        let result = self.apply(&proposal.documents, &machine);
        proposal.tried = tried(machine, &result);
        match result {
            Ok(()) => {
                self.errors.proposed = None;
                self.accept(proposal);
                true
            }
            Err(error) => {
                self.errors.proposed = Some(error.to_string());
                self.proposed = Some(proposal);
                false
            }
        }
    }

    fn accept(&mut self, attempt: Attempt) {
        if let Err(error) = self.accepted.save(&attempt.documents) {
            tracing::error!(%error, "the accepted files are not kept for the next start");
        }
        self.errors.in_force = None;
        self.in_force = Some(attempt);
    }

    /// Compiles what is in force again if the machine changed.
    fn follow_machine(&mut self, anew: bool) {
        let Some(mut in_force) = self.in_force.take() else {
            return;
        };
        let machine = self.look_around(&in_force.documents);
        if anew || in_force.tried.as_ref() != Some(&machine) {
            let result = self.apply(&in_force.documents, &machine);
            in_force.tried = tried(machine, &result);
            self.errors.in_force = result.err().map(|error| error.to_string());
        }
        self.in_force = Some(in_force);
    }

    fn look_around(&self, documents: &Documents) -> Machine {
        let offset = &self.board.boot_offset;
        let known = offset.load(Ordering::Relaxed);
        let now = node::boot_offset(Some(known)).unwrap_or(known);
        offset.store(now, Ordering::Relaxed);
        let resolved = identities::resolve(&documents.identities, &self.root, self.config.mode);
        let addresses = node::addresses().inspect_err(|error| {
            tracing::error!(%error, "cannot list this node's addresses");
        });
        Machine {
            resolved,
            enrolled: self.enrolments.present(&self.root),
            node_addresses: addresses.unwrap_or_else(|_| self.known_addresses()),
            boot_offset: now,
        }
    }

    fn known_addresses(&self) -> Vec<IpAddr> {
        let tried = self.in_force.as_ref().and_then(|a| a.tried.as_ref());
        tried.map_or_else(Vec::new, |machine| machine.node_addresses.clone())
    }

    /// Model → names → numbers → tables → kernel.
    fn apply(&mut self, documents: &Documents, machine: &Machine) -> Result<(), StepError> {
        let model = model::build(&self.config, documents, machine);
        self.give_numbers(&model)?;
        let compiled = compile::compile(&model, &self.numbers)?;
        check_limits(&compiled.tables, &self.limits)?;
        self.publish_paths(&model);
        // Before the rows: who is quarantined never has a moment of freedom.
        self.follow_quarantine()?;
        let applied = self.store.apply(&compiled.tables)?;
        self.last.generation = applied.generation;
        self.last.rows += applied.rows;
        if applied.rows > 0 {
            tracing::info!(
                generation = applied.generation,
                rows = applied.rows,
                narrows = applied.narrows,
                "a change is in force"
            );
        }
        self.tell(applied, machine);
        self.warn(documents, compiled.warnings);
        Ok(())
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
        if numbers != self.numbers || self.last.generation == 0 {
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

    /// Sets the kernel's trust map as the file says, for every identity that
    /// has a number.
    fn follow_quarantine(&mut self) -> Result<(), KernelError> {
        let Some(quarantine) = &self.quarantine else {
            return Ok(());
        };
        let mut count = 0;
        for (name, number) in self.numbers.names() {
            let Name::Spiffe(id) = name else { continue };
            let wanted = quarantine.contains(id);
            count += usize::from(wanted);
            if self.trust.is_quarantined(number)? != wanted {
                self.trust.set(number, wanted)?;
                tracing::warn!(spiffe_id = %id, quarantined = wanted, "quarantine");
            }
        }
        self.board.facts().quarantined = count;
        Ok(())
    }

    fn tell(&self, applied: store::Applied, machine: &Machine) {
        let mut facts = self.board.facts();
        facts.generation = applied.generation;
        facts.workloads = machine.resolved.workloads.len() + machine.enrolled.len();
        if facts.waiting != machine.resolved.waiting {
            for waiting in &machine.resolved.waiting {
                tracing::warn!(spiffe_id = %waiting.spiffe_id, reason = %waiting.reason, "not enrolled");
            }
            facts.waiting.clone_from(&machine.resolved.waiting);
        }
        if applied.rows > 0 {
            facts.last_applied = Some(Time::now().to_string());
        }
    }

    /// Logs what loads and is probably not meant, once: an identity that comes
    /// and goes must not repeat it.
    fn warn(&mut self, documents: &Documents, warnings: Vec<Problem>) {
        let warnings = documents.warnings().iter().cloned().chain(warnings);
        let new: Vec<Problem> = warnings.filter(|w| !self.warned.contains(w)).collect();
        if !new.is_empty() {
            let text = render::problems(&new, &documents.sources(), Style::Plain);
            tracing::warn!("the policy loads, and something in it is probably not meant:\n{text}");
            self.warned.extend(new);
        }
    }

    /// Puts errors on the board and into the log, once each.
    fn report(&mut self) {
        let policy = self.errors.of_policy().cloned();
        let mut facts = self.board.facts();
        if facts.policy_error != policy {
            match &policy {
                Some(error) => {
                    facts.policy_errors += 1;
                    tracing::error!("a change is not in force; what was, stays:\n{error}");
                }
                None => tracing::info!("the sources are in force again"),
            }
            facts.policy_error = policy;
        }
        if facts.quarantine_error != self.errors.quarantine {
            if let Some(error) = &self.errors.quarantine {
                tracing::error!(%error, "the quarantine file is not followed");
            }
            facts.quarantine_error.clone_from(&self.errors.quarantine);
        }
    }
}

fn tried(machine: Machine, result: &Result<(), StepError>) -> Option<Machine> {
    let passing = result.as_ref().is_err_and(StepError::is_passing);
    (!passing).then_some(machine)
}
