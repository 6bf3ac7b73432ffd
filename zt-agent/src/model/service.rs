//! A port of a Service's address behind which there are several parties.
//!
//! Its text is its name among the numbers: from it alone everybody who reads the
//! pinned maps knows who is behind it.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

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
    members: Box<[Member]>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    pub party: Party,
    /// Where it gets what is sent to the Service.
    pub port: u16,
    /// Wherever it is, the node's agent says that it enforces all of its node: what
    /// it may not get, it is not given there.
    pub is_governed: bool,
}

impl Member {
    /// Whether this is the same party at the same port.
    #[must_use]
    pub fn is_at_place_of(&self, other: &Self) -> bool {
        (&self.party, self.port) == (&other.party, other.port)
    }
}

impl From<(Party, u16)> for Member {
    fn from((party, port): (Party, u16)) -> Self {
        Self {
            party,
            port,
            is_governed: false,
        }
    }
}

impl Service {
    /// Who is somewhere governed and elsewhere not, at the same port, is not.
    ///
    /// `None`: there are not several, somebody among them is nobody that a rule
    /// can name, or the text would be too long.
    #[must_use]
    pub fn new(name: &str, members: impl IntoIterator<Item: Into<Member>>) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-./".contains(&byte);
        let mut governed = BTreeMap::new();
        for member in members.into_iter().map(Into::into) {
            let known = governed.entry((member.party, member.port));
            *known.or_insert(true) &= member.is_governed;
        }
        let member = |((party, port), is_governed)| Member {
            party,
            port,
            is_governed,
        };
        let service = Self {
            name: name.into(),
            members: governed.into_iter().map(member).collect(),
        };
        let is_good = service.members.len() > 1
            && service.members.iter().all(|one| is_nameable(&one.party))
            && name.bytes().all(is_plain)
            && service.to_string().len() <= LONGEST;
        is_good.then_some(service)
    }

    /// Who is behind it, a party once for each of its ports; always in the same
    /// order.
    #[must_use]
    pub const fn members(&self) -> &[Member] {
        &self.members
    }

    /// The identities among them.
    pub fn identities(&self) -> impl Iterator<Item = &SpiffeId> {
        // A Service is never behind another.
        self.members
            .iter()
            .filter_map(|member| match &member.party {
                Party::Workload(id) => Some(id),
                Party::Reserved(_) | Party::Service(_) => None,
            })
    }

    /// The same with names of one's own for the members.
    pub fn text(&self, mut name: impl FnMut(&Party) -> String) -> String {
        let member = |one: &Member| {
            let governed = if one.is_governed { GOVERNED } else { "" };
            format!("{} at {}{governed}", name(&one.party), one.port)
        };
        let members: Vec<String> = self.members.iter().map(member).collect();
        format!("service {} ({})", self.name, members.join(", "))
    }
}

const GOVERNED: &str = " governed";

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

/// `service shop/web (spiffe://td/shop/blue at 8080, spiffe://td/shop/green at 8080 governed)`
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
            let governed = port.strip_suffix(GOVERNED);
            Some(Member {
                party: read(party)?,
                port: governed.unwrap_or(port).parse().ok()?,
                is_governed: governed.is_some(),
            })
        });
        let members: Vec<Member> = members.collect::<Option<_>>().ok_or(NoService)?;
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
        Service::new("shop/web", members.iter().cloned())
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
        assert_eq!(Service::new("a (b", [(id("a"), 80), (id("b"), 80)]), None);
    }

    #[test]
    fn who_is_not_governed_everywhere_is_not() {
        let governed = |name: &str, is_governed| Member {
            is_governed,
            ..(id(name), 80).into()
        };
        let members = [
            governed("a", true),
            governed("b", false),
            governed("b", true),
        ];
        let service = Service::new("shop/web", members.clone()).unwrap();
        assert_eq!(service.members(), &members[..2]);
        let text = service.to_string();
        assert!(text.contains("shop/a at 80 governed, "), "{text}");
        assert_eq!(text.parse(), Ok(service));
    }
}
