//! Those who wait until a pod's interface is covered.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::reconcile::{Look, Reconciler};
use crate::{
    admin::protocol::{Attach, Attached, Detach},
    source::kubernetes::Shown,
};

/// No one waits longer.
const LONGEST: Duration = Duration::from_secs(300);

/// A request with the namespace that came with it.
#[derive(Clone, Debug)]
pub struct Attaching {
    pub request: Attach,
    pub shown: Shown,
}

impl Attaching {
    /// `namespace/name`.
    #[must_use]
    pub fn pod_name(&self) -> String {
        format!("{}/{}", self.request.namespace, self.request.name)
    }
}

/// Why a pod is not covered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotCovered {
    /// Not yet.
    Missing(String),
    /// Time does not heal it.
    Refused(String),
}

/// Answers one of them.
pub type Reply = oneshot::Sender<Result<Attached, String>>;

/// All of them.
#[derive(Debug, Default)]
pub struct Attachments(Vec<Waiting>);

#[derive(Debug)]
struct Waiting {
    attaching: Box<Attaching>,
    until: Instant,
    /// The namespace is the pod's because of this one.
    attached: bool,
    reply: Reply,
}

impl Attachments {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one.
    pub fn add(&mut self, attaching: Box<Attaching>, reply: Reply) {
        let timeout = Duration::from_secs(attaching.request.timeout.into());
        self.0.push(Waiting {
            until: Instant::now() + timeout.min(LONGEST),
            attaching,
            attached: false,
            reply,
        });
    }

    /// Attaches those that can be now, and answers those that are covered, are
    /// refused, or have waited long enough. What failed is forgotten.
    pub fn go_on(&mut self, reconciler: &mut Reconciler) {
        if self.0.is_empty() {
            return;
        }
        let mut anew = false;
        let mut results = Vec::new();
        for one in &mut self.0 {
            let result = reconciler.attach(&one.attaching);
            if let Ok(true) = result {
                one.attached = true;
                anew = true;
            }
            results.push(result.err());
        }
        if anew {
            let _ = reconciler.step(Look::Glance);
        }
        let mut failed = false;
        let waiting = std::mem::take(&mut self.0).into_iter().zip(results);
        for (one, error) in waiting {
            let result = error.map_or_else(|| reconciler.covered(&one.attaching), Err);
            match one.answer(result) {
                Left::Waits(one) => self.0.push(one),
                Left::Failed(sandbox) => {
                    failed |= reconciler.detach(&Detach::Sandbox(sandbox));
                }
                Left::Done => {}
            }
        }
        if failed {
            let _ = reconciler.step(Look::Glance);
        }
    }
}

/// What becomes of one.
enum Left {
    Waits(Waiting),
    /// The sandbox is to be forgotten.
    Failed(String),
    Done,
}

impl Waiting {
    fn answer(self, result: Result<Attached, NotCovered>) -> Left {
        let late = self.until <= Instant::now();
        let answer = match result {
            Ok(attached) => Ok(attached),
            Err(NotCovered::Refused(why)) => Err(why),
            Err(NotCovered::Missing(why)) if late => Err(format!(
                "not within {} s: {why}",
                self.attaching.request.timeout
            )),
            Err(NotCovered::Missing(_)) if !self.reply.is_closed() => return Left::Waits(self),
            // Its client hung up.
            Err(NotCovered::Missing(why)) => Err(why),
        };
        let is_covered = answer.is_ok();
        let heard = self.reply.send(answer).is_ok();
        if self.attached && !(is_covered && heard) {
            Left::Failed(self.attaching.request.sandbox)
        } else {
            Left::Done
        }
    }
}
