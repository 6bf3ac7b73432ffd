//! Whom a question means: as a governed end, and as the other end sees it.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use zt_common::{
    address::{AddressKey, Ip, Peer, Workload, mapped, peer_flags, workload_flags},
    identity::{self, Number},
};

use super::{World, names};
use crate::{
    compile::{Tables, lookup},
    model::{Name, SpiffeId},
};

/// One end of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Identity(SpiffeId),
    Address(IpAddr),
    Reserved(Number),
    /// The ending of a SPIFFE ID: `postgres`, `hanzo/postgres`.
    Ending(String),
}

/// What a question cannot be asked about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    #[error(
        "{0:?} is no SPIFFE ID (spiffe://TRUST-DOMAIN/PATH), no IP address and no reserved identity ({reserved})", reserved = reserved_names()
    )]
    Nothing(String),
    #[error("{id} is unknown on this node: no workload has it and no endpoint names it{}", did_you_mean(.nearest))]
    Unknown {
        id: String,
        /// Those most like it, best first.
        nearest: Vec<String>,
    },
    #[error("{ending} is not one identity but {}; write which", .all.join(", "))]
    Ambiguous { ending: String, all: Vec<String> },
}

fn reserved_names() -> String {
    let names: Vec<&str> = identity::RESERVED.iter().map(|(_, name)| *name).collect();
    names.join(", ")
}

fn did_you_mean(names: &[String]) -> String {
    match names {
        [] => "; `zt-agent identities` lists who is".to_owned(),
        names => format!("; did you mean {}?", names.join(" or ")),
    }
}

impl FromStr for End {
    type Err = EndError;

    fn from_str(text: &str) -> Result<Self, EndError> {
        if let Some((number, _)) = identity::RESERVED.iter().find(|(_, name)| *name == text) {
            return Ok(Self::Reserved(*number));
        }
        let address = || text.parse().ok().map(Self::Address);
        let identity = || text.parse().ok().map(Self::Identity);
        let ending = || is_ending(text).then(|| Self::Ending(text.to_owned()));
        address()
            .or_else(identity)
            .or_else(ending)
            .ok_or_else(|| EndError::Nothing(text.to_owned()))
    }
}

/// Whether it could be the last segments of a SPIFFE ID.
fn is_ending(text: &str) -> bool {
    format!("spiffe://td/{text}").parse::<SpiffeId>().is_ok()
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => id.fmt(f),
            Self::Address(ip) => ip.fmt(f),
            Self::Ending(text) => text.fmt(f),
            Self::Reserved(number) => match identity::RESERVED.iter().find(|(n, _)| n == number) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "number-{number}"),
            },
        }
    }
}

/// A workload of this node, as the end that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Local {
    pub identity: Number,
    pub enforce: bool,
    /// The maps have no room for all that is denied to it.
    pub shut: bool,
    /// Key of its row in `zt_workload_v1`; 0: that of every unenrolled cgroup.
    pub cgroup: u64,
}

/// The port that stands for one that nobody declares.
const EPHEMERAL: u16 = 50_000;

/// An end, resolved: who decides there, and as whom the other end sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub identity: Number,
    /// Empty: this node does not govern it. Of several cgroups with the same
    /// identity and mode, the first.
    pub locals: Vec<Local>,
    /// What the other end can find at its addresses; never empty.
    pub peers: Vec<Peer>,
}

/// Resolves `end`, to which belongs `port` (`None`: it opens the flow).
///
/// # Errors
/// When it is unknown here.
pub fn resolve(
    end: &End,
    world: &World<'_>,
    port: Option<u16>,
    protocol: u8,
) -> Result<Resolved, EndError> {
    let port = port.unwrap_or(EPHEMERAL);
    match end {
        End::Reserved(number) => Ok(reserved(*number, world.tables)),
        End::Address(ip) => Ok(at_address(*ip, world.tables, port, protocol)),
        End::Identity(id) => match world.numbers.get(&Name::Spiffe(id.clone())) {
            Some(number) => Ok(with_identity(number, world.tables)),
            None => Err(unknown(id.as_str(), world)),
        },
        End::Ending(text) => Ok(with_identity(ending(text, world)?, world.tables)),
    }
}

fn ending(text: &str, world: &World<'_>) -> Result<Number, EndError> {
    let has = |id: &str| {
        id.strip_suffix(text)
            .is_some_and(|rest| rest.ends_with('/'))
    };
    let found: Vec<(&str, Number)> = known(world).filter(|(id, _)| has(id)).collect();
    match found[..] {
        [(_, number)] => Ok(number),
        [] => Err(unknown(text, world)),
        _ => Err(EndError::Ambiguous {
            ending: text.to_owned(),
            all: found.iter().map(|(id, _)| (*id).to_owned()).collect(),
        }),
    }
}

fn known<'a>(world: &World<'a>) -> impl Iterator<Item = (&'a str, Number)> {
    world
        .numbers
        .names()
        .filter_map(|(name, number)| match name {
            Name::Spiffe(id) => Some((id.as_str(), number)),
            Name::Class(_) | Name::Service(_) => None,
        })
}

fn unknown(id: &str, world: &World<'_>) -> EndError {
    let nearest = names::nearest(id, known(world).map(|(id, _)| id));
    EndError::Unknown {
        id: id.to_owned(),
        nearest: nearest.into_iter().map(str::to_owned).collect(),
    }
}

fn reserved(number: Number, tables: &Tables) -> Resolved {
    let unenrolled = (number == identity::UNENROLLED).then(|| locals(tables, |key, _| key == 0));
    Resolved {
        identity: number,
        locals: unenrolled.unwrap_or_default(),
        peers: vec![Peer {
            identity: number,
            ..Peer::default()
        }],
    }
}

fn at_address(ip: IpAddr, tables: &Tables, port: u16, protocol: u8) -> Resolved {
    let peer = lookup::peer(tables, &octets(ip), port, protocol);
    Resolved {
        identity: peer.identity,
        locals: locals(tables, |key, _| key != 0 && key == peer.cgroup),
        peers: vec![peer],
    }
}

fn with_identity(number: Number, tables: &Tables) -> Resolved {
    let locals = locals(tables, |key, row| key != 0 && row.identity == number);
    let at = |peer: &Peer| Peer { cgroup: 0, ..*peer };
    // By its Service's address nobody asks who asks for the identity.
    let own = |peer: &&Peer| peer.identity == number && peer.port == 0;
    let claimed = tables.address.values().filter(own);
    let mut peers: BTreeSet<Peer> = claimed.map(at).collect();
    if peers.is_empty() {
        // It has no address of its own: the socket behind it tells.
        let enforce = locals.iter().any(|local| local.enforce);
        peers.insert(Peer {
            identity: number,
            flags: if enforce { peer_flags::ENFORCE } else { 0 },
            ..Peer::default()
        });
    }
    Resolved {
        identity: number,
        locals,
        peers: peers.into_iter().collect(),
    }
}

fn locals(tables: &Tables, wanted: impl Fn(u64, &Workload) -> bool) -> Vec<Local> {
    let mut locals: Vec<Local> = Vec::new();
    for (cgroup, row) in tables
        .workload
        .iter()
        .filter(|(key, row)| wanted(**key, row))
    {
        let local = Local {
            identity: row.identity,
            enforce: row.flags & workload_flags::ENFORCE != 0,
            shut: row.is_shut(),
            cgroup: *cgroup,
        };
        if !locals.iter().any(|known| known.enforce == local.enforce) {
            locals.push(local);
        }
    }
    locals
}

/// The addresses at which the maps know `number`.
#[must_use]
pub fn addresses(tables: &Tables, number: Number) -> Vec<AddressKey> {
    let mine = |(key, peer): (&AddressKey, &Peer)| (peer.identity == number).then_some(*key);
    tables.address.iter().filter_map(mine).collect()
}

fn octets(ip: IpAddr) -> Ip {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_an_identity_an_address_or_a_reserved_name() {
        assert_eq!("world".parse(), Ok(End::Reserved(identity::WORLD)));
        assert_eq!("10.0.0.1".parse(), Ok(End::Address([10, 0, 0, 1].into())));
        let id = "spiffe://td/a";
        assert_eq!(id.parse(), Ok(End::Identity(id.parse().unwrap())));
        assert_eq!("ns/gateway".parse(), Ok(End::Ending("ns/gateway".into())));
        let error = "a b".parse::<End>().unwrap_err().to_string();
        assert!(error.starts_with("\"a b\" is no SPIFFE ID"), "{error}");
        assert!(error.contains("apiserver"), "{error}");
    }
}
