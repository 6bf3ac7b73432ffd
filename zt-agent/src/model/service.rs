//! A port of a Service's address behind which there are several parties.
//!
//! Its text is its name among the numbers: from it alone everybody who reads the
//! pinned maps knows who is behind it.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use zt_common::identity;

use super::{node::Party, spiffe::SpiffeId};

/// Bytes of the longest text: with its end it fills a row of `zt_identity_v1`.
const LONGEST: usize = 2047;

/// Several parties, each at a port of its own, and the Service that leads to all
/// of them: nobody knows to which one next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// `namespace/name`
    name: Arc<str>,
    members: BTreeSet<(Party, u16)>,
}

impl Service {
    /// `None`: there are not several, somebody among them is nobody that a rule
    /// can name, or the text would be too long.
    #[must_use]
    pub fn new(name: &str, members: BTreeSet<(Party, u16)>) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-./".contains(&byte);
        let service = Self {
            name: name.into(),
            members,
        };
        let is_good = service.members.len() > 1
            && service.members().all(|(party, _)| is_nameable(party))
            && name.bytes().all(is_plain)
            && service.to_string().len() <= LONGEST;
        is_good.then_some(service)
    }

    /// Who is behind it, and at which port; always in the same order.
    pub fn members(&self) -> impl Iterator<Item = (&Party, u16)> {
        self.members.iter().map(|(party, port)| (party, *port))
    }

    /// The identities among them.
    pub fn identities(&self) -> impl Iterator<Item = &SpiffeId> {
        // A Service is never behind another.
        self.members.iter().filter_map(|(party, _)| match party {
            Party::Workload(id) => Some(id),
            Party::Reserved(_) | Party::Service(_) => None,
        })
    }

    /// The same with names of one's own for the members.
    pub fn text(&self, mut name: impl FnMut(&Party) -> String) -> String {
        let member = |(party, port): (&Party, u16)| format!("{} at {port}", name(party));
        let members: Vec<String> = self.members().map(member).collect();
        format!("service {} ({})", self.name, members.join(", "))
    }
}

fn is_nameable(party: &Party) -> bool {
    match party {
        Party::Workload(_) => true,
        Party::Reserved(number) => {
            matches!(
                *number,
                identity::HOST | identity::NODES | identity::APISERVER
            )
        }
        Party::Service(_) => false,
    }
}

/// `service shop/web (spiffe://td/shop/blue at 8080, spiffe://td/shop/green at 8080)`
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(ToString::to_string))
    }
}

/// It is not the text of a [`Service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no Service with several parties behind it")]
pub struct NoService;

impl FromStr for Service {
    type Err = NoService;

    fn from_str(text: &str) -> Result<Self, NoService> {
        let rest = text.strip_prefix("service ").ok_or(NoService)?;
        let rest = rest.strip_suffix(')').ok_or(NoService)?;
        let (name, members) = rest.split_once(" (").ok_or(NoService)?;
        let members = members.split(", ").map(|member| {
            let (party, port) = member.rsplit_once(" at ")?;
            Some((read(party)?, port.parse().ok()?))
        });
        let members = members.collect::<Option<_>>().ok_or(NoService)?;
        Self::new(name, members).ok_or(NoService)
    }
}

fn read(party: &str) -> Option<Party> {
    let mut reserved = identity::RESERVED.iter();
    if let Some((number, _)) = reserved.find(|(_, name)| *name == party) {
        return Some(Party::Reserved(*number));
    }
    party.parse().ok().map(Party::Workload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Party {
        Party::Workload(format!("spiffe://td/shop/{name}").parse().unwrap())
    }

    fn of(members: &[(Party, u16)]) -> Option<Service> {
        Service::new("shop/web", members.iter().cloned().collect())
    }

    #[test]
    fn its_text_says_everything() {
        let nodes = Party::Reserved(identity::NODES);
        let service = of(&[(nodes, 80), (id("green"), 8081), (id("blue"), 8080)]).unwrap();
        let text = "service shop/web (spiffe://td/shop/blue at 8080, spiffe://td/shop/green at 8081, nodes at 80)";
        assert_eq!(service.to_string(), text);
        assert_eq!(text.parse(), Ok(service));
        for other in [
            "spiffe://td/a",
            "service a (b)",
            "service a ()",
            "service x",
        ] {
            assert_eq!(other.parse::<Service>(), Err(NoService), "{other}");
        }
    }

    #[test]
    fn one_party_is_none_and_so_are_too_many_and_who_cannot_be_named() {
        let unknown = Party::Reserved(identity::UNKNOWN_PEER);
        assert_eq!(of(&[(id("a"), 80)]), None);
        assert!(of(&[(id("a"), 80), (id("a"), 81)]).is_some());
        assert_eq!(of(&[(id("a"), 80), (unknown, 80)]), None);
        let inner = of(&[(id("a"), 80), (id("b"), 80)]).unwrap();
        assert_eq!(
            of(&[(id("a"), 80), (Party::Service(inner.into()), 80)]),
            None
        );
        let many: Vec<_> = (0..100)
            .map(|n| (id(&format!("account-{n}")), 80))
            .collect();
        assert_eq!(of(&many), None);
        let members = BTreeSet::from([(id("a"), 80), (id("b"), 80)]);
        assert_eq!(Service::new("a (b", members), None);
    }
}
