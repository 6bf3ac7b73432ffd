//! Whom a rule means: `spiffe`, `group`, `cidr` or `reserved`.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use zt_common::identity::{self, Number};

use super::{
    address,
    field::{Field, Fields, did_you_mean},
};
use crate::model::{Selector, SpiffePattern};

/// The ways to say whom a rule means.
pub const KINDS: [&str; 4] = ["spiffe", "group", "cidr", "reserved"];

/// Those that a rule can name.
pub(super) const NAMEABLE: [Number; 5] = [
    identity::HOST,
    identity::NODES,
    identity::APISERVER,
    identity::WORLD,
    identity::MASQUERADED,
];

/// Selectors that the groups of a set may stand for in all its rules together:
/// far above what the maps hold, far below what memory does.
const EXPANSION_LIMIT: usize = 1_000_000;

/// The members of every `IdentityGroup`.
#[derive(Debug, Default)]
pub struct Groups {
    pub members: BTreeMap<Arc<str>, Vec<SpiffePattern>>,
    /// Some file could not be read, so a group that is not here may be there.
    pub incomplete: bool,
    /// Selectors that groups stood for so far.
    expanded: Cell<usize>,
    /// That stand in rules: thousands of rules name the same few.
    named: RefCell<HashSet<SpiffePattern>>,
}

impl Groups {
    /// The same pattern, which is in memory once.
    fn share(&self, pattern: SpiffePattern) -> SpiffePattern {
        let mut named = self.named.borrow_mut();
        if let Some(known) = named.get(&pattern) {
            return known.clone();
        }
        named.insert(pattern.clone());
        pattern
    }

    /// The members of a group as selectors; complains once when the groups
    /// together stand for too many.
    fn expand(&self, field: &Field<'_>, members: &[SpiffePattern]) -> Option<Vec<Selector>> {
        let before = self.expanded.get();
        let after = before.saturating_add(members.len());
        self.expanded.set(after);
        if after <= EXPANSION_LIMIT {
            return Some(members.iter().cloned().map(Selector::Spiffe).collect());
        }
        if before <= EXPANSION_LIMIT {
            field.error(
                format!(
                    "the groups stand for more than {EXPANSION_LIMIT} identities in these rules"
                ),
                "select by patterns (`spiffe://td/ns/*`) instead of long lists of members",
            );
        }
        None
    }
}

/// The selectors that one element stands for: a group stands for its members.
/// The element must have exactly one of [`KINDS`].
pub fn selectors(fields: &Fields<'_>, groups: &Groups) -> Option<Vec<Selector>> {
    let (kind, field) = fields.exactly_one(&KINDS)?;
    match kind {
        "spiffe" => pattern(&field).map(|pattern| vec![Selector::Spiffe(groups.share(pattern))]),
        "group" => group(&field, groups),
        "cidr" => address::network(&field).map(|net| vec![Selector::Cidr(net)]),
        _ => reserved(&field, &NAMEABLE).map(|number| vec![Selector::Reserved(number)]),
    }
}

/// A SPIFFE ID in which segments may be wildcards.
pub fn pattern(field: &Field<'_>) -> Option<SpiffePattern> {
    field.parse("write it like spiffe://td/cluster/ns/name; `*` is one segment, `**` the rest")
}

fn group(field: &Field<'_>, groups: &Groups) -> Option<Vec<Selector>> {
    let name = field.text()?;
    if let Some(members) = groups.members.get(name) {
        return groups.expand(field, members);
    }
    if groups.incomplete {
        // The file that cannot be read has its own problem already.
        return None;
    }
    let mut hint = did_you_mean(name, groups.members.keys().map(|name| &**name));
    if hint.is_empty() {
        hint = "declare it in an IdentityGroup in any of the policy files".to_owned();
    }
    field.refuse(format!("there is no group {name:?}"), hint)
}

/// A reserved identity by its name.
pub fn reserved(field: &Field<'_>, nameable: &[Number]) -> Option<Number> {
    let text = field.text()?;
    let known = |name: &str| identity::RESERVED.iter().find(|(_, known)| *known == name);
    match known(text) {
        Some((number, _)) if nameable.contains(number) => return Some(*number),
        Some((number, name)) => {
            let why = match NAMEABLE.contains(number) {
                true => "cannot be declared by hand",
                false => "can be seen in records, and never be allowed by name",
            };
            return field.refuse(
                format!("{name} {why}"),
                format!(
                    "the reserved identities here are: {}",
                    names(nameable).join(", ")
                ),
            );
        }
        None => {}
    }
    let names = names(nameable);
    let mut hint = did_you_mean(text, names.iter().copied());
    if hint.is_empty() {
        hint = format!("the reserved identities here are: {}", names.join(", "));
    }
    field.refuse(format!("{text:?} is no reserved identity"), hint)
}

pub(super) fn names(numbers: &[Number]) -> Vec<&'static str> {
    let nameable =
        |(number, name): &(Number, &'static str)| numbers.contains(number).then_some(*name);
    identity::RESERVED.iter().filter_map(nameable).collect()
}
