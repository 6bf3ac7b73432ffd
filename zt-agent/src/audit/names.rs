//! Numbers into words, for records.

use std::{collections::HashMap, sync::Arc};

use zt_common::identity::{Number, RESERVED};

use super::record::Text;
use crate::model::{Name, Numbers};

/// Who a number is.
#[derive(Clone, Debug, PartialEq)]
pub enum Identity {
    Spiffe(Text),
    /// A reserved identity, a class of addresses, or a number that nobody
    /// knows.
    Other(Text),
}

/// A snapshot of every name that an event can refer to. Share it as
/// `Arc<Names>` and make a new one when numbers or workloads change.
#[derive(Clone, Debug, Default)]
pub struct Names {
    identities: HashMap<Number, Identity>,
    rules: HashMap<u32, Arc<str>>,
    workloads: HashMap<u64, Arc<str>>,
}

impl Names {
    /// `workloads` are the enrolled cgroups and their paths.
    pub fn new(numbers: &Numbers, workloads: impl IntoIterator<Item = (u64, Arc<str>)>) -> Self {
        let identities = numbers.names().map(|(name, number)| {
            let identity = match name {
                Name::Spiffe(id) => Identity::Spiffe(Text::Shared(id.shared())),
                Name::Class(_) | Name::Service(_) => Identity::Other(name.to_string().into()),
            };
            (number, identity)
        });
        let rules = numbers
            .rules()
            .map(|(rule, number)| (number, rule.to_string().into()));
        Self {
            identities: identities.collect(),
            rules: rules.collect(),
            workloads: workloads.into_iter().collect(),
        }
    }

    /// Who `number` is; an unknown one is `number-N`.
    #[must_use]
    pub fn identity(&self, number: Number) -> Identity {
        if let Some((_, name)) = RESERVED.iter().find(|(reserved, _)| *reserved == number) {
            return Identity::Other(Text::Fixed(name));
        }
        self.identities
            .get(&number)
            .cloned()
            .unwrap_or_else(|| Identity::Other(format!("number-{number}").into()))
    }

    /// The name of a rule; `None` for number 0, `number-N` for an unknown one.
    #[must_use]
    pub fn rule(&self, number: u32) -> Option<Text> {
        if number == 0 {
            return None;
        }
        Some(self.rules.get(&number).map_or_else(
            || format!("number-{number}").into(),
            |name| Text::Shared(name.clone()),
        ))
    }

    /// The path of an enrolled cgroup.
    #[must_use]
    pub fn workload(&self, cgroup: u64) -> Option<Text> {
        self.workloads
            .get(&cgroup)
            .map(|path| Text::Shared(path.clone()))
    }
}
