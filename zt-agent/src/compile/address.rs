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
use crate::model::{Endpoint, NodeModel, Party, Position, Problem, Severity};

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
    target: Option<u16>,
}

impl<'a> From<&'a Endpoint> for Claimant<'a> {
    fn from(endpoint: &'a Endpoint) -> Self {
        Self {
            party: &endpoint.party,
            cgroup: endpoint.cgroup,
            target: endpoint.target,
        }
    }
}

impl fmt::Display for Claimant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.party.fmt(f)?;
        if let Some(target) = self.target {
            write!(f, " at its port {target}")?;
        }
        match self.cgroup {
            Some(cgroup) => write!(f, " (cgroup {cgroup})"),
            None => Ok(()),
        }
    }
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
        let claimant = Claimant::from(endpoint);
        match &endpoint.ports {
            None => _ = claims.whole.insert(claimant),
            Some(ports) => claims.share(claimant, ports),
        }
    }
    for (ip, claims) in &mut all {
        claims.settle(is_loopback(&octets(*ip)));
    }
    all
}

impl<'a> Claims<'a> {
    fn share(&mut self, claimant: Claimant<'a>, ports: &[(Protocol, u16)]) {
        self.shared = true;
        for (protocol, port) in ports {
            self.ports
                .entry((*port, *protocol))
                .or_default()
                .insert(claimant);
        }
    }

    /// Drops claims that say nothing new.
    fn settle(&mut self, loopback: bool) {
        if loopback {
            // Only ports count there.
        } else if self.node {
            // That the node is at its own address is known.
            let is_node = |claimant: &Claimant<'_>| {
                matches!(
                    claimant.party,
                    Party::Reserved(identity::HOST | identity::NODES)
                )
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
            self.rows
                .insert(key(ip_octets, *port, *protocol as u8), peer);
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
            self.warn(
                &ip.to_string(),
                &claims.whole.iter().chain(ports).copied().collect(),
            );
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
        let enforces = claimant
            .cgroup
            .is_some_and(|cgroup| self.enforcing.contains(&cgroup));
        Ok(Peer {
            cgroup: claimant.cgroup.unwrap_or_default(),
            identity: self.selection.party(claimant.party)?,
            class: 0,
            flags: if enforces { peer_flags::ENFORCE } else { 0 },
            port: claimant.target.unwrap_or_default(),
            zero: 0,
        })
    }

    /// Protects declared ports from being bound by others on the wildcard
    /// address.
    fn binds(&mut self, model: &NodeModel) -> Result<(), CompileError> {
        let mut binds: PortClaims<'_> = BTreeMap::new();
        for endpoint in model.endpoints.iter().filter(|e| e.cgroup.is_some()) {
            let claimant = Claimant::from(endpoint);
            for (protocol, port) in endpoint.ports.iter().flatten() {
                binds
                    .entry((*port, *protocol))
                    .or_default()
                    .insert(claimant);
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
            format!(
                "{place} is claimed by {}: its traffic is denied as a conflict",
                names.join(" and ")
            ),
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

/// The rows that claims of one address may need.
pub fn keys(ip: IpAddr, claims: &[Endpoint]) -> BTreeSet<AddressKey> {
    let ip = octets(ip.to_canonical());
    let whole = (!is_loopback(&ip)).then(|| key(ip, 0, 0));
    let ports = claims.iter().flat_map(|claim| {
        let places = [Some(ip), claim.cgroup.map(|_| ANY)];
        let ports = claim.ports.iter().flatten();
        ports.flat_map(move |(protocol, port)| {
            let places = places.into_iter().flatten();
            places.map(|ip| key(ip, *port, *protocol as u8))
        })
    });
    whole.into_iter().chain(ports).collect()
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

#[cfg(test)]
mod tests {
    use zt_common::identity::{CONFLICT, HOST, UNKNOWN_PEER};

    use super::*;
    use crate::{compile::samples::*, model::Mode};

    const SHARED: u32 = peer_flags::SHARED;
    const NODE: u32 = peer_flags::NODE;
    const ENFORCE: u32 = peer_flags::ENFORCE;
    const FAR: &str = "10.0.0.1";

    /// Local workloads a (cgroup 1) and b (cgroup 2, audit mode).
    fn with(endpoints: Vec<Endpoint>) -> NodeModel {
        let mut model = model();
        model.workloads = vec![workload("a", 1), workload("b", 2)];
        model.workloads[1].mode = Mode::Audit;
        model.endpoints = endpoints;
        model
    }

    fn reserved(address: &str, number: Number) -> Endpoint {
        Endpoint {
            party: Party::Reserved(number),
            ..endpoint(address, "x", 0)
        }
    }

    #[test]
    fn one_owner_is_the_owner_whatever_the_port() {
        let built = built(&with(vec![
            endpoint(FAR, "a", 1),
            endpoint("10.0.0.2", "b", 2),
            endpoint("fd00::1", "r", 0),
        ]));
        let peer = built.peer(FAR, 80);
        assert_eq!(
            (peer.identity, peer.cgroup, peer.flags),
            (built.number("a"), 1, ENFORCE)
        );
        let audited = built.peer("10.0.0.2", 80);
        assert_eq!(
            (audited.identity, audited.cgroup, audited.flags),
            (built.number("b"), 2, 0)
        );
        let remote = built.peer("fd00::1", 80);
        assert_eq!(
            (remote.identity, remote.cgroup, remote.flags),
            (built.number("r"), 0, 0)
        );
        assert_eq!(built.tables().address.len(), 3);
        assert_eq!(built.warnings(), [""; 0]);
    }

    #[test]
    fn the_mapped_form_is_the_same_address() {
        let built = built(&with(vec![
            endpoint("::ffff:10.0.0.1", "r", 0),
            endpoint(FAR, "r", 0),
        ]));
        assert_eq!(built.peer(FAR, 80).identity, built.number("r"));
        assert_eq!(built.tables().address.len(), 1);
    }

    #[test]
    fn two_owners_are_a_conflict_and_the_same_twice_is_not() {
        let same = built(&with(vec![endpoint(FAR, "r", 0), endpoint(FAR, "r", 0)]));
        assert_eq!(same.peer(FAR, 80).identity, same.number("r"));
        for other in [
            endpoint(FAR, "s", 0),
            endpoint(FAR, "r", 1),
            reserved(FAR, identity::NODES),
        ] {
            let built = built(&with(vec![endpoint(FAR, "r", 0), other]));
            let peer = built.peer(FAR, 80);
            assert_eq!((peer.identity, peer.cgroup, peer.flags), (CONFLICT, 0, 0));
            assert!(
                built.warnings()[0].starts_with("identities:1:1: warning: 10.0.0.1 is claimed by")
            );
        }
    }

    #[test]
    fn ports_make_an_address_shared() {
        let built = built(&with(vec![
            port_endpoint(FAR, "a", 1, 80),
            port_endpoint(FAR, "b", 2, 81),
        ]));
        let (http, other, undeclared) = (
            built.peer(FAR, 80),
            built.peer(FAR, 81),
            built.peer(FAR, 82),
        );
        assert_eq!((http.identity, http.flags), (built.number("a"), ENFORCE));
        assert_eq!((other.identity, other.cgroup), (built.number("b"), 2));
        assert_eq!(
            (undeclared.identity, undeclared.flags),
            (UNKNOWN_PEER, SHARED)
        );
    }

    #[test]
    fn a_claim_of_no_ports_claims_nothing() {
        let mut none = endpoint(FAR, "a", 1);
        none.ports = Some(Vec::new());
        let peer = built(&with(vec![none])).peer(FAR, 80);
        assert_eq!((peer.identity, peer.flags), (UNKNOWN_PEER, SHARED));
    }

    #[test]
    fn a_port_with_two_owners_is_a_conflict() {
        let built = built(&with(vec![
            port_endpoint(FAR, "a", 1, 80),
            port_endpoint(FAR, "b", 2, 80),
        ]));
        assert_eq!(built.peer(FAR, 80).identity, CONFLICT);
        assert_eq!(built.peer(FAR, 81).identity, UNKNOWN_PEER);
        assert!(built.warnings()[0].contains("10.0.0.1 port 80/TCP is claimed by"));
    }

    #[test]
    fn a_whole_claim_beside_ports_is_a_conflict_where_no_port_is_declared() {
        let built = built(&with(vec![
            endpoint(FAR, "b", 2),
            port_endpoint(FAR, "a", 1, 80),
        ]));
        assert_eq!(built.peer(FAR, 80).identity, built.number("a"));
        let rest = built.peer(FAR, 81);
        assert_eq!((rest.identity, rest.flags), (CONFLICT, SHARED));
        assert_eq!(built.warnings().len(), 1);
    }

    #[test]
    fn whoever_has_the_address_may_name_its_ports() {
        let built = built(&with(vec![
            endpoint(FAR, "a", 1),
            port_endpoint(FAR, "a", 1, 80),
        ]));
        assert_eq!(built.peer(FAR, 81).identity, built.number("a"));
        assert_eq!(built.peer("::", 80).cgroup, 1);
    }

    #[test]
    fn the_nodes_own_addresses_are_host() {
        let mut model = with(vec![
            port_endpoint(FAR, "a", 1, 80),
            reserved("10.0.0.2", HOST),
        ]);
        model.node_addresses = vec![ip(FAR), ip("10.0.0.2"), ip("127.0.0.1"), ip("::1")];
        let built = built(&model);
        for (address, port) in [(FAR, 81), ("10.0.0.2", 80)] {
            let peer = built.peer(address, port);
            assert_eq!((peer.identity, peer.flags), (HOST, NODE | SHARED));
        }
        assert_eq!(built.peer(FAR, 80).identity, built.number("a"));
        assert_eq!(built.warnings(), [""; 0]);
    }

    #[test]
    fn a_workload_cannot_have_a_node_address_whole() {
        let mut model = with(vec![endpoint(FAR, "a", 1)]);
        model.node_addresses = vec![ip(FAR)];
        let built = built(&model);
        let peer = built.peer(FAR, 80);
        assert_eq!((peer.identity, peer.flags), (CONFLICT, NODE));
        assert_eq!(built.warnings().len(), 1);
    }

    #[test]
    fn loopback_has_rows_for_ports_only() {
        let model = with(vec![
            endpoint("127.0.0.1", "b", 2),
            port_endpoint("127.0.0.1", "a", 1, 80),
        ]);
        let built = built(&model);
        let loopback = octets(ip("127.0.0.1"));
        assert!(!built.tables().address.contains_key(&key(loopback, 0, 0)));
        assert_eq!(built.peer("127.0.0.1", 80).identity, built.number("a"));
        let rest = built.peer("127.0.0.1", 81);
        assert_eq!((rest.identity, rest.flags), (UNKNOWN_PEER, SHARED));
        assert!(built.warnings()[0].contains("127.0.0.1 cannot be the address of spiffe://td/b"));
    }

    #[test]
    fn a_whole_claim_on_loopback_does_not_swallow_its_ports() {
        let both = [endpoint("::1", "a", 1), port_endpoint("::1", "a", 1, 80)];
        let built = built(&with(both.to_vec()));
        assert_eq!(built.peer("::1", 80).identity, built.number("a"));
        assert_eq!(built.peer("::1", 81).identity, UNKNOWN_PEER);
    }

    #[test]
    fn declared_ports_are_protected_on_the_wildcard_address() {
        let built = built(&with(vec![
            port_endpoint(FAR, "a", 1, 80),
            port_endpoint("10.0.0.2", "a", 1, 80),
            port_endpoint("10.0.0.2", "b", 2, 81),
            port_endpoint("10.0.0.3", "a", 1, 81),
            port_endpoint("10.0.0.4", "r", 0, 82),
        ]));
        let rows = &built.tables().address;
        let own = rows[&key(ANY, 80, 6)];
        assert_eq!(
            (own.cgroup, own.identity, own.flags),
            (1, built.number("a"), ENFORCE)
        );
        assert_eq!(rows[&key(ANY, 81, 6)].identity, CONFLICT);
        assert!(!rows.contains_key(&key(ANY, 82, 6)), "not on this node");
        assert!(!rows.contains_key(&key(ANY, 0, 0)));
    }

    #[test]
    fn every_row_knows_the_prefix_that_denies_it() {
        let mut model = with(vec![
            endpoint(FAR, "r", 0),
            endpoint("10.0.0.2", "r", 0),
            endpoint("10.0.0.2", "s", 0),
            port_endpoint("10.0.0.3", "r", 0, 80),
            endpoint("11.0.0.1", "r", 0),
        ]);
        model.node_addresses = vec![ip("10.0.0.4")];
        model.policies = vec![policy(
            "p",
            vec![deny(1, "a", "10.0.0.0/8"), allow(2, "a", "0.0.0.0/0")],
        )];
        let built = built(&model);
        for address in [FAR, "10.0.0.2", "10.0.0.3", "10.0.0.4"] {
            assert_eq!(
                built.peer(address, 80).class,
                built.class("10.0.0.0/8"),
                "{address}"
            );
        }
        assert_eq!(built.peer("10.0.0.3", 81).class, built.class("10.0.0.0/8"));
        assert_eq!(
            built.peer("11.0.0.1", 80).class,
            0,
            "an allow is no reason for a class"
        );
    }

    #[test]
    fn only_what_a_document_may_name_is_a_party() {
        let model = with(vec![reserved(FAR, CONFLICT)]);
        let error = crate::compile::compile(&model, &numbers(&model)).unwrap_err();
        assert_eq!(error, CompileError::Unnameable(CONFLICT));
    }

    #[test]
    fn a_port_may_be_known_to_be_nobodys() {
        let nobody = Endpoint {
            ports: Some(vec![(Protocol::Tcp, 80)]),
            ..reserved(FAR, UNKNOWN_PEER)
        };
        let built = built(&with(vec![nobody.clone()]));
        assert_eq!(built.peer(FAR, 80).identity, UNKNOWN_PEER);
        assert_eq!(built.peer(FAR, 81).identity, UNKNOWN_PEER);
        // And where somebody else is there, too, neither is believed.
        let both = vec![nobody, port_endpoint(FAR, "r", 0, 80)];
        assert_eq!(
            super::super::samples::built(&with(both))
                .peer(FAR, 80)
                .identity,
            CONFLICT
        );
    }
}
