//! Who answered for a Service until a moment ago. Pure.
//!
//! A proxy of the node follows a change of a Service later than we do. Until it
//! surely has, it may still lead to who was behind the Service before, and who
//! that is counts: whoever may write slices could otherwise let a packet pass as
//! one to a backend that may be reached, and have it led to another.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::services::{Answering, NOBODY, Place, ServicePort};
use crate::model::Party;

/// kube-proxy follows within its `minSyncPeriod` (1 s by default) and the time
/// that it takes to write its rules: seconds, in a large cluster.
const LINGER: Duration = Duration::from_secs(60);

/// What was, and is not any more.
#[derive(Debug, Default)]
pub struct Lingering {
    last: Vec<ServicePort>,
    gone: BTreeMap<Place, BTreeMap<(Party, u16), Instant>>,
}

impl Lingering {
    /// What counts where `ports` is what is said now.
    pub fn follow<'a>(&mut self, ports: &'a [ServicePort], now: Instant) -> Cow<'a, [ServicePort]> {
        if self.last != ports {
            self.depart(ports, now);
            self.last = ports.to_vec();
        }
        self.gone.retain(|_, parties| {
            parties.retain(|_, since| now.duration_since(*since) < LINGER);
            !parties.is_empty()
        });
        // As it is nearly always.
        if self.gone.is_empty() {
            return Cow::Borrowed(ports);
        }
        ports.iter().map(|port| self.with_gone(port)).collect()
    }

    fn depart(&mut self, ports: &[ServicePort], now: Instant) {
        let mut present: BTreeMap<Place, BTreeSet<(Party, u16)>> = BTreeMap::new();
        for port in ports {
            let parties = present.entry(port.place).or_default();
            parties.extend(lasting(&port.answering));
        }
        for port in &self.last {
            let present = present.get(&port.place);
            let is_gone = |party: &(Party, u16)| present.is_none_or(|all| !all.contains(party));
            for party in lasting(&port.answering).filter(is_gone) {
                let gone = self.gone.entry(port.place).or_default();
                gone.insert(party, now);
            }
        }
    }

    fn with_gone(&self, port: &ServicePort) -> ServicePort {
        let mut port = port.clone();
        // Where nobody is now, nobody is let through anyway.
        if let Some(gone) = self.gone.get(&port.place)
            && !port.answering.parties.is_empty()
        {
            let answering = &mut port.answering;
            answering.is_doubtful |= gone.keys().any(|(party, _)| *party == NOBODY);
            answering.parties.extend(gone.keys().cloned());
        }
        port
    }
}

/// A pod's address that is nobody's for a moment was a pod's before: that pod is
/// what lasts. One outside the cluster is nobody's for good.
fn lasting(answering: &Answering) -> impl Iterator<Item = (Party, u16)> {
    let parties = answering.parties.iter();
    parties
        .filter(|(party, _)| *party != NOBODY || answering.leads_out)
        .cloned()
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

    fn port(parties: &[(Party, u16)], leads_out: bool) -> Vec<ServicePort> {
        let parties: BTreeSet<_> = parties.iter().cloned().collect();
        let nobody = parties.iter().any(|(party, _)| *party == NOBODY);
        vec![ServicePort {
            service: "ns/web".into(),
            place: Place {
                ip: "10.96.0.7".parse().unwrap(),
                protocol: Protocol::Tcp,
                port: 80,
            },
            answering: Answering {
                is_doubtful: nobody,
                leads_out,
                parties,
            },
        }]
    }

    fn counts(ports: &[ServicePort]) -> Vec<(Party, u16)> {
        let parties = ports.iter().flat_map(|port| &port.answering.parties);
        parties.cloned().collect()
    }

    #[test]
    fn who_went_counts_until_every_proxy_knows() {
        let (mut lingering, start) = (Lingering::default(), Instant::now());
        let mut at = |ports: &[ServicePort], after| counts(&lingering.follow(ports, start + after));
        let (blue, green) = (port(&[id("blue")], false), port(&[id("green")], false));
        assert_eq!(at(&blue, Duration::ZERO), [id("blue")]);
        assert_eq!(at(&green, Duration::ZERO), [id("blue"), id("green")]);
        assert_eq!(at(&green, SOON), [id("blue"), id("green")]);
        // Nobody is there for a moment, and then the same again.
        assert_eq!(at(&[], SOON), []);
        assert_eq!(at(&port(&[], false), SOON), []);
        assert_eq!(at(&green, SOON), [id("blue"), id("green")]);
        assert_eq!(at(&green, LINGER), [id("green")]);
        // The same anew later is as new as it was.
        assert_eq!(at(&blue, LINGER), [id("blue"), id("green")]);
        assert_eq!(at(&blue, LINGER * 3), [id("blue")]);
    }

    #[test]
    fn an_address_outside_lingers_and_a_pods_that_was_deleted_does_not() {
        let nobody = (NOBODY, 80);
        let both = [id("web"), nobody.clone()];
        for (leads_out, expected) in [(true, &both[..]), (false, &both[..1])] {
            let (mut lingering, now) = (Lingering::default(), Instant::now());
            let before = port(&both, leads_out);
            assert!(lingering.follow(&before, now)[0].answering.is_doubtful);
            let said = port(&both[..1], false);
            let after = lingering.follow(&said, now);
            let mut found = counts(&after);
            found.sort_by_key(|(party, _)| *party == NOBODY);
            assert_eq!(found, expected);
            assert_eq!(after[0].answering.is_doubtful, leads_out);
        }
    }
}
