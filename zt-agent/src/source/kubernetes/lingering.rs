//! Who answered for a Service until a moment ago. Pure.
//!
//! A proxy of the node follows a change of a Service later than we do. Until it
//! surely has, it may still lead to who was behind the Service before, and who
//! that is counts: whoever may write slices could otherwise let a packet pass as
//! one to a backend that may be reached, and have it led to another.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::services::{self, Answering, NOBODY, Place, ServicePort};
use crate::model::{Endpoint, Member, Party};

/// kube-proxy follows within its `minSyncPeriod` (1 s by default) and the time
/// that it takes to write its rules: seconds, in a large cluster.
const LINGER: Duration = Duration::from_secs(60);

/// Of the Services of one namespace so much is remembered: whoever changes theirs
/// all the time must not take the room of others.
const REMEMBERED: usize = 16_384;

/// What was, and is not any more.
#[derive(Debug, Default)]
pub struct Lingering {
    last: Vec<ServicePort>,
    /// Pods' addresses, and those that were until a moment ago.
    last_owned: Arc<BTreeSet<IpAddr>>,
    disowned: BTreeMap<IpAddr, Instant>,
    last_denied: BTreeSet<IpAddr>,
    gone: BTreeMap<Place, BTreeMap<Member, Departed>>,
    /// Addresses behind which there was somebody else, who is not remembered.
    doubted: BTreeMap<IpAddr, Instant>,
}

#[derive(Debug)]
struct Departed {
    since: Instant,
    /// From behind this Service.
    service: Arc<str>,
    /// See [`ServicePort`].
    is_inside: bool,
    /// It is still there, but governed now everywhere: of these there are no more
    /// than of those who are there.
    is_governed_now: bool,
}

impl Lingering {
    /// Who is where, if `ports` is what is said now, and nobody may reach `denied`.
    /// `owned` are the addresses of pods.
    pub fn claims(
        &mut self,
        ports: &[ServicePort],
        denied: &BTreeSet<IpAddr>,
        owned: &Arc<BTreeSet<IpAddr>>,
        now: Instant,
    ) -> Vec<Endpoint> {
        self.follow_owners(owned, now);
        let ports = self.follow(ports, denied, now);
        let denied = denied.iter().chain(self.doubted.keys());
        let denied: BTreeSet<IpAddr> = denied.copied().collect();
        let claims = ports.iter().filter_map(ServicePort::claim);
        // Another Service's claim of a port there must not open it.
        let claims = claims.filter(|claim| !denied.contains(&claim.ip));
        let mut claims: Vec<Endpoint> = claims.collect();
        claims.extend(denied.into_iter().map(services::denial));
        claims
    }

    fn follow_owners(&mut self, owned: &Arc<BTreeSet<IpAddr>>, now: Instant) {
        self.disowned
            .retain(|_, since| now.duration_since(*since) < LINGER);
        if !Arc::ptr_eq(&self.last_owned, owned) {
            let gone = self.last_owned.difference(owned);
            self.disowned.extend(gone.map(|ip| (*ip, now)));
            self.last_owned = owned.clone();
        }
    }

    fn follow<'a>(
        &mut self,
        ports: &'a [ServicePort],
        denied: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Cow<'a, [ServicePort]> {
        let is_new = |since: Instant| now.duration_since(since) < LINGER;
        self.gone.retain(|_, parties| {
            parties.retain(|_, departed| is_new(departed.since));
            !parties.is_empty()
        });
        self.doubted.retain(|_, since| is_new(*since));
        if self.last != ports {
            self.depart(ports, now);
            self.last = ports.to_vec();
        }
        if self.last_denied != *denied {
            let over = self.last_denied.difference(denied);
            self.doubted.extend(over.map(|ip| (*ip, now)));
            self.last_denied.clone_from(denied);
        }
        // As it is nearly always.
        if self.gone.is_empty() && self.doubted.is_empty() {
            return Cow::Borrowed(ports);
        }
        let known = ports.iter().filter(|port| !self.is_doubted(port));
        let present: BTreeSet<Place> = ports.iter().map(|port| port.place).collect();
        let known = known.map(|port| self.with_gone(port));
        known.chain(self.left_behind(&present)).collect()
    }

    /// The whole address is denied.
    fn is_doubted(&self, port: &ServicePort) -> bool {
        self.doubted.contains_key(&port.place.ip)
    }

    /// Outside the cluster's ranges, where it would be the world's again at once.
    fn left_behind(&self, present: &BTreeSet<Place>) -> impl Iterator<Item = ServicePort> {
        let absent = self.gone.iter();
        let absent = absent.filter(|(place, _)| !present.contains(place));
        absent.filter_map(|(place, parties)| {
            let outside = parties.values().find(|departed| !departed.is_inside)?;
            Some(ServicePort {
                service: outside.service.clone(),
                place: *place,
                is_inside: false,
                answering: Arc::default(),
            })
        })
    }

    fn depart(&mut self, ports: &[ServicePort], now: Instant) {
        // And whether ungoverned anywhere.
        let mut present: BTreeMap<(Place, &Party, u16), bool> = BTreeMap::new();
        for port in ports {
            for member in lasting(&self.disowned, &port.answering) {
                let key = (port.place, &member.party, member.port);
                *present.entry(key).or_default() |= !member.is_governed;
            }
        }
        let mut remembered: HashMap<String, usize> = HashMap::new();
        let gone = self.gone.values().flat_map(BTreeMap::values);
        for departed in gone.filter(|departed| !departed.is_governed_now) {
            *remembered.entry(namespace(&departed.service)).or_default() += 1;
        }
        for port in &self.last {
            let remembered = remembered.entry(namespace(&port.service)).or_default();
            for member in lasting(&self.disowned, &port.answering) {
                let present = present.get(&(port.place, &member.party, member.port));
                // Who is there ungoverned counts as that whatever he was.
                if present.is_some_and(|ungoverned| *ungoverned || member.is_governed) {
                    continue;
                }
                let is_governed_now = present.is_some();
                if !is_governed_now && *remembered == REMEMBERED {
                    self.doubted.insert(port.place.ip, now);
                    break;
                }
                *remembered += usize::from(!is_governed_now);
                let departed = Departed {
                    since: now,
                    service: port.service.clone(),
                    is_inside: port.is_inside,
                    is_governed_now,
                };
                let gone = self.gone.entry(port.place).or_default();
                gone.insert(member.clone(), departed);
            }
        }
    }

    fn with_gone(&self, port: &ServicePort) -> ServicePort {
        let mut port = port.clone();
        let Some(gone) = self.gone.get(&port.place) else {
            return port;
        };
        let answering = Arc::make_mut(&mut port.answering);
        if answering.members.is_empty() {
            // Where nobody is now, nobody is let through anyway.
            answering.is_doubtful = true;
            return port;
        }
        answering.is_doubtful |= gone.keys().any(|member| member.party == NOBODY);
        answering.members.extend(gone.keys().cloned());
        port
    }
}

/// Of `namespace/name`.
fn namespace(service: &str) -> String {
    let namespace = service.split_once('/').map_or(service, |(it, _)| it);
    namespace.to_owned()
}

/// An address that is nobody's now and was a pod's a moment ago is still a slice's
/// for a moment: that pod is what lasts. Any other that is nobody's does, too.
fn lasting<'a>(
    disowned: &BTreeMap<IpAddr, Instant>,
    answering: &'a Answering,
) -> impl Iterator<Item = &'a Member> {
    let mut strangers = answering.strangers.iter().flat_map(|some| some.iter());
    let are_lasting = strangers.any(|ip| !disowned.contains_key(ip));
    let members = answering.members.iter();
    members.filter(move |member| member.party != NOBODY || are_lasting)
}

#[cfg(test)]
mod tests {
    use zt_common::codes::Protocol;

    use super::*;

    const SOON: Duration = Duration::from_secs(59);

    fn id(name: &str) -> (Party, u16) {
        let id = format!("spiffe://td/{name}").parse().unwrap();
        (Party::Workload(id), 80)
    }

    fn port(parties: &[(Party, u16)], strangers: &[&str]) -> Vec<ServicePort> {
        let members = parties.iter().cloned().map(Member::from);
        port_of(members.collect(), strangers)
    }

    fn port_of(members: BTreeSet<Member>, strangers: &[&str]) -> Vec<ServicePort> {
        let nobody = members.iter().any(|member| member.party == NOBODY);
        vec![ServicePort {
            service: "ns/web".into(),
            place: Place {
                ip: "10.96.0.7".parse().unwrap(),
                protocol: Protocol::Tcp,
                port: 80,
            },
            is_inside: true,
            answering: Arc::new(Answering {
                is_doubtful: nobody,
                strangers: match ips(strangers) {
                    none if none.is_empty() => BTreeSet::new(),
                    some => BTreeSet::from([some]),
                },
                members,
            }),
        }]
    }

    fn ips(texts: &[&str]) -> Arc<BTreeSet<IpAddr>> {
        Arc::new(texts.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    fn counts(ports: &[ServicePort]) -> Vec<(Party, u16)> {
        let members = ports.iter().flat_map(|port| &port.answering.members);
        let parties = members.map(|member| (member.party.clone(), member.port));
        parties.collect()
    }

    #[test]
    fn who_went_counts_until_every_proxy_knows() {
        let (mut lingering, start) = (Lingering::default(), Instant::now());
        let mut at = |ports: &[ServicePort], after| {
            counts(&lingering.follow(ports, &BTreeSet::new(), start + after))
        };
        let (blue, green) = (port(&[id("blue")], &[]), port(&[id("green")], &[]));
        assert_eq!(at(&blue, Duration::ZERO), [id("blue")]);
        assert_eq!(at(&green, Duration::ZERO), [id("blue"), id("green")]);
        assert_eq!(at(&green, SOON), [id("blue"), id("green")]);
        // Nobody is there for a moment, and then the same again.
        assert_eq!(at(&[], SOON), []);
        assert_eq!(at(&port(&[], &[]), SOON), []);
        assert_eq!(at(&green, SOON), [id("blue"), id("green")]);
        assert_eq!(at(&green, LINGER), [id("green")]);
        // The same anew later is as new as it was.
        assert_eq!(at(&blue, LINGER), [id("blue"), id("green")]);
        assert_eq!(at(&blue, LINGER * 3), [id("blue")]);
    }

    #[test]
    fn who_was_somewhere_ungoverned_is_not_governed_before_every_proxy_knows() {
        let (mut lingering, start) = (Lingering::default(), Instant::now());
        let is = |is_governed| {
            let member = |name| Member {
                is_governed,
                ..id(name).into()
            };
            port_of(BTreeSet::from([member("blue"), member("green")]), &[])
        };
        let (governed, not) = (is(true), is(false));
        let mut at = |ports: &[ServicePort], after| {
            let claims = lingering.claims(ports, &BTreeSet::new(), &ips(&[]), start + after);
            match &claims[0].party {
                Party::Service(all) => all.members().iter().all(|one| one.is_governed),
                other => panic!("{other:?}"),
            }
        };
        assert!(!at(&not, Duration::ZERO));
        assert!(!at(&governed, Duration::ZERO));
        assert!(!at(&governed, SOON));
        assert!(at(&governed, LINGER));
        assert!(!at(&not, LINGER), "at once");
    }

    #[test]
    fn who_is_governed_now_takes_nobodys_room() {
        let (mut lingering, now) = (Lingering::default(), Instant::now());
        let all: u16 = REMEMBERED.try_into().unwrap();
        let mut ports = numbered("theirs/web", 1, 0..all + 9);
        said(&mut lingering, &ports, now);
        for port in &mut ports {
            let answering = Arc::make_mut(&mut port.answering);
            let governed = |member: &Member| Member {
                is_governed: true,
                ..member.clone()
            };
            answering.members = answering.members.iter().map(governed).collect();
        }
        let said = said(&mut lingering, &ports, now);
        assert!(said.iter().all(|one| *one == (id("blue").0, false)));
    }

    #[test]
    fn an_address_that_is_nobodys_lingers_and_a_pods_that_was_deleted_does_not() {
        let both = [id("web"), (NOBODY, 80)];
        let (pods, out) = ("10.1.0.5", "203.0.113.9");
        for (strangers, lingers) in [
            (&[pods][..], false),
            (&[out], true),
            (&[pods, out], true),
            // A bridge's, say: it lies in a range of pods and was none's.
            (&["10.1.0.1"], true),
        ] {
            let (mut lingering, start) = (Lingering::default(), Instant::now());
            let mut is_doubtful = |owned: &[&str], ports: &[ServicePort], after| {
                let now = start + after;
                lingering.follow_owners(&ips(owned), now);
                let ports = lingering.follow(ports, &BTreeSet::new(), now);
                ports[0].answering.is_doubtful
            };
            let web = port(&both[..1], &[]);
            assert!(!is_doubtful(&[pods, "10.1.0.6"], &web, Duration::ZERO));
            let deleted = port(&both, strangers);
            assert!(is_doubtful(&["10.1.0.6"], &deleted, Duration::ZERO));
            // Another one goes meanwhile.
            assert!(is_doubtful(&[], &deleted, Duration::ZERO));
            assert_eq!(is_doubtful(&[], &web, SOON), lingers, "{strangers:?}");
            assert!(!is_doubtful(&[], &web, SOON + LINGER));
            // By now it counts as any other.
            assert!(is_doubtful(&[], &deleted, SOON + LINGER));
            assert!(is_doubtful(&[], &web, SOON + LINGER));
        }
    }

    #[test]
    fn what_is_denied_is_denied_though_another_service_claims_a_port_of_it() {
        let (mut lingering, now) = (Lingering::default(), Instant::now());
        let blue = port(&[id("blue")], &[]);
        let denied = BTreeSet::from([blue[0].place.ip]);
        let claims = lingering.claims(&blue, &denied, &ips(&[]), now);
        assert_eq!(claims, [services::denial(blue[0].place.ip)]);
    }

    type Said = Vec<(Party, bool)>;

    /// Who is where, and whether at the whole address.
    fn said(lingering: &mut Lingering, ports: &[ServicePort], now: Instant) -> Said {
        let claims = lingering
            .claims(ports, &BTreeSet::new(), &ips(&[]), now)
            .into_iter();
        claims.map(|one| (one.party, one.ports.is_none())).collect()
    }

    #[test]
    fn where_nobody_is_any_more_is_denied_by_name_until_every_proxy_knows() {
        let (mut lingering, start) = (Lingering::default(), Instant::now());
        said(&mut lingering, &port(&[id("blue")], &[]), start);
        let mut at = |after| said(&mut lingering, &port(&[], &[]), start + after);
        assert_eq!(at(Duration::ZERO), [(NOBODY, false)]);
        assert_eq!(at(SOON), [(NOBODY, false)]);
        assert_eq!(at(LINGER), []);
    }

    #[test]
    fn what_was_a_services_outside_is_not_the_worlds_before_every_proxy_knows() {
        for (is_inside, expected) in [(true, &[][..]), (false, &[(NOBODY, false)])] {
            let (mut lingering, start) = (Lingering::default(), Instant::now());
            let mut blue = port(&[id("blue")], &[]);
            blue[0].is_inside = is_inside;
            said(&mut lingering, &blue, start);
            assert_eq!(said(&mut lingering, &[], start + SOON / 2), expected);
            assert_eq!(said(&mut lingering, &[], start + SOON), expected);
            assert_eq!(said(&mut lingering, &[], start + SOON * 2), []);
        }
    }

    #[test]
    fn who_was_behind_a_service_that_was_denied_is_not_known_and_may_be_anybody() {
        let (mut lingering, start) = (Lingering::default(), Instant::now());
        let blue = port(&[id("blue")], &[]);
        let denied = BTreeSet::from([blue[0].place.ip]);
        let claims = lingering.claims(&[], &denied, &ips(&[]), start);
        assert_eq!(claims, [services::denial(blue[0].place.ip)]);
        let mut at = |after| said(&mut lingering, &blue, start + after);
        assert_eq!(at(Duration::ZERO), [(NOBODY, true)]);
        assert_eq!(at(SOON), [(NOBODY, true)]);
        assert_eq!(at(LINGER), [(id("blue").0, false)]);
    }

    /// A Service of one port after the other.
    fn numbered(service: &str, last: u8, ports: std::ops::Range<u16>) -> Vec<ServicePort> {
        let one = |number| {
            let mut one = port(&[id("blue")], &[]).remove(0);
            one.service = service.into();
            one.place.ip = [10, 96, 0, last].into();
            one.place.port = number;
            one
        };
        ports.map(one).collect()
    }

    #[test]
    fn what_does_not_fit_makes_the_services_of_that_namespace_doubtful_and_no_others() {
        let (mut lingering, start) = (Lingering::default(), Instant::now());
        let all: u16 = REMEMBERED.try_into().unwrap();
        let mut before = numbered("theirs/web", 1, 0..all + 9);
        before.extend(numbered("theirs/last", 2, 0..1));
        before.extend(numbered("ours/web", 3, 0..1));
        said(&mut lingering, &before, start);
        let two = [(NOBODY, true), (NOBODY, true)];
        assert_eq!(said(&mut lingering, &[], start), two);
        let kept: usize = lingering.gone.values().map(BTreeMap::len).sum();
        assert_eq!(kept, REMEMBERED + 1);
        let mut at = |last, after| {
            let anew = numbered("any/web", last, 0..1);
            let mut said = said(&mut lingering, &anew, start + after);
            said.retain(|one| *one != (NOBODY, true));
            said
        };
        let blue = [(id("blue").0, false)];
        assert_eq!(at(2, SOON), []);
        assert_eq!(at(3, SOON), blue);
        assert_eq!(at(2, LINGER), blue);
    }
}
