//! One step: what the sources say now becomes true in the kernel, all at
//! once. Whatever goes wrong, what was in force stays in force.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    board::Board,
    coverage::Coverage,
    enforce::{Enforcer, StepError},
    enrolments::{Enrolments, Ticket},
    model::{self, Machine},
};
use crate::{
    admin::protocol::{Applied, Enrol},
    audit::record::Time,
    document::{
        Config,
        render::{self, Style},
    },
    kernel::{KernelError, cgroup::Root, store},
    model::Problem,
    source::{
        accepted::Accepted,
        clock::{Clock, Reading},
        documents::Documents,
        identities::{Resolved, Uncovered},
        identity::{self, ClusterPolicies, IdentitySource},
        netns, node,
        quarantine::{self, Quarantine},
        resources::{Refused, Resources},
        watch::{Fingerprint, Watched},
    },
};

/// Files that did not change for so long are written.
const STILL: Duration = Duration::from_millis(500);

const BLIND: &str =
    "the cluster's API server has not said yet who is who; what was enforced before stays in force";
const WITHOUT_POLICIES: &str = "the cluster's API server has not said yet which policies there are; what was enforced before stays in force";

/// Decides what shall be in force.
pub struct Reconciler {
    config: Arc<Config>,
    board: Arc<Board>,
    root: Arc<Root>,
    sources: Sources,
    enforcer: Enforcer,
    coverage: Coverage,
    accepted: Accepted,
    /// The policies of the cluster that an agent before this one accepted.
    kept: Option<Resources>,
    /// What the files say, without the cluster's policies.
    written: Option<Documents>,
    /// What the cluster says of policies.
    cluster: ClusterPolicies,
    refused: Vec<Refused>,
    fingerprint: Fingerprint,
    /// What the files looked like last, and since when.
    seen: (Fingerprint, Instant),
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

/// What is read to know what should be in force.
#[derive(Debug)]
pub struct Sources {
    pub identities: IdentitySource,
    pub files: Watched,
    pub clock: Clock,
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
    /// Nobody knows yet who is who.
    identities: Option<String>,
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
        files
            .or(self.in_force.as_ref())
            .or(self.identities.as_ref())
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
        Self {
            kept: accepted.cluster(),
            accepted,
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
            seen: (Fingerprint::default(), Instant::now()),
            in_force: None,
            proposed: None,
            quarantine: None,
            errors: Errors::default(),
            warned: Vec::new(),
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
        if self.accepted.exist() && !self.is_blind() {
            match self.go_on_with_accepted() {
                Ok(()) => {
                    self.follow_interfaces();
                    tracing::warn!("enforcing the files that were accepted last");
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!(%error, "nor can those that were accepted last be used")
                }
            }
        }
        let generation = self.enforcer.generation();
        if generation == 0 {
            return Err(error);
        }
        self.board.facts().generation = generation;
        tracing::warn!(
            generation,
            %error,
            "what was enforced before stays in force"
        );
        Ok(())
    }

    fn is_blind(&self) -> bool {
        self.blindness().is_some()
    }

    /// Nobody has said yet who is who, or what the policies are, and there is
    /// something to lose: what an agent before this one left in force is better
    /// than to know nobody.
    fn blindness(&self) -> Option<&'static str> {
        if self.in_force.is_some() || self.enforcer.generation() == 0 {
            return None;
        }
        if !self.sources.identities.are_known() {
            return Some(BLIND);
        }
        // Where there is no definition there can be no policy.
        let nothing_said =
            matches!(&self.cluster, ClusterPolicies::Unknown(absent) if absent.is_empty());
        (nothing_said && self.kept.is_none()).then_some(WITHOUT_POLICIES)
    }

    /// Whether a workload is just being made: it is worth while to look again
    /// soon.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        let tried = self.in_force.as_ref().and_then(|a| a.tried.as_ref());
        tried.is_some_and(|machine| machine.resolved.unsettled)
    }

    fn go_on_with_accepted(&mut self) -> Result<(), StepError> {
        let mut attempt = Attempt::new(self.accepted.read()?);
        let machine = self.look_around(&attempt.documents);
        self.apply(&attempt.documents, &machine)?;
        attempt.tried = Some(machine);
        self.written = Some(attempt.documents.as_ref().clone());
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
        let told = self.hear_cluster();
        if anew || told {
            self.propose();
        }
        self.last.rows = 0;
        self.errors.identities = self.blindness().map(str::to_owned);
        if self.errors.identities.is_none() {
            let accepted = self.try_proposal(anew || told);
            self.follow_machine(anew && !accepted);
            self.follow_interfaces();
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
        let tried = self
            .in_force
            .as_ref()
            .and_then(|a| Some((&a.documents, a.tried.as_ref()?)));
        let Some((documents, machine)) = tried else {
            return;
        };
        let model = model::build(&self.config, documents, machine);
        let rows = self.enforcer.interfaces();
        self.coverage.follow(&model, &rows);
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
        let fingerprint = self.sources.files.fingerprint();
        if fingerprint != self.seen.0 {
            self.seen = (fingerprint, Instant::now());
        }
        // At a glance they may be half written: what still changes is waited
        // for.
        let settled = self.seen.0 != self.fingerprint && self.seen.1.elapsed() >= STILL;
        let anew = look == Look::Read || settled;
        if anew {
            self.fingerprint = self.seen.0.clone();
        }
        anew
    }

    /// Reads the files. While they have errors those that are in force count.
    fn read_documents(&mut self) {
        match Documents::read(&self.config.policies, identity::file(&self.config)) {
            Err(error) => {
                self.errors.files = Some(error.render(Style::Plain));
                let in_force = self.in_force.as_ref();
                self.written = in_force.map(|known| known.documents.as_ref().clone());
            }
            Ok(documents) => {
                self.errors.files = None;
                self.written = Some(documents);
            }
        }
    }

    /// Whether the cluster says something else of policies than before.
    fn hear_cluster(&mut self) -> bool {
        let now = self.sources.identities.policies(&self.config);
        let is_new = match (self.cluster.listing(), now.listing()) {
            (Some(before), Some(now)) => !Arc::ptr_eq(before, now),
            (None, Some(_)) => true,
            _ => false,
        };
        self.cluster = now;
        is_new
    }

    /// What files and cluster say together becomes the proposal if it is new.
    fn propose(&mut self) {
        // Whatever was proposed before is not said any more.
        self.proposed = None;
        self.errors.proposed = None;
        let Some(mut documents) = self.written.clone() else {
            return;
        };
        documents.cluster = self.decide(&documents.names_of_files());
        let known = self.in_force.as_ref();
        if known.is_none_or(|known| *known.documents != documents) {
            self.warned.clear();
            self.proposed = Some(Attempt::new(documents));
        }
    }

    /// Which versions of the cluster's policies count.
    fn decide(&mut self, names: &BTreeSet<Arc<str>>) -> Option<Resources> {
        let in_force = self.in_force.as_ref();
        let before = in_force.map_or(&self.kept, |known| &known.documents.cluster);
        match &self.cluster {
            ClusterPolicies::Unwanted => None,
            ClusterPolicies::Unknown(_) => before.as_ref().map(|before| before.without(names)),
            ClusterPolicies::Known(listing) => {
                let none = Resources::default();
                let (decided, refused) = listing.decide(before.as_ref().unwrap_or(&none), names);
                self.refused = refused;
                Some(decided)
            }
        }
    }

    /// Follows the quarantine file at once, whatever becomes of the policies.
    fn read_quarantine(&mut self) {
        let path = quarantine::path(&self.config.state_directory);
        let followed = match Quarantine::read(&path) {
            Ok(quarantine) => self
                .follow_quarantine(quarantine)
                .map_err(|error| error.to_string()),
            // Nobody is released by a damaged file.
            Err(error) => {
                self.recall_quarantine();
                Err(error.to_string())
            }
        };
        self.errors.quarantine = followed.err();
    }

    fn follow_quarantine(&mut self, now: Quarantine) -> Result<(), KernelError> {
        let released = self.enforcer.release(self.quarantine.as_ref(), &now);
        if self.quarantine.as_ref() != Some(&now) {
            let kept = quarantine::last_read(&self.config.state_directory);
            if let Err(error) = now.write(&kept) {
                tracing::error!(%error, "the quarantine list is not kept for a start with a damaged one");
            }
        }
        let now = self.quarantine.insert(now);
        self.enforcer.follow_quarantine(Some(now)).map(drop)?;
        released
    }

    /// After a reboot the kernel knows nobody: the list that was read last
    /// counts until the file is repaired.
    fn recall_quarantine(&mut self) {
        let kept = quarantine::last_read(&self.config.state_directory);
        if self.quarantine.is_none()
            && kept.exists()
            && let Ok(last) = Quarantine::read(&kept)
        {
            self.quarantine = Some(last);
        }
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

    fn look_around(&mut self, documents: &Documents) -> Machine {
        let clock = self.look_at_clock();
        let found =
            self.sources
                .identities
                .resolve(&documents.identities, &self.root, &self.config);
        // Nobody knows anybody, and nothing is enforced yet: nobody is
        // enrolled, and on an enforcing node nobody may do anything.
        let mut resolved = found.unwrap_or_else(|| Resolved {
            unknown: true,
            ..Resolved::default()
        });
        self.keep_macs(&mut resolved);
        let addresses = node::addresses().inspect_err(|error| {
            tracing::error!(%error, "cannot list this node's addresses");
        });
        Machine {
            resolved,
            enrolled: self.enrolments.present(&self.root),
            node_addresses: addresses.unwrap_or_else(|_| self.known_addresses()),
            host_netns: self.sources.identities.host_netns(),
            clock,
        }
    }

    fn look_at_clock(&mut self) -> Reading {
        let clock = self.sources.clock.look();
        self.board
            .boot_offset
            .store(clock.boot_offset, Ordering::Relaxed);
        let behind =
            (Time::now().0 < clock.set_back_from).then(|| Time(clock.set_back_from).to_string());
        let mut facts = self.board.facts();
        if let Some(latest) = behind
            .as_ref()
            .filter(|_| facts.clock_set_back_from != behind)
        {
            tracing::warn!(%latest, "the wall clock was set back: grants that had lapsed by then stay lapsed");
        }
        facts.clock_set_back_from = behind;
        clock
    }

    /// A workload may not take another MAC address, perhaps its neighbour's,
    /// for as long as it has the interface.
    fn keep_macs(&self, resolved: &mut Resolved) {
        for interface in &mut resolved.interfaces {
            let Some(mac) = self
                .enforcer
                .mac(interface.index)
                .filter(|mac| *mac != interface.mac)
            else {
                continue;
            };
            interface.mac = mac;
            resolved.changed_macs.push(interface.name.to_string());
        }
    }

    fn known_addresses(&self) -> Vec<IpAddr> {
        let tried = self.in_force.as_ref().and_then(|a| a.tried.as_ref());
        tried.map_or_else(Vec::new, |machine| machine.node_addresses.clone())
    }

    fn apply(&mut self, documents: &Documents, machine: &Machine) -> Result<(), StepError> {
        let model = model::build(&self.config, documents, machine);
        let declared = documents.identities.workloads.iter();
        let declared = declared.filter_map(|workload| workload.network_namespace.as_ref());
        self.enforcer.declare(declared.map(netns::path).collect());
        let (applied, warnings) = self.enforcer.apply(&model, self.quarantine.as_ref())?;
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
        self.warn(documents, warnings);
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
        let resolved = &machine.resolved;
        for text in &resolved.complaints {
            if !facts.complaints.contains(text) {
                tracing::warn!("{text}");
            }
        }
        facts.complaints.clone_from(&resolved.complaints);
        if let Some(cluster) = &mut facts.cluster {
            cluster.complete = !resolved.unknown;
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
        drop(facts);
        self.report_cluster();
    }

    fn in_force_of_cluster(&self) -> Option<&Resources> {
        self.in_force.as_ref()?.documents.cluster.as_ref()
    }

    /// Says what becomes of the cluster's policies.
    fn report_cluster(&self) {
        let mut facts = self.board.facts();
        let Some(cluster) = &mut facts.cluster else {
            return;
        };
        let new = (self.refused.iter()).filter(|one| !cluster.refused.contains(one));
        let mut count = 0;
        for refused in new {
            count += 1;
            tracing::error!(resource = %refused.resource, "its latest version is refused, and what was accepted of it before stays in force: {}", refused.why());
        }
        cluster.refused.clone_from(&self.refused);
        cluster.policies = self.in_force_of_cluster().map_or(0, Resources::len);
        cluster.policies_unknown = unknown(&self.cluster);
        facts.policy_errors += count;
        drop(facts);
        self.publish_verdicts();
    }

    fn publish_verdicts(&self) {
        let Some(listing) = self.cluster.listing() else {
            return;
        };
        let errors = &self.errors;
        let error = errors.proposed.as_ref().or(errors.identities.as_ref());
        let error = error.map(String::as_str);
        let nothing = Resources::default();
        let in_force = self.in_force_of_cluster().unwrap_or(&nothing);
        let verdicts = in_force.verdicts(listing, &self.refused, error, self.config.mode);
        self.board.verdicts.send_if_modified(|known| {
            let differ = **known != *verdicts;
            if differ {
                *known = verdicts.into();
            }
            differ
        });
    }
}

/// Why what is in force of the cluster's policies is not what it says now.
fn unknown(cluster: &ClusterPolicies) -> Option<String> {
    let ClusterPolicies::Unknown(absent) = cluster else {
        return None;
    };
    const STAY: &str = "those that were accepted last count";
    let names: Vec<&str> = absent.iter().map(|kind| kind.name()).collect();
    Some(match &names[..] {
        [] => format!("the API server has not listed the policies yet: {STAY}"),
        names => format!(
            "the API server does not know {}: apply the definitions, `zt-agent policy crd | kubectl apply -f -`; {STAY}",
            names.join(" and ")
        ),
    })
}

fn tried(machine: Machine, result: &Result<(), StepError>) -> Option<Machine> {
    let passing = result.as_ref().is_err_and(StepError::is_passing);
    (!passing).then_some(machine)
}
