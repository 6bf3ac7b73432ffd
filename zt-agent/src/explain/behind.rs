//! Who is behind a port of a Service's address, and what the rules say of each:
//! the strictest counts, but for who is left to its own node.

use zt_common::{
    codes::{Action, Protocol},
    identity::Number,
    policy::Side,
};

use super::{World, names::Words, said};
use crate::model::{Member, Name, Party};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    pub party: Number,
    /// Where it gets what is sent to the Service.
    pub port: u16,
    /// What is said of the flow if it is led there.
    pub said: Side,
    pub quarantined: bool,
    /// It is its node that refuses it what it may not get.
    pub is_governed: bool,
}

/// Everybody behind `destination`; nobody if it is no Service with several.
#[must_use]
pub fn behind(
    source: Number,
    destination: Number,
    protocol: Protocol,
    world: &World<'_>,
) -> Vec<Behind> {
    let mut names = world.numbers.names();
    let service = names.find_map(|(name, number)| match name {
        Name::Service(service) if number == destination => Some(service),
        _ => None,
    });
    let members = service.into_iter().flat_map(|service| service.members());
    let number = |party: &Party| match party {
        Party::Workload(id) => world.numbers.get(&Name::Spiffe(id.clone())),
        Party::Reserved(number) => Some(*number),
        Party::Service(_) => None,
    };
    let one = |member: &Member| {
        let party = number(&member.party)?;
        let pair = said::Pair {
            source,
            destination: party,
            protocol: protocol as u8,
        };
        Some(Behind {
            party,
            port: member.port,
            said: said::at(world.tables, &pair, member.port).now,
            quarantined: world.quarantined.contains(&party),
            is_governed: member.is_governed,
        })
    };
    members.filter_map(one).collect()
}

impl Behind {
    /// No rule mentions it.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.said.action == Action::None as u8
    }

    /// A rule allows it.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        self.said.action == Action::Allow as u8 && !self.quarantined
    }

    /// `green at 8080: no rule allows it`
    #[must_use]
    pub fn text(&self, words: &Words) -> String {
        let (name, port) = (words.identity(self.party), self.port);
        let rule = words.rule(self.said.rule).unwrap_or_default();
        let says = if self.quarantined {
            "it is quarantined".to_owned()
        } else if self.said.action == Action::Deny as u8 {
            format!("{rule} denies it")
        } else if self.is_silent() {
            "no rule allows it".to_owned()
        } else {
            format!("{rule} allows it")
        };
        let left = if self.is_governed && !self.is_allowed() {
            ", and its node refuses it there"
        } else {
            ""
        };
        format!("{name} at {port}: {says}{left}")
    }
}
