//! Whether a rule speaks of a question.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use zt_agent::model::{Ports, Rule, RuleAction, Selector, SpiffeId, SpiffePattern, Target};
use zt_common::{
    codes::{Direction, Protocol},
    identity,
};

use crate::{Peer, Question};

/// The governed end, the far end and what passes between them.
pub(crate) struct Flow<'a> {
    pub local: &'a SpiffeId,
    pub peer: &'a Peer,
    /// See [`crate::peer::FarEnd::target`].
    pub target: Option<u16>,
    pub question: &'a Question,
}

impl Flow<'_> {
    /// Whether `rule` speaks of this flow, whatever it says and until when.
    pub fn is_meant_by(&self, rule: &Rule) -> bool {
        let from = rule.from.iter().any(|selector| match self.direction() {
            Direction::Egress => self.local_is_meant_by(selector),
            Direction::Ingress => self.peer_is_meant_by(selector, rule.action),
        });
        from && rule
            .to
            .iter()
            .any(|target| self.goes_to(target, rule.action))
    }

    fn goes_to(&self, target: &Target, action: RuleAction) -> bool {
        let to = target
            .selectors
            .iter()
            .any(|selector| match self.direction() {
                Direction::Egress => {
                    self.peer_is_meant_by(selector, action)
                        && self.port_is_in(&target.ports, self.port_for(selector))
                }
                Direction::Ingress => {
                    self.local_is_meant_by(selector)
                        && self.port_is_in(&target.ports, self.question.local_port)
                }
            });
        to && target.protocols.contains(&self.question.protocol)
    }

    /// A range of addresses means what is on the wire; an identity has the port
    /// at which it is reached in the end.
    fn port_for(&self, selector: &Selector) -> u16 {
        match (selector, self.target) {
            (Selector::Spiffe(_) | Selector::Reserved(_), Some(target)) => target,
            _ => self.question.remote_port,
        }
    }

    /// The governed end is known by its identity and by nothing else.
    fn local_is_meant_by(&self, selector: &Selector) -> bool {
        match selector {
            Selector::Spiffe(pattern) => matches(pattern, self.local),
            Selector::Cidr(_) | Selector::Reserved(_) => false,
        }
    }

    fn peer_is_meant_by(&self, selector: &Selector, action: RuleAction) -> bool {
        match (selector, action) {
            (Selector::Spiffe(pattern), _) => {
                matches!(self.peer, Peer::Workload(id) if matches(pattern, id))
            }
            (Selector::Reserved(identity::WORLD), RuleAction::Allow) => {
                matches!(self.peer, Peer::Address(ip) if link_local_range_of(*ip).is_none())
            }
            (Selector::Reserved(identity::WORLD), RuleAction::Deny) => {
                matches!(self.peer, Peer::Address(_))
            }
            (Selector::Reserved(number), RuleAction::Allow) => {
                *self.peer == Peer::Reserved(*number) && can_be_allowed_by_name(*number)
            }
            (Selector::Reserved(number), RuleAction::Deny) => *self.peer == Peer::Reserved(*number),
            (Selector::Cidr(net), RuleAction::Allow) => {
                matches!(self.peer, Peer::Address(ip) if cidr_allows(net, *ip))
            }
            (Selector::Cidr(net), RuleAction::Deny) => {
                net.contains(&self.question.remote.to_canonical())
            }
        }
    }

    fn port_is_in(&self, ports: &Ports, port: u16) -> bool {
        if self.question.protocol == Protocol::Icmp {
            return true;
        }
        match ports {
            Ports::Any => port != 0,
            Ports::Ranges(ranges) => ranges.iter().any(|range| range.contains(&port)),
        }
    }

    fn direction(&self) -> Direction {
        self.question.direction
    }
}

/// Segment by segment: `*` is any one segment, a last `**` one or more.
///
/// Written out again, so that a mistake in [`SpiffePattern::matches`] shows.
fn matches(pattern: &SpiffePattern, id: &SpiffeId) -> bool {
    let wanted: Vec<&str> = pattern.as_str().split('/').collect();
    let found: Vec<&str> = id.as_str().split('/').collect();
    let (wanted, long_enough) = match wanted.split_last() {
        Some((&"**", head)) => (head, found.len() > head.len()),
        _ => (&wanted[..], found.len() == wanted.len()),
    };
    let mut pairs = wanted.iter().zip(&found);
    long_enough && pairs.all(|(want, have)| *want == "*" || want == have)
}

fn cidr_allows(net: &IpNet, world_address: IpAddr) -> bool {
    let reaches = link_local_range_of(world_address).is_none_or(|range| range.contains(net));
    net.contains(&world_address) && reaches
}

/// The link-local range that holds this address, if one does.
fn link_local_range_of(ip: IpAddr) -> Option<IpNet> {
    let ranges = [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
        IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
            10,
        )),
    ];
    ranges.into_iter().find(|range| range.contains(&ip))
}

fn can_be_allowed_by_name(number: identity::Number) -> bool {
    !matches!(
        number,
        identity::UNENROLLED | identity::UNKNOWN_PEER | identity::CONFLICT
    )
}
