//! One step: what the sources say now becomes true in the kernel, all at
//! once. Whatever goes wrong, what was in force stays in force.

mod attaching;
mod enrolling;
mod ignorance;
mod keeping;
mod looking;
mod proposing;
mod quarantined;
mod telling;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use zt_common::version::Generation;

use self::{
    ignorance::{Ignorance, Kept},
    telling::Warned,
};
use super::{
    board::Board,
    coverage::Coverage,
    enforce::{Enforcer, StepError},
    enrolments::Enrolments,
    macs::Macs,
    model::{self, Machine},
};
use crate::{
    admin::protocol::Applied,
    compile::Shortage,
    document::Config,
    kernel::{KernelError, cgroup::Root},
    source::{
        accepted::Accepted,
        clock::Clock,
        documents::Documents,
        identities::Uncovered,
        identity::{self, ClusterPolicies, IdentitySource},
        netns,
        quarantine::Quarantine,
        resources::Refused,
        watch::{Fingerprint, Watched},
    },
};

/// Files that did not change for so long are written.
const STILL: Duration = Duration::from_millis(500);

/// Decides what shall be in force.
pub struct Reconciler {
    config: Arc<Config>,
    board: Arc<Board>,
    root: Arc<Root>,
    sources: Sources,
    enforcer: Enforcer,
    coverage: Coverage,
    accepted: Accepted,
    /// What is in force is not among them yet.
    unkept: bool,
    kept: Kept,
    /// What is not known yet and must be.
    ignorance: Option<Ignorance>,
    /// What the files say, without the cluster's policies.
    written: Option<Documents>,
    /// What the cluster says of policies.
    cluster: ClusterPolicies,
    refused: Vec<Refused>,
    fingerprint: Fingerprint,
    /// Since when what was read had changed meanwhile.
    unread: Option<Instant>,
    /// What the files looked like last, and since when.
    seen: (Fingerprint, Instant),
    /// What the kernel enforces.
    in_force: Option<Attempt>,
    /// Documents that say something new.
    proposed: Option<Attempt>,
    /// What of the documents in force does not fit into the maps.
    shortage: Option<Shortage>,
    /// `None`: the file was never readable; the kernel's word counts.
    quarantine: Option<Quarantine>,
    enrolments: Enrolments,
    errors: Errors,
    warned: Warned,
    macs: Macs,
    last: Applied,
}

/// What is read to know what should be in force.
#[derive(Debug)]
pub struct Sources {
    pub identities: IdentitySource,
    pub files: Watched,
    pub clock: Clock,
}

/// Documents, and the machine with which they were last compiled.
#[derive(Clone, Debug)]
struct Attempt {
    documents: Arc<Documents>,
    tried: Option<Machine>,
    /// Trying again may help though the machine stays the same.
    again: bool,
}

impl Attempt {
    fn new(documents: Documents) -> Self {
        Self {
            documents: Arc::new(documents),
            tried: None,
            again: false,
        }
    }

    fn needs_a_try(&self, machine: &Machine) -> bool {
        self.again || self.tried.as_ref() != Some(machine)
    }
}

/// What is wrong now, for a person; each until it is right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Errors {
    /// Nobody knows yet who is who.
    identities: Option<String>,
    /// The files say something wrong.
    files: Option<String>,
    /// They say something that cannot be put in force.
    proposed: Option<String>,
    /// What is in force cannot follow this machine.
    in_force: Option<String>,
    quarantine: Option<String>,
    /// Some of what is in force does not fit.
    short: Option<String>,
    /// The next start will not know what is in force.
    kept: Option<String>,
    /// Those that were accepted last cannot be used.
    accepted: Option<String>,
}

impl Errors {
    fn of_policy(&self) -> Option<&String> {
        let files = self.files.as_ref().or(self.proposed.as_ref());
        files
            .or(self.in_force.as_ref())
            .or(self.short.as_ref())
            .or(self.identities.as_ref())
    }

    /// For a person who looks for what to do.
    fn all(&self) -> Option<String> {
        let errors = [self.of_policy(), self.kept.as_ref()];
        let errors: Vec<&str> = errors.into_iter().flatten().map(String::as_str).collect();
        (!errors.is_empty()).then(|| errors.join("\n"))
    }
}

/// How thoroughly to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At what may have changed by itself.
    Glance,
    /// At the files, of which somebody wrote one. One without a byte in it may
    /// have been emptied to be written: that is waited for.
    Told,
    /// At the files too, even if they look unchanged.
    Read,
}

impl Reconciler {
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        board: Arc<Board>,
        root: Arc<Root>,
        sources: Sources,
        enforcer: Enforcer,
        coverage: Coverage,
    ) -> Self {
        let with_identities = identity::file(&config).is_some();
        let with_cluster = config.identity.has_policies();
        let accepted = Accepted::below(&config.state_directory, with_identities, with_cluster);
        if let Err(error) = accepted.recover(enforcer.generation()) {
            tracing::error!(%error, "what an agent before this one kept cannot be put in order, and is not used");
            let _ = accepted.withdraw();
        }
        Self {
            kept: Kept::read(&accepted, enforcer.generation() != 0),
            accepted,
            unkept: false,
            ignorance: None,
            shortage: None,
            written: None,
            cluster: ClusterPolicies::default(),
            refused: Vec::new(),
            enrolments: Enrolments::restore(&config, &root),
            config,
            board,
            root,
            enforcer,
            coverage,
            sources,
            fingerprint: Fingerprint::default(),
            unread: None,
            seen: (Fingerprint::default(), Instant::now()),
            in_force: None,
            proposed: None,
            quarantine: None,
            errors: Errors::default(),
            warned: Warned::default(),
            macs: Macs::default(),
            last: Applied::default(),
        }
    }

    /// The first step: with the files, or those that were accepted last, or
    /// with what an agent before this one left in force.
    ///
    /// # Errors
    /// What is wrong with the files, if there is none of the three.
    pub fn begin(&mut self) -> Result<(), String> {
        self.coverage.keep_default_drop();
        let Err(error) = self.step(Look::Read) else {
            return Ok(());
        };
        let generation = self.enforcer.generation();
        if generation == 0 {
            return Err(error);
        }
        self.board.facts().generation = generation;
        if self.in_force.is_none() {
            tracing::warn!(
                generation,
                %error,
                "what was enforced before stays in force"
            );
        }
        Ok(())
    }

    /// In force; 0: none.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.enforcer.generation()
    }

    /// Whether a workload is just being made: it is worth while to look again
    /// soon.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        let tried = self.in_force.as_ref().and_then(|a| a.tried.as_ref());
        tried.is_some_and(|machine| machine.resolved.unsettled)
    }

    /// What the files say without errors cannot be put in force, and nothing is
    /// since this agent started: those that were accepted last.
    fn fall_back(&mut self) {
        // While the files have errors those are the proposal.
        let has_proposal = self.proposed.is_some() && self.errors.files.is_none();
        if self.in_force.is_some() || !has_proposal {
            return;
        }
        let Some(mut documents) = self.read_accepted() else {
            return;
        };
        documents.cluster = self.decide(&documents.names_of_files());
        let mut attempt = Attempt::new(documents);
        let machine = self.look_around(&attempt.documents);
        let result = self.keeping(&attempt.documents, |this| {
            this.apply(&attempt.documents, &machine)
        });
        if result.is_ok() {
            tracing::warn!("enforcing the files that were accepted last");
            (attempt.tried, attempt.again) = (Some(machine), self.may_pass(&result));
            self.written = Some(attempt.documents.as_ref().clone());
            self.in_force = Some(attempt);
        }
        let error = result.err().map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|_| self.errors.accepted != error) {
            tracing::error!(%error, "nor can the files that were accepted last be put in force");
        }
        self.errors.accepted = error;
    }

    /// Makes the kernel follow the sources. `Ok` if everything that they say
    /// now is in force.
    ///
    /// # Errors
    /// Why it is not. The board says so too, until it is.
    pub fn step(&mut self, look: Look) -> Result<Applied, String> {
        let anew = self.is_anything_new(look) && self.read_documents(look);
        if anew {
            self.read_quarantine();
        }
        let told = self.hear_cluster();
        if anew || told {
            self.propose();
        }
        self.last.rows = 0;
        self.ignorance = self.look_for_ignorance();
        self.errors.identities = self.what_is_missing();
        if !self.is_blind() {
            let accepted = self.try_proposal(anew || told);
            self.follow_machine(anew && !accepted);
            self.fall_back();
            self.follow_interfaces();
            self.see();
            self.keep();
        }
        self.report();
        match self.errors.of_policy() {
            None => Ok(self.last),
            Some(error) => Err(error.clone()),
        }
    }

    /// Covers the interfaces of what is in force. Also those with managed
    /// names, and so after every step.
    fn follow_interfaces(&mut self) {
        let tried = self.in_force.as_ref().and_then(|a| a.tried.as_ref());
        let Some(machine) = tried else {
            return;
        };
        let rows = self.enforcer.interfaces();
        let is_followed = self.errors.in_force.is_none() && self.shortage.is_none();
        let is_whole = is_followed && !machine.resolved.unsettled;
        self.coverage.follow(&machine.resolved, &rows, is_whole);
        let by_hand = machine.enrolled.iter().map(|enrolled| Uncovered {
            spiffe_id: enrolled.spec.identity.to_string(),
            why: "it was enrolled by hand: only its sockets are governed".to_owned(),
        });
        let uncovered: Vec<_> = (machine.resolved.uncovered.iter().cloned())
            .chain(by_hand)
            .collect();
        let mut facts = self.board.facts();
        for one in uncovered
            .iter()
            .filter(|one| !facts.uncovered.contains(one))
        {
            tracing::warn!(spiffe_id = %one.spiffe_id, why = %one.why, "frames of this workload are not decided");
        }
        for name in &machine.resolved.changed_macs {
            if !facts.changed_macs.contains(name) {
                tracing::error!(interface = %name, "the other end has changed its MAC address: what it sends is denied as spoofed; make the interface anew if that is meant");
            }
        }
        facts
            .changed_macs
            .clone_from(&machine.resolved.changed_macs);
        facts.uncovered = uncovered;
    }

    /// Looks whether the interfaces are still covered.
    pub fn look_at_interfaces(&mut self) {
        self.coverage.look();
    }

    fn is_anything_new(&mut self, look: Look) -> bool {
        let fingerprint = self.sources.files.fingerprint();
        if fingerprint != self.seen.0 {
            self.seen = (fingerprint, Instant::now());
        }
        // At a glance they may be half written: what still changes is waited
        // for.
        let settled = self.seen.0 != self.fingerprint && self.seen.1.elapsed() >= STILL;
        let told = look == Look::Told && !self.seen.0.has_empty_file();
        look == Look::Read || told || settled
    }

    /// How often all maps are to be read back.
    #[must_use]
    pub fn verify_every(&self) -> Duration {
        self.config.verify
    }

    /// Puts right what somebody altered of what every decision reads.
    pub fn check(&mut self) {
        let result = self.enforcer.check(self.quarantine.as_ref());
        self.checked(result.map(drop));
    }

    /// Restores what is in force if somebody altered the maps.
    pub fn restore(&mut self) {
        let result = self.enforcer.restore(self.quarantine.as_ref());
        self.checked(result);
    }

    fn checked(&self, result: Result<(), KernelError>) {
        let mut facts = self.board.facts();
        facts.generation = self.enforcer.generation();
        match result {
            Ok(()) => facts.maps_error = None,
            // Cached verdicts of another state may still be believed.
            Err(error @ KernelError::OutOfGenerations) => facts.taint(error.to_string()),
            Err(error) => {
                let text = format!("the maps cannot be read back or restored: {error}");
                if facts.maps_error.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
                facts.maps_error = Some(text);
            }
        }
    }

    /// Puts the proposal in force, if there is one that was not tried on this
    /// machine yet. Whether it is in force now.
    fn try_proposal(&mut self, anew: bool) -> bool {
        let Some(mut proposal) = self.proposed.take() else {
            return false;
        };
        let machine = self.look_around(&proposal.documents);
        if !anew && !proposal.needs_a_try(&machine) {
            self.proposed = Some(proposal);
            return false;
        }
        let result = self.keeping(&proposal.documents, |this| {
            this.apply(&proposal.documents, &machine)
        });
        (proposal.tried, proposal.again) = (Some(machine), self.may_pass(&result));
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
        if self.in_force.is_none() && self.errors.files.is_some() {
            tracing::warn!("enforcing the files that were accepted last");
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
        if anew || in_force.needs_a_try(&machine) {
            let result = self.apply(&in_force.documents, &machine);
            (in_force.tried, in_force.again) = (Some(machine), self.may_pass(&result));
            self.errors.in_force = result.err().map(|error| error.to_string());
        }
        self.in_force = Some(in_force);
    }

    fn apply(&mut self, documents: &Documents, machine: &Machine) -> Result<(), StepError> {
        let model = model::build(&self.config, documents, machine);
        let declared = documents.identities.workloads.iter();
        let declared = declared.filter_map(|workload| workload.network_namespace.as_ref());
        self.enforcer.declare(declared.map(netns::path).collect());
        let outcome = self.enforcer.apply(&model, self.quarantine.as_ref())?;
        let applied = outcome.applied;
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
        self.errors.short = outcome.shortage.as_ref().map(ToString::to_string);
        self.shortage = outcome.shortage;
        self.tell(applied, machine);
        // As long as nobody is known, everybody seems to be misspelt.
        let is_known = !machine.resolved.unknown;
        let warnings = outcome.warnings.into_iter().filter(|_| is_known);
        self.warn(documents, warnings);
        Ok(())
    }

    /// Whether trying again may help though the machine stays the same.
    fn may_pass(&self, result: &Result<(), StepError>) -> bool {
        match result {
            Ok(()) => self.shortage.as_ref().is_some_and(|short| short.passes),
            Err(error) => error.is_passing(),
        }
    }
}
