//! Who answers at a Service's addresses, port by port. Pure.
//!
//! A packet to a Service leaves the workload with the Service's address; only
//! later a proxy of the node puts a backend's in its place. So who is behind
//! each port must be known before. A backend is whoever owns its address: what
//! a slice says of it (its `targetRef`, its node) may have been written by
//! anybody who may write slices, and is not looked at.
//!
//! Proxies lead what is sent to a Service's outside addresses (its `externalIPs` and
//! its load balancer's) to the same backends, as far as they handle the Service at
//! all. Who may write `externalIPs` may name any address, and where nobody leads it
//! elsewhere, that is who gets it: so nobody's rule for a backend opens it, nor one
//! for the address. It is denied; a Service is to be had at its own address. What
//! is the cluster's own stays its owner's, as a tenant could otherwise cut anybody
//! off. A proxy may lead what is sent there astray all the same; against that there
//! is the API server's admission plugin `DenyServiceExternalIPs`.
//!
//! What one Service may cost is bounded, and what those of a namespace may; one that
//! costs more is denied as a whole.

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

/// The [`PLACES`] of all Services of a namespace: a quarter of the addresses that
/// there is room for by default.
const PLACES_OF_NAMESPACE: usize = 16_384;

/// Outside addresses of all Services of a namespace, and of all of them.
const OUTSIDE: usize = 256;
const ALL_OUTSIDE: usize = 4096;

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
    /// Outside addresses of Services, and those of Services that cannot be told
    /// apart: nobody may reach them.
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
    /// Backends that are nobody's; those of a slice together.
    pub strangers: BTreeSet<Arc<BTreeSet<IpAddr>>>,
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
    let mut services: Vec<&ServiceFacts> = services
        .filter(|service| !service.addresses.is_empty())
        .collect();
    // Always the same ones find room.
    services.sort_by_key(|service| (&service.namespace, &service.name));
    let given = services.iter().flat_map(|service| &service.addresses);
    let mut resolver = Resolver {
        owners,
        land,
        given: given.copied().collect(),
        used: BTreeMap::new(),
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
        "is one too many: those of its namespace have more than {PLACES_OF_NAMESPACE} ports at all their addresses together: its traffic is denied; spread them over namespaces"
    )]
    TooManyInNamespace,
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
    #[error(
        "names {0} as an external address, and those of its namespace name more than {OUTSIDE}, or all Services more than {ALL_OUTSIDE}: it stays the world's, and a proxy may lead what is sent there to the Service all the same; remove some, and switch on the API server's admission plugin DenyServiceExternalIPs"
    )]
    TooManyOutside(IpAddr),
}

/// What the Services of a namespace have of what they may.
#[derive(Default)]
struct Used {
    places: usize,
    outside: usize,
}

struct Resolver<'a, P, S> {
    owners: &'a Owners,
    land: Land<P, S>,
    /// All addresses that the API server gave to Services.
    given: BTreeSet<IpAddr>,
    used: BTreeMap<Arc<str>, Used>,
    found: Found,
}

impl<P: Fn(IpAddr) -> bool, S: Fn(IpAddr) -> bool> Resolver<'_, P, S> {
    fn service(&mut self, service: &ServiceFacts, slices: &[&SliceFacts]) {
        let name: Arc<str> = format!("{}/{}", service.namespace, service.name).into();
        let outside = self.outside(service);
        let ports = self.take_places(service);
        let ports = ports.and_then(|()| self.ports(&name, service, slices));
        let trouble = match ports {
            Ok((ports, trouble)) => {
                self.found.ports.extend(ports);
                trouble.or(outside)
            }
            Err(trouble) => {
                // Nobody claims what is inside, and so it is nobody's.
                let own = service.addresses.iter().copied();
                let open: Vec<IpAddr> = own.filter(|ip| !self.is_inside(*ip)).collect();
                self.found.denied.extend(open);
                Some(trouble)
            }
        };
        let complaint = trouble.map(|trouble| format!("the Service {name} {trouble}"));
        self.found.complaints.extend(complaint);
    }

    /// Denies its outside addresses, but those that are not.
    fn outside(&mut self, service: &ServiceFacts) -> Option<Trouble> {
        let outside: BTreeSet<IpAddr> = service.outside.iter().copied().collect();
        let (owned, outside): (Vec<IpAddr>, Vec<IpAddr>) =
            outside.into_iter().partition(|ip| self.is_somebodys(*ip));
        let mut taken = owned.into_iter().filter(|ip| !self.is_nodes(*ip));
        let mut trouble = taken.next().map(Trouble::NotOutside);
        for ip in outside {
            if self.found.denied.contains(&ip) {
                continue;
            }
            let is_full = self.found.denied.len() >= ALL_OUTSIDE;
            let used = self.used.entry(service.namespace.clone()).or_default();
            if is_full || used.outside == OUTSIDE {
                trouble.get_or_insert(Trouble::TooManyOutside(ip));
                break;
            }
            used.outside += 1;
            self.found.denied.insert(ip);
        }
        trouble
    }

    fn take_places(&mut self, service: &ServiceFacts) -> Result<(), Trouble> {
        let places = service.ports.len().saturating_mul(service.addresses.len());
        if places > PLACES {
            return Err(Trouble::TooManyPlaces(places));
        }
        let used = self.used.entry(service.namespace.clone()).or_default();
        if used.places + places > PLACES_OF_NAMESPACE {
            return Err(Trouble::TooManyInNamespace);
        }
        used.places += places;
        Ok(())
    }

    fn ports<'s>(
        &self,
        name: &Arc<str>,
        service: &'s ServiceFacts,
        slices: &[&'s SliceFacts],
    ) -> Result<(Vec<ServicePort>, Option<Trouble>), Trouble> {
        if !slices.iter().all(|slice| slice.is_legible) {
            return Err(Trouble::Illegible);
        }
        let (mut found, mut troubles) = (Vec::new(), BTreeSet::new());
        let mut left = MEMBERS;
        for is_v4 in [true, false] {
            let addresses = service.addresses.iter();
            let addresses = addresses.filter(|ip| ip.is_ipv4() == is_v4);
            let addresses = addresses.map(|ip| (*ip, self.is_inside(*ip)));
            let addresses: Vec<(IpAddr, bool)> = addresses.collect();
            if addresses.is_empty() {
                continue;
            }
            let behind = self.behind(slices, is_v4);
            for port in &service.ports {
                let answering = behind.answering(port, addresses.len(), &mut left)?;
                troubles.extend(behind.trouble(port));
                let answering = Arc::new(answering);
                let at = |(ip, is_inside): &(IpAddr, bool)| ServicePort {
                    service: name.clone(),
                    place: Place {
                        ip: *ip,
                        protocol: port.protocol,
                        port: port.port,
                    },
                    is_inside: *is_inside,
                    answering: answering.clone(),
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

    /// Whether it is none that a Service may have for itself.
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
        let mut strangers = BTreeSet::new();
        for ip in slice.addresses.iter().filter(|ip| ip.is_ipv4() == is_v4) {
            let owners = self.owners.of(*ip).map(|party| match party {
                // It runs on nodes or outside the cluster; a pod is never it.
                Party::Reserved(_) if is_api_servers => &API_SERVER_ITSELF,
                party => party,
            });
            let is_governed = self.owners.governed.contains(ip);
            let mut first = None;
            for party in owners {
                if *first.get_or_insert(party) != party {
                    crowd.disputed.get_or_insert(*ip);
                }
                crowd.add(party, is_governed);
            }
            match first {
                None if is_api_servers => crowd.add(&API_SERVER_ITSELF, false),
                None => {
                    crowd.add(&NOBODY, false);
                    strangers.insert(*ip);
                }
                Some(_) => {}
            }
        }
        crowd.strangers = strangers.into();
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
    /// Backends that are nobody's.
    strangers: Arc<BTreeSet<IpAddr>>,
    /// One that is several's.
    disputed: Option<IpAddr>,
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
            answering.is_doubtful |= !crowd.strangers.is_empty() || crowd.disputed.is_some();
            if !crowd.strangers.is_empty() {
                answering.strangers.insert(crowd.strangers.clone());
            }
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
        let strangers = self.leads(port);
        let strangers = strangers.filter_map(|(_, crowd)| crowd.strangers.first().copied());
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
        for number in [identity::HOST, identity::NODES] {
            owners.add(&ips(&["192.0.2.3"]), &Party::Reserved(number));
        }
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
        // The last one is this node's and, as another says, that one's.
        for address in ["192.0.2.1", "192.0.2.2", "203.0.113.9", "192.0.2.3"] {
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
        let slices = [legible, illegible];
        let of = found(&services, &slices);
        assert_eq!(said(&of), [""; 0]);
        assert_eq!(of.denied, BTreeSet::new(), "it is nobody's in the range");
        assert!(of.complaints[0].contains("cannot be read"), "{of:?}");
        let services = [service(&["198.51.100.7"], &[port("", Tcp, 80)])];
        let of = found(&services, &slices);
        assert_eq!(said(&of), [""; 0]);
        assert_eq!(of.denied, BTreeSet::from([ip("198.51.100.7")]));
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
    fn outside_addresses_are_denied_whoever_is_behind_the_service() {
        let services = [with_outside(&["203.0.113.9", "203.0.113.9", "2001:db8::9"])];
        let slices = [slice(&["10.1.0.5", "fd00::5"], &[port("", Tcp, 8443)])];
        for (slices, own) in [
            (&slices[..], &["10.96.0.7 TCP/443->8443 web"][..]),
            (&[], &[]),
        ] {
            let found = found(&services, slices);
            assert_eq!(found.complaints, [""; 0]);
            assert_eq!(said(&found), own);
            let denied = ["203.0.113.9", "2001:db8::9"].map(ip);
            assert_eq!(found.denied, BTreeSet::from(denied));
        }
    }

    #[test]
    fn nobody_denies_more_of_the_world_than_a_little() {
        let named = |namespace: usize, name: &str, addresses: usize| ServiceFacts {
            namespace: format!("ns-{namespace}").into(),
            name: name.into(),
            outside: (0..addresses)
                .map(|n| {
                    format!("203.{namespace}.{}.{}", n / 256, n % 256)
                        .parse()
                        .unwrap()
                })
                .collect(),
            ..service(&[VIP], &[])
        };
        let own = named(1, "web", OUTSIDE);
        let found_of = |services: &[ServiceFacts]| {
            let found = found(services, &[]);
            (found.denied.len(), found.complaints)
        };
        assert_eq!(found_of(std::slice::from_ref(&own)), (OUTSIDE, vec![]));
        // The same ones again take nothing.
        let (denied, complaints) = found_of(&[own, named(1, "x", OUTSIDE + 1)]);
        assert_eq!((denied, complaints.len()), (OUTSIDE, 1));
        let told = "the Service ns-1/x names 203.1.1.0 as an external address";
        assert!(complaints[0].starts_with(told), "{complaints:?}");
        let others: Vec<_> = (0..20).map(|n| named(n, "web", OUTSIDE)).collect();
        let (denied, complaints) = found_of(&others);
        assert_eq!((denied, complaints.len()), (ALL_OUTSIDE, 4));
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
            let mine: Vec<String> = mine.collect();
            assert_eq!(mine, ["10.96.0.7 TCP/443 web"], "{address}");
            let denied = BTreeSet::from([ip("203.0.113.9")]);
            assert_eq!(found.denied, denied, "{address}");
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
        let of = |addresses: &[&str], count| {
            let service = service(addresses, &ports(count));
            found(&[service], &[slice(&["10.1.0.5"], &ports(count))])
        };
        let fits = of(&[VIP], most);
        assert_eq!((endpoints(&fits).len(), fits.complaints.len()), (PLACES, 0));
        for (addresses, count, places) in [
            (&[VIP][..], most + 1, PLACES + 1),
            (&[VIP, "fd00:96::7"], most / 2 + 1, PLACES + 2),
        ] {
            let found = of(addresses, count);
            assert_eq!(endpoints(&found), []);
            assert_eq!(found.complaints.len(), 1);
            assert!(found.complaints[0].contains(&format!("has {places} ports")));
        }
    }

    #[test]
    fn a_namespace_has_so_many_ports_and_takes_nobody_elses() {
        let ports: Vec<PortFacts> = (1..=4096)
            .map(|number: u16| port(&number.to_string(), Tcp, number))
            .collect();
        let of = |namespace: &str, number: u8| ServiceFacts {
            namespace: namespace.into(),
            name: format!("web-{number}").into(),
            ..service(&[&format!("10.96.1.{number}")], &ports)
        };
        let slices: Vec<SliceFacts> = [("a", 9), ("b", 1)]
            .into_iter()
            .flat_map(|(namespace, count)| (0..count).map(move |number| (namespace, number)))
            .map(|(namespace, number)| SliceFacts {
                namespace: namespace.into(),
                service: format!("web-{number}").into(),
                ..slice(&["10.1.0.5"], &ports)
            })
            .collect();
        let mut services: Vec<ServiceFacts> = (0..5).map(|number| of("a", number)).collect();
        services.push(of("b", 0));
        services.reverse();
        let found = found(&services, &slices);
        assert_eq!(endpoints(&found).len(), PLACES_OF_NAMESPACE + PLACES);
        assert_eq!(found.complaints.len(), 1);
        let told = "the Service a/web-4 is one too many";
        assert!(
            found.complaints[0].starts_with(told),
            "{:?}",
            found.complaints
        );
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
        assert_eq!(endpoints(&found), []);
        assert_eq!(found.complaints.len(), 1);
        assert!(found.complaints[0].contains("more than 16384 identities"));
        let fits = of(&ports[..81]);
        assert_eq!(endpoints(&fits).len(), 81);
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
            (claims, found.complaints.len())
        };
        // One with 10,000 ports, and slices with as many.
        let ports = named_ports(10_000);
        let slices: Vec<SliceFacts> = (0..10).map(|_| slice(&backends, &ports)).collect();
        assert_eq!(timed(&[service(&[VIP], &ports)], &slices), (0, 1));
        // The largest that there may be.
        let large = service(&[VIP], &ports[..2000]);
        assert_eq!(timed(&[large], &slices), (2000, 0));
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
        assert_eq!(timed(&services, &slices), (10_000, 0));
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
