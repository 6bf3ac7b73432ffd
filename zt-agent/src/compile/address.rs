//! Who is at an address: the rows of `zt_address_v1`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use zt_common::{
    address::{AddressKey, Ip, Peer, is_loopback, peer_flags},
    codes::Protocol,
    identity::{self, Number},
};

use super::{
    CompileError,
    network::{host, octets},
    selection::Selection,
    workload::enforcing,
};
use crate::model::{NodeModel, Party, Position, Problem, Severity};

/// The unspecified address stands for every wildcard bind, of either family.
const ANY: Ip = [0; 16];

/// Compiles all claims and the node's own addresses.
///
/// # Errors
/// When a party or a class has no number.
pub fn rows(
    model: &NodeModel,
    selection: &Selection<'_>,
    warnings: &mut Vec<Problem>,
) -> Result<BTreeMap<AddressKey, Peer>, CompileError> {
    let mut writer = Writer {
        selection,
        enforcing: enforcing(model),
        rows: BTreeMap::new(),
        warnings,
    };
    for (ip, claims) in &claims(model) {
        writer.address(*ip, claims)?;
    }
    writer.binds(model)?;
    Ok(writer.rows)
}

/// Who says to be there: the party and its cgroup on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant<'a> {
    party: &'a Party,
    cgroup: Option<u64>,
}

impl fmt::Display for Claimant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.party {
            Party::Workload(id) => id.fmt(f)?,
            Party::Reserved(number) => f.write_str(reserved_name(*number))?,
        }
        match self.cgroup {
            Some(cgroup) => write!(f, " (cgroup {cgroup})"),
            None => Ok(()),
        }
    }
}

fn reserved_name(number: Number) -> &'static str {
    let found = identity::RESERVED.iter().find(|(known, _)| *known == number);
    found.map_or("an unknown reserved identity", |(_, name)| name)
}

type Claimants<'a> = BTreeSet<Claimant<'a>>;
type PortClaims<'a> = BTreeMap<(u16, Protocol), Claimants<'a>>;

/// Everything that is said of one address.
#[derive(Debug, Default)]
struct Claims<'a> {
    /// It is one of the node's own.
    node: bool,
    whole: Claimants<'a>,
    ports: PortClaims<'a>,
    /// Somebody claimed ports, if only none of them.
    shared: bool,
}

fn claims(model: &NodeModel) -> BTreeMap<IpAddr, Claims<'_>> {
    let mut all: BTreeMap<IpAddr, Claims<'_>> = BTreeMap::new();
    for ip in &model.node_addresses {
        all.entry(ip.to_canonical()).or_default().node = true;
    }
    for endpoint in &model.endpoints {
        let claims = all.entry(endpoint.ip.to_canonical()).or_default();
        let claimant = Claimant {
            party: &endpoint.party,
            cgroup: endpoint.cgroup,
        };
        match &endpoint.ports {
            None => _ = claims.whole.insert(claimant),
            Some(ports) => claims.share(claimant, ports),
        }
    }
    all.values_mut().for_each(Claims::settle);
    all
}

impl<'a> Claims<'a> {
    fn share(&mut self, claimant: Claimant<'a>, ports: &[(Protocol, u16)]) {
        self.shared = true;
        for (protocol, port) in ports {
            self.ports.entry((*port, *protocol)).or_default().insert(claimant);
        }
    }

    /// Drops claims that say nothing new.
    fn settle(&mut self) {
        if self.node {
            // That the node is at its own address is known.
            let is_node = |claimant: &Claimant<'_>| {
                matches!(claimant.party, Party::Reserved(identity::HOST | identity::NODES))
            };
            self.whole.retain(|claimant| !is_node(claimant));
        } else if self.whole.len() == 1 && self.ports.values().all(|c| *c == self.whole) {
            // Whoever has the whole address has its ports, too.
            self.ports.clear();
            self.shared = false;
        }
    }

    /// The identity of the address itself, if it is not simply its only
    /// claimant's.
    fn identity(&self) -> Option<Number> {
        match (self.whole.len(), self.node, self.shared) {
            (0, true, _) => Some(identity::HOST),
            (0, false, _) => Some(identity::UNKNOWN_PEER),
            (1, false, false) => None,
            _ => Some(identity::CONFLICT),
        }
    }

    fn flags(&self) -> u32 {
        let node = if self.node { peer_flags::NODE } else { 0 };
        // The node's own processes share its addresses with whom it runs.
        let shared = self.shared || self.node && self.whole.is_empty();
        node | if shared { peer_flags::SHARED } else { 0 }
    }
}

struct Writer<'a> {
    selection: &'a Selection<'a>,
    enforcing: BTreeSet<u64>,
    rows: BTreeMap<AddressKey, Peer>,
    warnings: &'a mut Vec<Problem>,
}

impl Writer<'_> {
    fn address(&mut self, ip: IpAddr, claims: &Claims<'_>) -> Result<(), CompileError> {
        // The unspecified address is nobody's; see `binds`.
        if ip.is_unspecified() {
            return Ok(());
        }
        let class = self.selection.denying_class(host(ip))?;
        let ip_octets = octets(ip);
        // Several namespaces have the same loopback: only ports tell.
        if is_loopback(&ip_octets) {
            self.warn_of_loopback(ip, &claims.whole);
        } else {
            let peer = Peer {
                class,
                ..self.whole(ip, claims)?
            };
            self.rows.insert(key(ip_octets, 0, 0), peer);
        }
        for ((port, protocol), claimants) in &claims.ports {
            let peer = Peer {
                class,
                ..self.settle(claimants)?
            };
            if peer.identity == identity::CONFLICT {
                self.warn(&format!("{ip} port {port}/{}", protocol.name()), claimants);
            }
            self.rows.insert(key(ip_octets, *port, *protocol as u8), peer);
        }
        Ok(())
    }

    /// What the address itself, with no port, is.
    fn whole(&mut self, ip: IpAddr, claims: &Claims<'_>) -> Result<Peer, CompileError> {
        let settled = match claims.identity() {
            None => self.settle(&claims.whole)?,
            Some(identity) => Peer {
                identity,
                ..Peer::default()
            },
        };
        if settled.identity == identity::CONFLICT {
            let ports = claims.ports.values().flatten();
            self.warn(&ip.to_string(), &claims.whole.iter().chain(ports).copied().collect());
        }
        Ok(Peer {
            flags: settled.flags | claims.flags(),
            ..settled
        })
    }

    /// The only claimant, or a conflict.
    fn settle(&self, claimants: &Claimants<'_>) -> Result<Peer, CompileError> {
        let mut all = claimants.iter();
        let (Some(claimant), None) = (all.next(), all.next()) else {
            return Ok(Peer {
                identity: identity::CONFLICT,
                ..Peer::default()
            });
        };
        let enforces = claimant.cgroup.is_some_and(|cgroup| self.enforcing.contains(&cgroup));
        Ok(Peer {
            cgroup: claimant.cgroup.unwrap_or_default(),
            identity: self.selection.party(claimant.party)?,
            class: 0,
            flags: if enforces { peer_flags::ENFORCE } else { 0 },
            zero: 0,
        })
    }

    /// Protects declared ports from being bound by others on the wildcard
    /// address.
    fn binds(&mut self, model: &NodeModel) -> Result<(), CompileError> {
        let mut binds: PortClaims<'_> = BTreeMap::new();
        for endpoint in model.endpoints.iter().filter(|e| e.cgroup.is_some()) {
            let claimant = Claimant {
                party: &endpoint.party,
                cgroup: endpoint.cgroup,
            };
            for (protocol, port) in endpoint.ports.iter().flatten() {
                binds.entry((*port, *protocol)).or_default().insert(claimant);
            }
        }
        for ((port, protocol), claimants) in &binds {
            let peer = self.settle(claimants)?;
            self.rows.insert(key(ANY, *port, *protocol as u8), peer);
        }
        Ok(())
    }

    fn warn(&mut self, place: &str, claimants: &Claimants<'_>) {
        let names: Vec<String> = claimants.iter().map(Claimant::to_string).collect();
        self.warnings.push(warning(
            format!("{place} is claimed by {}: its traffic is denied as a conflict", names.join(" and ")),
            "give each its own address, or declare the ports of each of them",
        ));
    }

    fn warn_of_loopback(&mut self, ip: IpAddr, claimants: &Claimants<'_>) {
        for claimant in claimants {
            self.warnings.push(warning(
                format!("{ip} cannot be the address of {claimant}: everybody has it"),
                "declare the ports on it instead",
            ));
        }
    }
}

fn warning(message: String, hint: &str) -> Problem {
    Problem {
        severity: Severity::Warning,
        at: Position {
            file: "identities".into(),
            line: 1,
            column: 1,
        },
        field: String::new(),
        message,
        hint: Some(hint.to_owned()),
    }
}

const fn key(ip: Ip, port: u16, protocol: u8) -> AddressKey {
    AddressKey {
        ip,
        port,
        protocol,
        zero: 0,
    }
}
