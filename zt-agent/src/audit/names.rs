//! Numbers into words, for records.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use zt_common::identity::{Number, RESERVED};

use super::record::Text;
use crate::model::{Name, Numbers, RuleRef};

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
    numbered: Arc<Numbered>,
    workloads: HashMap<u64, Arc<str>>,
}

/// What has a number.
#[derive(Debug, Default)]
struct Numbered {
    identities: HashMap<Number, Identity>,
    /// Sorted by number.
    rules: Vec<(u32, Rule)>,
}

/// There are tens of thousands, of which few are ever mentioned: put into words
/// when it is the first time.
#[derive(Debug)]
struct Rule {
    name: RuleRef,
    text: OnceLock<Arc<str>>,
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
        let rules = numbers.rules().map(|(name, number)| {
            let text = OnceLock::new();
            (number, Rule { name, text })
        });
        let mut numbered = Numbered {
            identities: identities.collect(),
            rules: rules.collect(),
        };
        numbered.rules.sort_unstable_by_key(|(number, _)| *number);
        Self {
            numbered: numbered.into(),
            workloads: workloads.into_iter().collect(),
        }
    }

    /// The same numbers, which are shared, and other workloads.
    #[must_use]
    pub fn beside(&self, workloads: impl IntoIterator<Item = (u64, Arc<str>)>) -> Self {
        Self {
            numbered: self.numbered.clone(),
            workloads: workloads.into_iter().collect(),
        }
    }

    /// Who `number` is; an unknown one is `number-N`.
    #[must_use]
    pub fn identity(&self, number: Number) -> Identity {
        if let Some((_, name)) = RESERVED.iter().find(|(reserved, _)| *reserved == number) {
            return Identity::Other(Text::Fixed(name));
        }
        self.numbered
            .identities
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
        let rules = &self.numbered.rules;
        let found = rules.binary_search_by_key(&number, |(number, _)| *number);
        Some(match found {
            Ok(at) => {
                let Rule { name, text } = &rules[at].1;
                Text::Shared(text.get_or_init(|| name.to_string().into()).clone())
            }
            Err(_) => format!("number-{number}").into(),
        })
    }

    /// The path of an enrolled cgroup.
    #[must_use]
    pub fn workload(&self, cgroup: u64) -> Option<Text> {
        self.workloads
            .get(&cgroup)
            .map(|path| Text::Shared(path.clone()))
    }
}
