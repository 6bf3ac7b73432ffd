//! What is not in force, for want of room, as a person reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use crate::model::SpiffeId;

/// What is not in force, for want of room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shortage {
    /// Of what there is too much, and what to do.
    pub full: String,
    /// Policies that are not in force as a whole.
    pub policies: BTreeSet<Arc<str>>,
    /// Workloads that may do nothing, because not all that is denied to them is in
    /// the maps.
    pub shut: BTreeSet<SpiffeId>,
    /// Cgroups that are not enrolled, and who they would be.
    pub workloads: BTreeMap<u64, SpiffeId>,
    /// Some of them are to be enforced, and so everybody is who is not enrolled,
    /// though the node is in audit mode.
    pub enforces: bool,
    /// Nobody's.
    pub addresses: BTreeSet<IpAddr>,
    /// Interfaces through which nothing passes.
    pub interfaces: BTreeSet<Arc<str>>,
    /// It may end by itself: numbers that nobody needs come back.
    pub passes: bool,
}

impl Shortage {
    #[must_use]
    pub fn has_left_out(&self, cgroup: u64) -> bool {
        self.workloads.contains_key(&cgroup)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; until then nothing is added for which there is no room",
            self.full
        )?;
        let policies = self.policies.iter().map(ToString::to_string);
        list(f, "not all of the policies", policies)?;
        let shut = self.shut.iter().map(ToString::to_string);
        list(
            f,
            "nothing to or from the workloads, for what is denied to them does not fit,",
            shut,
        )?;
        let workloads = self.workloads.values().map(ToString::to_string);
        list(f, "not the workloads", workloads)?;
        if self.enforces {
            write!(
                f,
                "; and as not all of these are in audit mode, nobody on this node passes who is not enrolled, though the node is"
            )?;
        }
        let addresses = self.addresses.iter().map(ToString::to_string);
        list(f, "nobody at the addresses", addresses)?;
        let interfaces = self.interfaces.iter().map(ToString::to_string);
        list(f, "nothing at the interfaces", interfaces)
    }
}

/// A person needs no thousand names.
const NAMED: usize = 5;

fn list(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    names: impl ExactSizeIterator<Item = String>,
) -> fmt::Result {
    let count = names.len();
    if count == 0 {
        return Ok(());
    }
    let named: Vec<String> = names.take(NAMED).collect();
    write!(f, "; {what} {}", named.join(", "))?;
    match count - named.len() {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}
