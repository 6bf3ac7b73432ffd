//! Who answers at a Service's addresses, port by port. Pure.
//!
//! A packet to a Service leaves the workload with the Service's address; only
//! later a proxy of the node puts a backend's in its place. So who is behind
//! each port must be known before. A backend is whoever owns its address: what
//! a slice says of it (its `targetRef`, its node) may have been written by
//! anybody who may write slices, and is not looked at.
//!
//! Proxies lead what is sent to a Service's outside addresses (its `externalIPs`
//! and its load balancer's) to the same backends. Outside the cluster these ports
//! are claimed like those of its own addresses. Who may write `externalIPs` may
//! name any address: one that is the cluster's own stays its owner's, and nothing
//! of it is claimed, as a tenant could otherwise cut anybody off. A proxy may lead
//! what is sent there astray all the same; against that there is the API server's
//! admission plugin `DenyServiceExternalIPs`.
//!
//! What one Service may cost is bounded; one that is larger is denied as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use zt_common::{codes::Protocol, identity};

use super::objects::{PortFacts, ServiceFacts, SliceFacts};
use crate::model::{Endpoint, Member, Party, Service};

/// The Service of the API server itself, and the slice that it writes for it.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// The ports of a Service times its addresses: several hundred ports are known,
/// at an address of each family and some of a load balancer.
const PLACES: usize = 4096;

/// The parties behind all ports of a Service at all its addresses, a party once
/// for each port that slices name for it. Usually there is one behind each.
const MEMBERS: usize = 16_384;

/// Who owns which address.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    parties: BTreeMap<IpAddr, BTreeSet<Party>>,
    governed: BTreeSet<IpAddr>,
}

impl Owners {
    pub fn add(&mut self, addresses: &[IpAddr], party: &Party) {
        for ip in addresses {
            let owners = self.parties.entry(*ip).or_default();
            if !owners.contains(party) {
                owners.insert(party.clone());
            }
        }
    }

    /// What is there is on a node that enforces everything.
    pub fn govern(&mut self, addresses: &[IpAddr]) {
        self.governed.extend(addresses);
    }

    fn of(&self, ip: IpAddr) -> impl Iterator<Item = &Party> {
        self.parties.get(&ip).into_iter().flatten()
    }
}

/// What all Services come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub ports: Vec<ServicePort>,
    /// Addresses of Services that cannot be told apart: nobody may reach them.
    pub denied: BTreeSet<IpAddr>,
    /// At most one for each Service.
    pub complaints: Vec<String>,
}

/// A port of a Service's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name`
    pub service: Arc<str>,
    pub place: Place,
    /// The address lies in a range of the cluster, where it is nobody's as long as
    /// nothing is claimed.
    pub is_inside: bool,
    pub answering: Arc<Answering>,
}

/// Where somebody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub ip: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// Who may answer at a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answering {
    /// Who is there both governed and not is so twice.
    pub members: BTreeSet<Member>,
    /// Some backend is nobody's, or its address is claimed by several.
    pub is_doubtful: bool,
    /// Some backend is outside the cluster.
    pub leads_out: bool,
}

impl Answering {
    /// The same with everybody ungoverned.
    fn ungoverned(&self) -> Self {
        let members = self.members.iter().cloned().map(Member::ungoverned);
        Self {
            members: members.collect(),
            ..*self
        }
    }
}

/// The cluster's ranges.
pub struct Land<P, S> {
    /// Whether an address is one for pods, that only this cluster gives.
    pub is_for_pods: P,
    /// Whether it is one for Services.
    pub is_for_services: S,
}

/// Looks who may answer at every port of every Service.
pub fn resolve<'a>(
    services: impl Iterator<Item = &'a ServiceFacts>,
    slices: impl Iterator<Item = &'a SliceFacts>,
    owners: &Owners,
    land: Land<impl Fn(IpAddr) -> bool, impl Fn(IpAddr) -> bool>,
) -> Found {
    let mut by_service: BTreeMap<(&str, &str), Vec<&SliceFacts>> = BTreeMap::new();
    for slice in slices {
        let service = (&*slice.namespace, &*slice.service);
        by_service.entry(service).or_default().push(slice);
    }
    // Proxies pass over one without an address, and its outside addresses, too.
    let services: Vec<&ServiceFacts> = services
        .filter(|service| !service.addresses.is_empty())
        .collect();
    let given = services.iter().flat_map(|service| &service.addresses);
    let mut resolver = Resolver {
        owners,
        land,
        given: given.copied().collect(),
        found: Found::default(),
    };
    for service in services {
        let name = (&*service.namespace, &*service.name);
        let slices = by_service.get(&name).map_or(&[][..], Vec::as_slice);
        resolver.service(service, slices);
    }
    resolver.found
}

impl ServicePort {
    /// Claims it for whoever may answer there: for nobody, who is denied, where that
    /// cannot be told or there is no backend.
    pub fn claim(&self) -> Option<Endpoint> {
        let Place { ip, protocol, port } = self.place;
        let Answering {
            members,
            is_doubtful,
            ..
        } = &*self.answering;
        let (party, target) = match (is_doubtful, members.first(), self.has_several()) {
            (false, None, _) if self.is_inside => return None,
            (false, Some(only), false) => (only.party.clone(), only.port),
            // Packets bear the Service's port, and by that it is asked for.
            (false, Some(_), true) => (self.several().unwrap_or(NOBODY), port),
            (true, ..) | (false, None, _) => (NOBODY, port),
        };
        Some(Endpoint {
            ip,
            party,
            cgroup: None,
            ports: Some(vec![(protocol, port)]),
            target: (target != port).then_some(target),
        })
    }

    /// Whether a proxy may lead to one or another.
    pub fn has_several(&self) -> bool {
        let mut members = self.answering.members.iter();
        let first = members.next();
        first.is_some_and(|first| members.any(|other| !first.is_at_place_of(other)))
    }

    /// `None`: they are more than can be told apart.
    fn several(&self) -> Option<Party> {
        let all = Service::new(&self.service, self.answering.members.iter().cloned())?;
        Some(Party::Service(all.into()))
    }
}

/// Denies an address on every port.
pub const fn denial(ip: IpAddr) -> Endpoint {
    Endpoint {
        ip,
        party: NOBODY,
        cgroup: None,
        ports: None,
        target: None,
    }
}

/// What is wrong with a Service; the worst first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
enum Trouble {
    #[error(
        "has a slice with an address or a port that cannot be read: its traffic is denied; write the slice anew"
    )]
    Illegible,
    #[error(
        "has {0} ports at all its addresses together, more than the {PLACES} that one may have: its traffic is denied; make several Services of it"
    )]
    TooManyPlaces(usize),
    #[error(
        "has more than {MEMBERS} identities behind all its ports together: its traffic is denied; give its pods fewer service accounts, or make several Services of it"
    )]
    TooManyMembers,
    #[error(
        "leads to {0}, which is neither a pod's nor a node's: its traffic is denied; let workloads connect to an address outside the cluster itself, by a rule for that address"
    )]
    Stranger(IpAddr),
    #[error("leads to {0}, which several claim: its traffic is denied; look whose address that is")]
    Disputed(IpAddr),
    #[error(
        "leads from port {port} to {parties} identities, more than can be told apart there: its traffic is denied; give it fewer service accounts"
    )]
    TooManyThere { port: u16, parties: usize },
    #[error(
        "names {0}, which is the cluster's own, as an external address: it stays whose it is, and a proxy may lead what is sent there to the Service all the same; remove it, and switch on the API server's admission plugin DenyServiceExternalIPs"
    )]
    NotOutside(IpAddr),
}

struct Resolver<'a, P, S> {
    owners: &'a Owners,
    land: Land<P, S>,
    /// All addresses that the API server gave to Services.
    given: BTreeSet<IpAddr>,
    found: Found,
}

impl<P: Fn(IpAddr) -> bool, S: Fn(IpAddr) -> bool> Resolver<'_, P, S> {
    fn service(&mut self, service: &ServiceFacts, slices: &[&SliceFacts]) {
        let name: Arc<str> = format!("{}/{}", service.namespace, service.name).into();
        let outside: BTreeSet<IpAddr> = service.outside.iter().copied().collect();
        let (owned, outside): (Vec<IpAddr>, Vec<IpAddr>) =
            outside.into_iter().partition(|ip| self.is_somebodys(*ip));
        let addresses: Vec<IpAddr> = service.addresses.iter().copied().chain(outside).collect();
        let mut taken = owned.into_iter().filter(|ip| !self.is_nodes(*ip));
        let not_outside = taken.next().map(Trouble::NotOutside);
        let trouble = match self.ports(&name, &service.ports, &addresses, slices) {
            Ok((ports, trouble)) => {
                self.found.ports.extend(ports);
                trouble.or(not_outside)
            }
            Err(trouble) => {
                self.found.denied.extend(addresses);
                Some(trouble)
            }
        };
        let complaint = trouble.map(|trouble| format!("the Service {name} {trouble}"));
        self.found.complaints.extend(complaint);
    }

    fn ports<'s>(
        &self,
        name: &Arc<str>,
        ports: &'s [PortFacts],
        addresses: &[IpAddr],
        slices: &[&'s SliceFacts],
    ) -> Result<(Vec<ServicePort>, Option<Trouble>), Trouble> {
        let places = ports.len().saturating_mul(addresses.len());
        if places > PLACES {
            return Err(Trouble::TooManyPlaces(places));
        }
        if !slices.iter().all(|slice| slice.is_legible) {
            return Err(Trouble::Illegible);
        }
        let (mut found, mut troubles) = (Vec::new(), BTreeSet::new());
        let mut left = MEMBERS;
        for is_v4 in [true, false] {
            let addresses = addresses.iter().filter(|ip| ip.is_ipv4() == is_v4);
            let addresses: Vec<IpAddr> = addresses.copied().collect();
            if addresses.is_empty() {
                continue;
            }
            let behind = self.behind(slices, is_v4);
            for port in ports {
                let answering = behind.answering(port, addresses.len(), &mut left)?;
                troubles.extend(behind.trouble(port));
                let from_outside = Arc::new(answering.ungoverned());
                let answering = Arc::new(answering);
                let at = |ip: &IpAddr| ServicePort {
                    service: name.clone(),
                    place: Place {
                        ip: *ip,
                        protocol: port.protocol,
                        port: port.port,
                    },
                    is_inside: self.is_inside(*ip),
                    // A proxy puts its node's address in the sender's place there,
                    // and nobody knows at a backend any more who that was.
                    answering: if self.given.contains(ip) {
                        answering.clone()
                    } else {
                        from_outside.clone()
                    },
                };
                let all = addresses.iter().map(at);
                troubles.extend(all.clone().next().and_then(|one| crowded(&one)));
                found.extend(all);
            }
        }
        Ok((found, troubles.into_iter().next()))
    }

    fn is_inside(&self, ip: IpAddr) -> bool {
        (self.land.is_for_pods)(ip) || (self.land.is_for_services)(ip)
    }

    /// A node may be a load balancer, and is none of a tenant's.
    fn is_nodes(&self, ip: IpAddr) -> bool {
        let mut owners = self.owners.of(ip).peekable();
        owners.peek().is_some() && owners.all(|party| matches!(party, Party::Reserved(_)))
    }

    /// Whether an outside address is none that a Service may have for itself.
    fn is_somebodys(&self, ip: IpAddr) -> bool {
        let is_special = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        let is_owned = self.owners.parties.contains_key(&ip) || self.given.contains(&ip);
        is_special || is_owned || self.is_inside(ip)
    }

    /// Puts the backends of one family together, so that each is looked at once.
    fn behind<'s>(&self, slices: &[&'s SliceFacts], is_v4: bool) -> Behind<'s> {
        let mut behind = Behind::default();
        let mut numbers: BTreeMap<Crowd, usize> = BTreeMap::new();
        for slice in slices {
            let crowd = self.crowd(slice, is_v4);
            if crowd.parties.is_empty() {
                continue;
            }
            let next = numbers.len();
            let number = *numbers.entry(crowd).or_insert(next);
            for port in &slice.ports {
                let targets = behind.targets.entry((&port.name, port.protocol));
                targets.or_default().insert((port.port, number));
            }
        }
        let mut crowds: Vec<(usize, Crowd)> = numbers.into_iter().map(|(c, n)| (n, c)).collect();
        crowds.sort_unstable_by_key(|(number, _)| *number);
        behind.crowds = crowds.into_iter().map(|(_, crowd)| crowd).collect();
        behind
    }

    /// Whose the addresses of a slice are.
    fn crowd(&self, slice: &SliceFacts, is_v4: bool) -> Crowd {
        // Whoever may write slices there must not make anybody the API server.
        let is_api_servers =
            (&*slice.namespace, &*slice.service) == API_SERVER && *slice.name == *API_SERVER.1;
        let mut crowd = Crowd::default();
        for ip in slice.addresses.iter().filter(|ip| ip.is_ipv4() == is_v4) {
            let owners = self.owners.of(*ip).map(|party| match party {
                // It runs on nodes or outside the cluster; a pod is never it.
                Party::Reserved(_) if is_api_servers => &API_SERVER_ITSELF,
                party => party,
            });
            let is_governed = self.owners.governed.contains(ip);
            let mut count = 0;
            for party in owners {
                count += 1;
                crowd.add(party, is_governed);
            }
            match count {
                0 if is_api_servers => crowd.add(&API_SERVER_ITSELF, false),
                0 => {
                    crowd.add(&NOBODY, false);
                    crowd.stranger.get_or_insert(*ip);
                    crowd.leads_out |= !(self.land.is_for_pods)(*ip);
                }
                1 => {}
                _ => _ = crowd.disputed.get_or_insert(*ip),
            }
        }
        crowd
    }
}

pub(super) const NOBODY: Party = Party::Reserved(identity::UNKNOWN_PEER);
const API_SERVER_ITSELF: Party = Party::Reserved(identity::APISERVER);

/// Whoever owns the backends of a slice.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Crowd {
    /// And whether they are governed wherever they are.
    parties: BTreeMap<Party, bool>,
    /// A backend that is nobody's.
    stranger: Option<IpAddr>,
    /// One that is several's.
    disputed: Option<IpAddr>,
    /// Some backend is outside the cluster.
    leads_out: bool,
}

impl Crowd {
    fn add(&mut self, party: &Party, is_governed: bool) {
        if let Some(known) = self.parties.get_mut(party) {
            *known &= is_governed;
        } else {
            self.parties.insert(party.clone(), is_governed);
        }
    }
}

/// The backends of a Service, of one family.
#[derive(Debug, Default)]
struct Behind<'a> {
    /// Each once: those of most slices are the same.
    crowds: Vec<Crowd>,
    /// Behind the ports of a name: at which port, and which crowd.
    targets: BTreeMap<(&'a str, Protocol), BTreeSet<(u16, usize)>>,
}

impl<'a> Behind<'a> {
    /// Where a proxy may lead what is sent to this port.
    fn leads(&self, port: &'a PortFacts) -> impl Iterator<Item = (u16, &Crowd)> {
        let targets = self.targets.get(&(&*port.name, port.protocol));
        let targets = targets.into_iter().flatten();
        targets.map(|(target, number)| (*target, &self.crowds[*number]))
    }

    /// `times`: at how many addresses. `left`: members that the Service may have.
    fn answering(
        &self,
        port: &'a PortFacts,
        times: usize,
        left: &mut usize,
    ) -> Result<Answering, Trouble> {
        let mut answering = Answering::default();
        for (target, crowd) in self.leads(port) {
            let members = crowd.parties.len().saturating_mul(times);
            *left = left.checked_sub(members).ok_or(Trouble::TooManyMembers)?;
            answering.is_doubtful |= crowd.stranger.is_some() || crowd.disputed.is_some();
            answering.leads_out |= crowd.leads_out;
            let members = crowd.parties.iter().map(|(party, is_governed)| Member {
                party: party.clone(),
                port: target,
                is_governed: *is_governed,
            });
            answering.members.extend(members);
        }
        Ok(answering)
    }

    fn trouble(&self, port: &'a PortFacts) -> Option<Trouble> {
        let strangers = self.leads(port).filter_map(|(_, crowd)| crowd.stranger);
        let disputed = self.leads(port).filter_map(|(_, crowd)| crowd.disputed);
        let strangers = strangers.min().map(Trouble::Stranger);
        strangers.or_else(|| disputed.min().map(Trouble::Disputed))
    }
}

/// Those that a doubtful port leads to are not told apart anyway.
fn crowded(port: &ServicePort) -> Option<Trouble> {
    let parties = port.answering.members.len();
    let is_crowded = !port.answering.is_doubtful && port.has_several() && port.several().is_none();
    is_crowded.then_some(Trouble::TooManyThere {
        port: port.place.port,
        parties,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zt_common::codes::Protocol::{Tcp, Udp};

    use super::*;

    const VIP: &str = "10.96.0.7";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ips(texts: &[&str]) -> Box<[IpAddr]> {
        texts.iter().map(|text| ip(text)).collect()
    }

    fn port(name: &str, protocol: Protocol, port: u16) -> PortFacts {
        PortFacts {
            name: name.into(),
            protocol,
            port,
        }
    }

    fn service(addresses: &[&str], ports: &[PortFacts]) -> ServiceFacts {
        ServiceFacts {
            namespace: "ns".into(),
            name: "web".into(),
            addresses: ips(addresses),
            outside: [].into(),
            ports: ports.into(),
        }
    }

    fn slice(addresses: &[&str], ports: &[PortFacts]) -> SliceFacts {
        SliceFacts {
            namespace: "ns".into(),
            name: "web-1".into(),
            service: "web".into(),
            ports: ports.into(),
            addresses: ips(addresses),
            is_legible: true,
        }
    }

    fn named(account: &str) -> Party {
        Party::Workload(format!("spiffe://td/c/ns/{account}").parse().unwrap())
    }

    /// Two pods of `web`, one of `db`, this node and another.
    fn owners() -> Owners {
        let mut owners = Owners::default();
        owners.add(&ips(&["10.1.0.5", "fd00::5", "10.1.1.5"]), &named("web"));
        owners.add(&ips(&["10.1.1.6"]), &named("db"));
        owners.add(&ips(&["192.0.2.1"]), &Party::Reserved(identity::HOST));
        owners.add(&ips(&["192.0.2.2"]), &Party::Reserved(identity::NODES));
        owners
    }

    fn inside(ip: IpAddr) -> bool {
        ip.to_string().starts_with("10.1.")
    }

    fn endpoints(found: &Found) -> Vec<Endpoint> {
        found.ports.iter().filter_map(ServicePort::claim).collect()
    }

    fn found_with(services: &[ServiceFacts], slices: &[SliceFacts], owners: &Owners) -> Found {
        let land = Land {
            is_for_pods: inside,
            is_for_services: |ip: IpAddr| ip.to_string().starts_with("10.96."),
        };
        resolve(services.iter(), slices.iter(), owners, land)
    }

    fn found(services: &[ServiceFacts], slices: &[SliceFacts]) -> Found {
        found_with(services, slices, &owners())
    }

    fn said(found: &Found) -> Vec<String> {
        let said = |endpoint: &Endpoint| {
            let (protocol, port) = endpoint.ports.as_ref().unwrap()[0];
            let target = endpoint.target.map_or(String::new(), |t| format!("->{t}"));
            let party = match &endpoint.party {
                Party::Workload(id) => id.as_str().rsplit('/').next().unwrap().to_owned(),
                Party::Reserved(number) => format!("#{number}"),
                Party::Service(service) => service.to_string().replace("spiffe://td/c/ns/", ""),
            };
            format!("{} {}/{port}{target} {party}", endpoint.ip, protocol.name())
        };
        endpoints(found).iter().map(said).collect()
    }

    #[test]
    fn each_port_is_whose_the_addresses_behind_it_are() {
        let ports = [port("http", Tcp, 80), port("dns", Udp, 53)];
        let behind = [port("http", Tcp, 8080), port("dns", Udp, 53)];
        let services = [service(&[VIP, "fd00:96::7"], &ports)];
        let slices = [
            slice(&["10.1.0.5", "10.1.1.5"], &behind),
            slice(&["fd00::5"], &behind),
        ];
        assert_eq!(
            said(&found(&services, &slices)),
            [
                "10.96.0.7 TCP/80->8080 web",
                "10.96.0.7 UDP/53 web",
                "fd00:96::7 TCP/80->8080 web",
                "fd00:96::7 UDP/53 web"
            ]
        );
    }

    #[test]
    fn a_port_without_a_backend_is_nobodys() {
        let services = [service(
            &[VIP],
            &[port("http", Tcp, 80), port("x", Tcp, 81)],
        )];
        let other_name = slice(&["10.1.0.5"], &[port("https", Tcp, 8080)]);
        let other_protocol = slice(&["10.1.0.5"], &[port("x", Udp, 8080)]);
        let mut other_service = slice(&["10.1.0.5"], &[port("http", Tcp, 8080)]);
        other_service.service = "db".into();
        let mut other_namespace = slice(&["10.1.0.5"], &[port("http", Tcp, 8080)]);
        other_namespace.namespace = "sn".into();
        let other_family = slice(&["fd00::5"], &[port("http", Tcp, 8080)]);
        let slices = [
            other_name,
            other_protocol,
            other_service,
            other_namespace,
            other_family,
        ];
        let found = found(&services, &slices);
        assert_eq!(said(&found), [""; 0], "the range says so");
        assert_eq!(found.complaints, [""; 0], "it may come");
    }

    #[test]
    fn a_port_without_a_backend_is_claimed_for_nobody_where_no_range_says_so() {
        let services = [service(&["198.51.100.7"], &[port("http", Tcp, 80)])];
        let found = found(&services, &[]);
        assert_eq!(said(&found), ["198.51.100.7 TCP/80 #5"]);
        assert_eq!(found.complaints, [""; 0]);
    }

    #[test]
    fn a_backend_is_its_addresss_owner_whatever_the_slice_says() {
        // A slice that points at somebody else, at a node, and at nobody.
        let at = |address| {
            let services = [service(&[VIP], &[port("", Tcp, 80)])];
            let slices = [slice(&["10.1.0.5", address], &[port("", Tcp, 80)])];
            found(&services, &slices)
        };
        assert_eq!(
            said(&at("10.1.1.6")),
            ["10.96.0.7 TCP/80 service ns/web (db at 80, web at 80)"]
        );
        assert_eq!(
            said(&at("192.0.2.2")),
            ["10.96.0.7 TCP/80 service ns/web (web at 80, nodes at 80)"]
        );
        let nobody = at("203.0.113.9");
        assert_eq!(said(&nobody), ["10.96.0.7 TCP/80 #5"]);
        assert!(nobody.complaints[0].contains("ns/web leads to 203.0.113.9"));
    }

    #[test]
    fn an_address_that_two_claim_makes_the_port_nobodys() {
        let mut owners = owners();
        owners.add(&ips(&["10.1.1.6"]), &named("web"));
        let services = [service(&[VIP], &[port("", Tcp, 80)])];
        let slices = [slice(&["10.1.0.5", "10.1.1.6"], &[port("", Tcp, 80)])];
        let found = found_with(&services, &slices, &owners);
        assert_eq!(said(&found), ["10.96.0.7 TCP/80 #5"]);
        assert!(found.complaints[0].contains("10.1.1.6, which several claim"));
    }

    #[test]
    fn more_than_a_name_holds_are_nobody_and_told_once() {
        let addresses: Vec<String> = (1..200).map(|last| format!("10.1.2.{last}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let mut owners = Owners::default();
        for address in &addresses {
            owners.add(&ips(&[*address]), &named(&address.replace('.', "-")));
        }
        let ports = [port("", Tcp, 80), port("", Tcp, 81)];
        let services = [service(&[VIP], &ports)];
        let slices = [slice(&addresses, &[port("", Tcp, 80)])];
        let found = found_with(&services, &slices, &owners);
        assert_eq!(said(&found), ["10.96.0.7 TCP/80 #5", "10.96.0.7 TCP/81 #5"]);
        assert_eq!(found.complaints.len(), 1);
        assert!(found.complaints[0].contains("from port 80 to 199 identities"));
    }

    #[test]
    fn two_ports_behind_one_are_told_apart() {
        let services = [service(&[VIP], &[port("", Tcp, 80)])];
        let slices = [
            slice(&["10.1.0.5"], &[port("", Tcp, 8080)]),
            slice(&["10.1.1.5"], &[port("", Tcp, 8081)]),
        ];
        assert_eq!(
            said(&found(&services, &slices)),
            ["10.96.0.7 TCP/80 service ns/web (web at 8080, web at 8081)"]
        );
    }

    #[test]
    fn the_api_server_is_on_nodes_or_outside_and_no_pod() {
        let of = |name: &str, address| {
            let service = ServiceFacts {
                namespace: "default".into(),
                name: "kubernetes".into(),
                ..service(&[VIP], &[port("https", Tcp, 443)])
            };
            let slice = SliceFacts {
                namespace: "default".into(),
                name: name.into(),
                service: "kubernetes".into(),
                ..slice(&[address], &[port("https", Tcp, 6443)])
            };
            said(&found(&[service], &[slice]))
        };
        for address in ["192.0.2.1", "192.0.2.2", "203.0.113.9"] {
            let itself = of("kubernetes", address);
            assert_eq!(itself, ["10.96.0.7 TCP/443->6443 #3"], "{address}");
        }
        assert_eq!(
            of("kubernetes", "10.1.0.5"),
            ["10.96.0.7 TCP/443->6443 web"]
        );
        // Anybody's who may write slices there.
        assert_eq!(of("mine", "192.0.2.2"), ["10.96.0.7 TCP/443->6443 #2"]);
        assert_eq!(of("mine", "203.0.113.9"), ["10.96.0.7 TCP/443 #5"]);
    }

    #[test]
    fn what_cannot_be_read_of_a_slice_denies_the_whole_service() {
        let legible = slice(&["10.1.0.5"], &[port("", Tcp, 8080)]);
        let illegible = SliceFacts {
            is_legible: false,
            ..slice(&[], &[])
        };
        let services = [service(&[VIP], &[port("", Tcp, 80)])];
        let found = found(&services, &[legible, illegible]);
        assert_eq!(said(&found), [""; 0]);
        assert_eq!(found.denied, BTreeSet::from([ip(VIP)]));
        assert!(found.complaints[0].contains("cannot be read"), "{found:?}");
    }

    #[test]
    fn a_denied_address_is_nobodys_on_every_port() {
        let denial = denial(ip(VIP));
        assert_eq!((denial.party, denial.ports), (NOBODY, None));
    }

    fn with_outside(outside: &[&str]) -> ServiceFacts {
        ServiceFacts {
            outside: ips(outside),
            ..service(&[VIP], &[port("", Tcp, 443)])
        }
    }

    #[test]
    fn outside_addresses_are_whose_the_backends_are_too() {
        let services = [with_outside(&["203.0.113.9", "203.0.113.9", "2001:db8::9"])];
        let slices = [slice(&["10.1.0.5", "fd00::5"], &[port("", Tcp, 8443)])];
        let of = |slices: &[SliceFacts]| {
            let found = found(&services, slices);
            assert_eq!(found.complaints, [""; 0]);
            said(&found)
        };
        assert_eq!(
            of(&slices),
            [
                "10.96.0.7 TCP/443->8443 web",
                "203.0.113.9 TCP/443->8443 web",
                "2001:db8::9 TCP/443->8443 web"
            ]
        );
        // Until somebody is there a proxy refuses what is sent there.
        assert_eq!(
            of(&[]),
            ["203.0.113.9 TCP/443 #5", "2001:db8::9 TCP/443 #5"]
        );
    }

    #[test]
    fn nobody_gets_at_the_clusters_own_addresses_by_calling_them_his() {
        let other = ServiceFacts {
            name: "other".into(),
            ..service(&["198.51.100.7"], &[port("", Tcp, 443)])
        };
        let slices = [slice(&["10.1.0.5"], &[port("", Tcp, 443)])];
        for address in [
            "10.1.1.6",     // a pod's
            "10.1.9.9",     // in their ranges
            "192.0.2.1",    // this node's
            "192.0.2.2",    // another's
            "10.96.0.9",    // in the range of Services
            "198.51.100.7", // another Service's
            VIP,
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ] {
            let services = [with_outside(&[address, "203.0.113.9"]), other.clone()];
            let found = found(&services, &slices);
            let mine = said(&found).into_iter().filter(|one| one.ends_with("web"));
            assert_eq!(
                mine.collect::<Vec<_>>(),
                ["10.96.0.7 TCP/443 web", "203.0.113.9 TCP/443 web"],
                "{address}"
            );
            if address.starts_with("192.0.2.") {
                assert_eq!(found.complaints, [""; 0], "{address}");
                continue;
            }
            let complaint = format!("ns/web names {address}, which is the cluster's own");
            assert!(found.complaints[0].contains(&complaint), "{found:?}");
        }
    }

    #[test]
    fn a_service_with_too_many_ports_or_addresses_is_denied_as_a_whole() {
        let ports = |count: u16| -> Vec<PortFacts> {
            let port = |number: u16| port(&number.to_string(), Tcp, number);
            (1..=count).map(port).collect()
        };
        let most: u16 = PLACES.try_into().unwrap();
        let of = |outside: &[&str], count| {
            let mut service = service(&[VIP], &ports(count));
            service.outside = ips(outside);
            found(&[service], &[slice(&["10.1.0.5"], &ports(count))])
        };
        let fits = of(&[], most);
        assert_eq!((endpoints(&fits).len(), fits.denied.len()), (PLACES, 0));
        for (outside, count, places) in [
            (&[][..], most + 1, PLACES + 1),
            (&["203.0.113.9"], most / 2 + 1, PLACES + 2),
        ] {
            let found = of(outside, count);
            assert_eq!(endpoints(&found), []);
            assert_eq!(found.denied.len(), 1 + outside.len());
            assert_eq!(found.complaints.len(), 1);
            assert!(found.complaints[0].contains(&format!("has {places} ports")));
        }
    }

    #[test]
    fn a_service_with_too_many_behind_all_its_ports_is_denied_as_a_whole() {
        let backends: Vec<String> = (0..200).map(|last| format!("10.1.2.{last}")).collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        let mut owners = Owners::default();
        for backend in &backends {
            owners.add(&ips(&[*backend]), &named(&backend.replace('.', "-")));
        }
        let ports: Vec<PortFacts> = (1..=82)
            .map(|number| port(&number.to_string(), Tcp, number))
            .collect();
        let of = |ports: &[PortFacts]| {
            found_with(
                &[service(&[VIP], ports)],
                &[slice(&backends, ports)],
                &owners,
            )
        };
        let found = of(&ports);
        assert_eq!((endpoints(&found), found.denied.len()), (vec![], 1));
        assert_eq!(found.complaints.len(), 1);
        assert!(found.complaints[0].contains("more than 16384 identities"));
        let fits = of(&ports[..81]);
        assert_eq!((endpoints(&fits).len(), fits.denied.len()), (81, 0));
        assert_eq!(fits.complaints.len(), 1, "{:?}", fits.complaints);
    }

    /// What a tenant may write, in as few objects as can be.
    #[test]
    fn large_services_and_slices_take_little_time() {
        let named_ports = |count: u16| -> Vec<PortFacts> {
            let port = |number: u16| port(&number.to_string(), Tcp, number);
            (1..=count).map(port).collect()
        };
        let mut owners = Owners::default();
        let backends: Vec<String> = (0..1000)
            .map(|number| format!("10.1.{}.{}", number / 250, number % 250))
            .collect();
        for (number, backend) in backends.iter().enumerate() {
            owners.add(&ips(&[backend]), &named(&format!("account-{}", number % 8)));
        }
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        let timed = |services: &[ServiceFacts], slices: &[SliceFacts]| {
            let start = std::time::Instant::now();
            let found = found_with(services, slices, &owners);
            let claims = endpoints(&found).len();
            let taken = start.elapsed();
            // Well under a second where nothing else runs.
            assert!(taken.as_secs() < 10, "it grows with the square: {taken:?}");
            (claims, found.denied.len(), found.complaints.len())
        };
        // One with 10,000 ports, and slices with as many.
        let ports = named_ports(10_000);
        let slices: Vec<SliceFacts> = (0..10).map(|_| slice(&backends, &ports)).collect();
        assert_eq!(timed(&[service(&[VIP], &ports)], &slices), (0, 1, 1));
        // The largest that there may be.
        let large = service(&[VIP], &ports[..2000]);
        assert_eq!(timed(&[large], &slices), (2000, 0, 0));
        // A hundred with a hundred ports each.
        let ports = named_ports(100);
        let services: Vec<ServiceFacts> = (0..100)
            .map(|number| ServiceFacts {
                name: format!("web-{number}").into(),
                ..service(&[&format!("10.96.1.{number}")], &ports)
            })
            .collect();
        let slices: Vec<SliceFacts> = (services.iter())
            .map(|service| SliceFacts {
                service: service.name.clone(),
                ..slice(&backends[..100], &ports)
            })
            .collect();
        assert_eq!(timed(&services, &slices), (10_000, 0, 0));
    }

    #[test]
    fn a_headless_service_has_nothing_to_claim() {
        let services = [service(&[], &[port("", Tcp, 80)])];
        let slices = [slice(&["203.0.113.9"], &[port("", Tcp, 80)])];
        assert_eq!(found(&services, &slices), Found::default());
    }

    proptest! {
        /// Nobody is at a Service's port who does not own a backend of it.
        #[test]
        fn no_slice_makes_anybody_else_answer(
            backends in prop::collection::vec((0u8..4, 1u16..4), 0..6),
        ) {
            let addresses = ["10.1.0.5", "10.1.1.6", "192.0.2.2", "203.0.113.9"];
            let slices: Vec<SliceFacts> = backends
                .iter()
                .map(|(at, target)| {
                    slice(&[addresses[usize::from(*at)]], &[port("", Tcp, *target)])
                })
                .collect();
            let found = found(&[service(&[VIP], &[port("", Tcp, 80)])], &slices);
            let owners = owners();
            let said: BTreeSet<(Party, u16)> = (endpoints(&found).iter())
                .flat_map(|e| match &e.party {
                    Party::Service(service) => {
                        service.members().iter().map(|one| (one.party.clone(), one.port)).collect()
                    }
                    party => vec![(party.clone(), e.target.unwrap_or(80))],
                })
                .collect();
            let mut expected = BTreeSet::new();
            for (at, target) in &backends {
                let ip = ip(addresses[usize::from(*at)]);
                let owner = owners.of(ip).next().cloned().unwrap_or(NOBODY);
                expected.insert((owner, *target));
            }
            if expected.iter().any(|(party, _)| *party == NOBODY) {
                expected = BTreeSet::from([(NOBODY, 80)]);
            }
            prop_assert_eq!(said, expected);
        }
    }
}
