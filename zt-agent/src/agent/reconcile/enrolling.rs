//! Cgroups that are enrolled by hand: all that is asked for together, in one step.

use super::{Look, Reconciler, StepError};
use crate::{
    admin::protocol::{Applied, Enrol},
    agent::enrolments::Ticket,
    compile::Shortage,
    kernel::KernelError,
};

/// `Ok` once it is enforced; otherwise why it is not enrolled.
pub type Enrolled = Result<(Ticket, Applied), String>;

impl Reconciler {
    /// Ends enrolments, and enrols; gives one result for each that comes.
    pub fn enrol(&mut self, go: &[Ticket], come: &[Enrol]) -> Vec<Enrolled> {
        for ticket in go {
            self.enrolments.withdraw(*ticket);
        }
        let add = |request| self.enrolments.add(request, &self.root, &self.config);
        let added: Vec<_> = come.iter().map(add).collect();
        self.enrolments.save();
        let _ = self.step(Look::Glance);
        if self.errors.in_force.is_some() && come.len() > 1 {
            // One of them may be what is wrong: the others do not go with it.
            let go: Vec<Ticket> = added.into_iter().flatten().collect();
            let (first, second) = come.split_at(come.len() / 2);
            let mut outcomes = self.enrol(&go, first);
            outcomes.extend(self.enrol(&[], second));
            return outcomes;
        }
        let mut refused = Vec::new();
        let outcome = |added: Result<Ticket, KernelError>| {
            let ticket = added.map_err(|error| error.to_string())?;
            let enforced = self.is_enforced(ticket);
            enforced.inspect_err(|_| refused.push(ticket))?;
            Ok((ticket, self.last))
        };
        let outcomes = added.into_iter().map(outcome).collect();
        if !refused.is_empty() {
            self.enrol(&refused, &[]);
        }
        outcomes
    }

    fn is_enforced(&self, ticket: Ticket) -> Result<(), String> {
        let cgroup = self.enrolments.cgroup(ticket);
        let is_left_out = |short: &&Shortage| cgroup.is_some_and(|id| short.has_left_out(id));
        let short = self.shortage.as_ref().filter(is_left_out);
        match (&self.in_force, &self.errors.in_force, short) {
            (Some(_), None, None) => Ok(()),
            (None, ..) => Err(StepError::NothingToEnforce.to_string()),
            (_, Some(error), _) => Err(error.clone()),
            (_, None, Some(short)) => Err(short.full.clone()),
        }
    }
}
