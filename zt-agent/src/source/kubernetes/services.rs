//! Who answers at a Service's addresses, port by port. Pure.
//!
//! A packet to a Service leaves the workload with the Service's address; only
//! later a proxy of the node puts a backend's in its place. So who is behind
//! each port must be known before. A backend is whoever owns its address: what
//! a slice says of it (its `targetRef`, its node) may have been written by
//! anybody who may write slices, and is not looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use zt_common::{codes::Protocol, identity};

use super::objects::{PortFacts, ServiceFacts, SliceFacts};
use crate::model::{Endpoint, Party, Service};

/// The Service of the API server itself.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// Who owns which address.
#[derive(Clone, Debug, Default)]
pub struct Owners(BTreeMap<IpAddr, BTreeSet<Party>>);

impl Owners {
    pub fn add(&mut self, addresses: &[IpAddr], party: &Party) {
        for ip in addresses {
            let owners = self.0.entry(*ip).or_default();
            if !owners.contains(party) {
                owners.insert(party.clone());
            }
        }
    }

    fn of(&self, ip: IpAddr) -> impl Iterator<Item = &Party> {
        self.0.get(&ip).into_iter().flatten()
    }
}

/// What all Services come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub ports: Vec<ServicePort>,
    pub complaints: Vec<String>,
}

/// A port of a Service's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name`
    pub service: Arc<str>,
    pub place: Place,
    pub answering: Answering,
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
    /// And at which port.
    pub parties: BTreeSet<(Party, u16)>,
    /// Some backend is nobody's, or its address is claimed by several.
    pub is_doubtful: bool,
    /// Some backend is outside the cluster.
    pub leads_out: bool,
}

/// Looks who may answer at every port of every Service. `is_inside`: whether an
/// address is one that only this cluster gives.
pub fn resolve<'a>(
    services: impl Iterator<Item = &'a ServiceFacts>,
    slices: impl Iterator<Item = &'a SliceFacts>,
    owners: &Owners,
    is_inside: impl Fn(IpAddr) -> bool,
) -> Found {
    let mut by_service: BTreeMap<(&str, &str), Vec<&SliceFacts>> = BTreeMap::new();
    for slice in slices {
        let service = (&*slice.namespace, &*slice.service);
        by_service.entry(service).or_default().push(slice);
    }
    let mut resolver = Resolver {
        owners,
        is_inside,
        found: Found::default(),
    };
    for service in services.filter(|service| !service.addresses.is_empty()) {
        let name = (&*service.namespace, &*service.name);
        let slices = by_service.get(&name).map_or(&[][..], Vec::as_slice);
        resolver.service(service, slices);
    }
    resolver.found
}

impl ServicePort {
    /// Claims it for whoever may answer there: for nobody where there is no backend
    /// or where one is nobody's or disputed, so that it is `unknown-peer` or a
    /// conflict and denied. Or says why not even that says it all.
    pub fn claims(&self) -> (Vec<Endpoint>, Option<String>) {
        let Place { ip, protocol, port } = self.place;
        let mut parties = self.answering.parties.clone();
        let mut complaint = None;
        if parties.is_empty() {
            parties.insert((NOBODY, port));
        }
        if !self.answering.is_doubtful && parties.len() > 1 {
            match Service::new(&self.service, parties.clone()) {
                // Packets bear the Service's port, and by that it is asked for.
                Some(all) => parties = BTreeSet::from([(Party::Service(all.into()), port)]),
                None => {
                    complaint = Some(format!(
                        "the Service {} leads from port {port} to {} identities, more than can be told apart there: its traffic is denied; give it fewer service accounts",
                        self.service,
                        parties.len()
                    ));
                }
            }
        }
        let claims = parties.into_iter().map(|(party, target)| Endpoint {
            ip,
            party,
            cgroup: None,
            ports: Some(vec![(protocol, port)]),
            target: (target != port).then_some(target),
        });
        (claims.collect(), complaint)
    }
}

struct Resolver<'a, I> {
    owners: &'a Owners,
    is_inside: I,
    found: Found,
}

impl<I: Fn(IpAddr) -> bool> Resolver<'_, I> {
    fn service(&mut self, service: &ServiceFacts, slices: &[&SliceFacts]) {
        let mut strangers = BTreeSet::new();
        let name: Arc<str> = format!("{}/{}", service.namespace, service.name).into();
        let is_legible = slices.iter().all(|slice| slice.is_legible);
        if !is_legible {
            self.found.complaints.push(format!(
                "a slice of the Service {}/{} has an address or a port that cannot be read: the Service's traffic is denied; write the slice anew",
                service.namespace, service.name
            ));
        }
        for ip in &service.addresses {
            for port in &service.ports {
                let mut answering = Answering::default();
                if !is_legible {
                    answering.parties.insert((NOBODY, port.port));
                    answering.is_doubtful = true;
                }
                for (backend, target) in backends(*ip, port, slices) {
                    let parties = self.parties(service, backend);
                    if parties.contains(&NOBODY) {
                        strangers.insert(backend);
                        answering.leads_out |= !(self.is_inside)(backend);
                    }
                    answering.is_doubtful |= parties.len() > 1 || parties.contains(&NOBODY);
                    let parties = parties.into_iter().map(|party| (party, target));
                    answering.parties.extend(parties);
                }
                self.found.ports.push(ServicePort {
                    service: name.clone(),
                    place: Place {
                        ip: *ip,
                        protocol: port.protocol,
                        port: port.port,
                    },
                    answering,
                });
            }
        }
        if let Some(stranger) = strangers.first() {
            self.found.complaints.push(format!(
                "the Service {}/{} leads to {stranger}, which is neither a pod's nor a node's: its traffic is denied; let workloads connect to an address outside the cluster itself, by a rule for that address",
                service.namespace, service.name
            ));
        }
    }

    /// Whose address a backend has.
    fn parties(&self, service: &ServiceFacts, backend: IpAddr) -> BTreeSet<Party> {
        let is_api_server = (&*service.namespace, &*service.name) == API_SERVER;
        let owners = self.owners.of(backend).cloned();
        let mut parties: BTreeSet<Party> = owners
            .map(|party| match party {
                // It runs on nodes or outside the cluster; a pod is never it.
                Party::Reserved(_) if is_api_server => API_SERVER_ITSELF,
                party => party,
            })
            .collect();
        if parties.is_empty() {
            parties.insert(if is_api_server {
                API_SERVER_ITSELF
            } else {
                NOBODY
            });
        }
        parties
    }
}

pub(super) const NOBODY: Party = Party::Reserved(identity::UNKNOWN_PEER);
const API_SERVER_ITSELF: Party = Party::Reserved(identity::APISERVER);

/// Where a proxy may lead what is sent to this port of this address.
fn backends<'a>(
    ip: IpAddr,
    port: &'a PortFacts,
    slices: &'a [&SliceFacts],
) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
    let same =
        move |behind: &&PortFacts| behind.name == port.name && behind.protocol == port.protocol;
    slices.iter().flat_map(move |slice| {
        let targets = slice.ports.iter().filter(same);
        targets.flat_map(move |target| {
            let addresses = slice.addresses.iter().copied();
            addresses
                .filter(move |backend| backend.is_ipv4() == ip.is_ipv4())
                .map(move |backend| (backend, target.port))
        })
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
            ports: ports.into(),
        }
    }

    fn slice(addresses: &[&str], ports: &[PortFacts]) -> SliceFacts {
        SliceFacts {
            namespace: "ns".into(),
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
        found
            .ports
            .iter()
            .flat_map(|port| port.claims().0)
            .collect()
    }

    fn found(services: &[ServiceFacts], slices: &[SliceFacts]) -> Found {
        resolve(services.iter(), slices.iter(), &owners(), inside)
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
        assert_eq!(said(&found), ["10.96.0.7 TCP/80 #5", "10.96.0.7 TCP/81 #5"]);
        assert_eq!(found.complaints, [""; 0], "it may come");
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
        assert_eq!(
            said(&nobody),
            ["10.96.0.7 TCP/80 web", "10.96.0.7 TCP/80 #5"]
        );
        assert!(nobody.complaints[0].contains("ns/web leads to 203.0.113.9"));
    }

    #[test]
    fn an_address_that_two_claim_makes_the_port_a_conflict() {
        let mut owners = owners();
        owners.add(&ips(&["10.1.1.6"]), &named("web"));
        let services = [service(&[VIP], &[port("", Tcp, 80)])];
        let slices = [slice(&["10.1.0.5", "10.1.1.6"], &[port("", Tcp, 80)])];
        let found = resolve(services.iter(), slices.iter(), &owners, inside);
        assert_eq!(
            said(&found),
            ["10.96.0.7 TCP/80 db", "10.96.0.7 TCP/80 web"]
        );
    }

    #[test]
    fn more_than_a_name_holds_are_a_conflict_that_is_told() {
        let addresses: Vec<String> = (1..200).map(|last| format!("10.1.2.{last}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let mut owners = Owners::default();
        for address in &addresses {
            owners.add(&ips(&[*address]), &named(&address.replace('.', "-")));
        }
        let services = [service(&[VIP], &[port("", Tcp, 80)])];
        let slices = [slice(&addresses, &[port("", Tcp, 80)])];
        let found = resolve(services.iter(), slices.iter(), &owners, inside);
        assert_eq!(endpoints(&found).len(), addresses.len());
        let complaint = found.ports[0].claims().1;
        assert!(complaint.unwrap().contains("199 identities"));
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
        let of = |address| {
            let service = ServiceFacts {
                namespace: "default".into(),
                name: "kubernetes".into(),
                ..service(&[VIP], &[port("https", Tcp, 443)])
            };
            let slice = SliceFacts {
                namespace: "default".into(),
                service: "kubernetes".into(),
                ..slice(&[address], &[port("https", Tcp, 6443)])
            };
            said(&found(&[service], &[slice]))
        };
        for address in ["192.0.2.1", "192.0.2.2", "203.0.113.9"] {
            assert_eq!(of(address), ["10.96.0.7 TCP/443->6443 #3"], "{address}");
        }
        assert_eq!(of("10.1.0.5"), ["10.96.0.7 TCP/443->6443 web"]);
    }

    #[test]
    fn what_cannot_be_read_of_a_slice_is_nobody_to_the_whole_service() {
        let legible = slice(&["10.1.0.5"], &[port("", Tcp, 8080)]);
        let illegible = SliceFacts {
            is_legible: false,
            ..slice(&[], &[])
        };
        let services = [service(&[VIP], &[port("", Tcp, 80)])];
        let found = found(&services, &[legible, illegible]);
        assert_eq!(
            said(&found),
            ["10.96.0.7 TCP/80->8080 web", "10.96.0.7 TCP/80 #5"]
        );
        assert!(found.complaints[0].contains("cannot be read"), "{found:?}");
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
                        service.members().map(|(party, port)| (party.clone(), port)).collect()
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
            if expected.is_empty() {
                expected.insert((NOBODY, 80));
            }
            prop_assert_eq!(said, expected);
        }
    }
}
