//! Numbers for identities and rules, kept in the kernel with their names so
//! that they survive the agent and a person can read them with bpftool.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use aya::Pod;
use zt_common::identity;

use super::{KernelError, pins::Pins, sys};
use crate::model::{Name, Numbers, RuleRef, Service};

/// `zt_identity_v1` and `zt_rule_v1`.
#[derive(Debug)]
pub struct NameMaps {
    identities: OwnedFd,
    rules: OwnedFd,
}

impl NameMaps {
    /// # Errors
    /// When they are not pinned.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let open = |name: &str| {
            sys::get_pinned(&pins.map(name))
                .map_err(|_| KernelError::NotRunning(pins.directory().into()))
        };
        Ok(Self {
            identities: open("zt_identity_v1")?,
            rules: open("zt_rule_v1")?,
        })
    }

    /// All numbers given out so far. The number of a row that cannot be read
    /// is not given out again.
    ///
    /// # Errors
    /// When a call fails.
    pub fn read(&self) -> Result<Numbers, KernelError> {
        let mut numbers = Numbers::default();
        each::<identity::Name>(self.identities.as_fd(), "zt_identity_v1", |number, row| {
            numbers.reserve(number);
            if let Some(name) = text(&row.name).and_then(|text| parse_name(&text)) {
                numbers.adopt(name, number);
            }
        })?;
        let mut rules = Vec::new();
        each::<identity::RuleName>(self.rules.as_fd(), "zt_rule_v1", |number, row| {
            numbers.reserve_rule(number);
            if let Some(rule) = text(&row.name).and_then(|text| parse_rule(&text)) {
                rules.push((rule, number));
            }
        })?;
        // A map has them in any order; each goes behind those before it.
        rules.sort_unstable();
        for (rule, number) in rules {
            numbers.adopt_rule(rule, number);
        }
        Ok(numbers)
    }

    /// Writes the names that the kernel does not have yet.
    ///
    /// # Errors
    /// When a call fails.
    pub fn write(&self, numbers: &Numbers, known: &Numbers) -> Result<(), KernelError> {
        for (number, name) in identity::RESERVED {
            self.write_identity(*number, name)?;
        }
        for (name, number) in numbers.names() {
            if known.get(name).is_none() {
                self.write_identity(number, &name.to_string())?;
            }
        }
        for (rule, number) in numbers.rules() {
            if known.rule(&rule).is_none() {
                let row = identity::RuleName {
                    name: padded(&rule.to_string()),
                };
                sys::map_update(self.rules.as_fd(), &number, &row)
                    .map_err(KernelError::call("update", "zt_rule_v1"))?;
            }
        }
        Ok(())
    }

    /// Looks whether the kernel still has the names of `numbers`, and writes
    /// those that it does not. Rows of numbers that nobody gave out go. Gives
    /// how many there were of both.
    ///
    /// # Errors
    /// When a call fails.
    pub fn restore(&self, numbers: &Numbers) -> Result<usize, KernelError> {
        let mut names: BTreeMap<u32, String> = (identity::RESERVED.iter())
            .map(|(number, name)| (*number, (*name).to_owned()))
            .collect();
        names.extend((numbers.names()).map(|(name, number)| (number, name.to_string())));
        let identities = self.identities.as_fd();
        // A row is two KiB: none of them is kept.
        let (mut right, mut strays) = (BTreeSet::new(), Vec::new());
        each(
            identities,
            "zt_identity_v1",
            |number, row: identity::Name| match names.get(&number) {
                Some(name) if row.name == padded(name) => _ = right.insert(number),
                None if !numbers.was_given(number) => strays.push(number),
                _ => {}
            },
        )?;
        let wrong = names.iter().filter(|(number, _)| !right.contains(number));
        let mut restored = strays.len();
        for (number, name) in wrong {
            self.write_identity(*number, name)?;
            restored += 1;
        }
        for number in strays {
            sys::map_delete(identities, &number)
                .map_err(KernelError::call("delete", "zt_identity_v1"))?;
        }
        Ok(restored + self.restore_rules(numbers)?)
    }

    fn restore_rules(&self, numbers: &Numbers) -> Result<usize, KernelError> {
        let names = numbers.rules().map(|(rule, number)| (number, rule));
        let names: BTreeMap<u32, RuleRef> = names.collect();
        let rules = self.rules.as_fd();
        let (mut right, mut strays) = (BTreeSet::new(), Vec::new());
        each(
            rules,
            "zt_rule_v1",
            |number, row: identity::RuleName| match names.get(&number) {
                Some(rule) if row.name == padded(&rule.to_string()) => _ = right.insert(number),
                None if !numbers.was_given_rule(number) => strays.push(number),
                _ => {}
            },
        )?;
        let wrong = names.iter().filter(|(number, _)| !right.contains(number));
        let mut restored = strays.len();
        for (number, rule) in wrong {
            let name = padded(&rule.to_string());
            sys::map_update(rules, number, &identity::RuleName { name })
                .map_err(KernelError::call("update", "zt_rule_v1"))?;
            restored += 1;
        }
        for number in strays {
            sys::map_delete(rules, &number).map_err(KernelError::call("delete", "zt_rule_v1"))?;
        }
        Ok(restored)
    }

    /// Removes the names of numbers that were given back.
    ///
    /// # Errors
    /// At the first that cannot be removed.
    pub fn remove(
        &self,
        numbers: &BTreeSet<identity::Number>,
        rules: &BTreeSet<u32>,
    ) -> Result<(), KernelError> {
        for (map, name, gone) in [
            (&self.identities, "zt_identity_v1", numbers),
            (&self.rules, "zt_rule_v1", rules),
        ] {
            for number in gone {
                sys::map_delete(map.as_fd(), number).map_err(KernelError::call("delete", name))?;
            }
        }
        Ok(())
    }

    fn write_identity(&self, number: u32, name: &str) -> Result<(), KernelError> {
        let row = identity::Name { name: padded(name) };
        sys::map_update(self.identities.as_fd(), &number, &row)
            .map_err(KernelError::call("update", "zt_identity_v1"))
    }
}

fn each<V: Pod>(
    map: BorrowedFd<'_>,
    name: &'static str,
    mut take: impl FnMut(u32, V),
) -> Result<(), KernelError> {
    let mut last: Option<u32> = None;
    while let Some(key) =
        sys::map_next_key(map, last.as_ref()).map_err(KernelError::call("next key", name))?
    {
        if let Some(row) = sys::map_lookup(map, &key).map_err(KernelError::call("lookup", name))? {
            take(key, row);
        }
        last = Some(key);
    }
    Ok(())
}

fn padded<const N: usize>(text: &str) -> [i8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(text.bytes()) {
        *to = from.cast_signed();
    }
    out
}

fn text(bytes: &[i8]) -> Option<String> {
    let bytes: Vec<u8> = bytes
        .iter()
        .map(|byte| byte.cast_unsigned())
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8(bytes).ok()
}

fn parse_name(text: &str) -> Option<Name> {
    if let Some(prefix) = text.strip_prefix("cidr:") {
        return prefix.parse().ok().map(Name::Class);
    }
    if let Ok(service) = text.parse::<Service>() {
        return Some(Name::Service(service.into()));
    }
    text.parse().ok().map(Name::Spiffe)
}

fn parse_rule(text: &str) -> Option<RuleRef> {
    let (policy, number) = text.rsplit_once("/rule-")?;
    Some(RuleRef {
        policy: policy.into(),
        number: number.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_row() {
        let name: Name = Name::Spiffe("spiffe://td/a/b".parse().unwrap());
        let row: [i8; 2048] = padded(&name.to_string());
        assert_eq!(text(&row).and_then(|text| parse_name(&text)), Some(name));
        let class = Name::Class("203.0.113.0/24".parse().unwrap());
        let row: [i8; 2048] = padded(&class.to_string());
        assert_eq!(text(&row).and_then(|text| parse_name(&text)), Some(class));
        let service = "service a/b (spiffe://td/a at 80, spiffe://td/b at 80)";
        let service = Name::Service(service.parse::<Service>().unwrap().into());
        let row: [i8; 2048] = padded(&service.to_string());
        assert_eq!(text(&row).and_then(|text| parse_name(&text)), Some(service));
    }

    #[test]
    fn rule_names_survive_the_row() {
        let rule = RuleRef {
            policy: "a/rule-1".into(),
            number: 22,
        };
        assert_eq!(parse_rule(&rule.to_string()), Some(rule));
    }
}
