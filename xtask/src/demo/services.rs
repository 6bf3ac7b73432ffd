//! The five services of the policy document, and what it says of them.

use std::fmt;
use std::net::SocketAddr;

use zt_tests::netns::Network;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    Iam,
    Gateway,
    Chat,
    Postgres,
    Redis,
}

use Service::{Chat, Gateway, Iam, Postgres, Redis};

/// Who may reach whom, on the port of the one reached, over TCP and both IP
/// versions: read off `hanzo-core-policy.yaml` by a person, rule by rule. Nothing
/// else may pass; UDP may not at all, since a rule without `protocol` is TCP.
const PERMITTED: [(Service, Service); 5] = [
    (Iam, Postgres),     // rule 1
    (Iam, Redis),        // rule 1
    (Gateway, Iam),      // rule 2
    (Gateway, Postgres), // rule 2
    (Chat, Gateway),     // rule 3
];

impl Service {
    pub const ALL: [Self; 5] = [Iam, Gateway, Chat, Postgres, Redis];

    pub fn name(self) -> &'static str {
        match self {
            Iam => "iam",
            Gateway => "gateway",
            Chat => "chat",
            Postgres => "postgres",
            Redis => "redis",
        }
    }

    pub fn port(self) -> u16 {
        match self {
            Iam => 8000,
            Gateway => 4000,
            Chat => 3000,
            Postgres => 5432,
            Redis => 6379,
        }
    }

    /// The last number of its addresses.
    pub fn host(self) -> u8 {
        match self {
            Iam => 11,
            Gateway => 12,
            Chat => 13,
            Postgres => 14,
            Redis => 15,
        }
    }

    pub fn spiffe(self) -> String {
        format!("spiffe://hanzo.ai/hanzo-k8s/hanzo/{}", self.name())
    }

    pub fn of_spiffe(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.spiffe() == id)
    }

    /// Where it listens.
    pub fn address(self, network: &Network, transport: Transport) -> SocketAddr {
        if transport.is_ipv4() {
            (network.ipv4(self.host()), self.port()).into()
        } else {
            (network.ipv6(self.host()), self.port()).into()
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

impl Transport {
    pub const ALL: [Self; 4] = [Self::Tcp4, Self::Tcp6, Self::Udp4, Self::Udp6];

    pub fn new(protocol: Protocol, ipv4: bool) -> Self {
        match (protocol, ipv4) {
            (Protocol::Tcp, true) => Self::Tcp4,
            (Protocol::Tcp, false) => Self::Tcp6,
            (Protocol::Udp, true) => Self::Udp4,
            (Protocol::Udp, false) => Self::Udp6,
        }
    }

    pub fn protocol(self) -> Protocol {
        match self {
            Self::Tcp4 | Self::Tcp6 => Protocol::Tcp,
            Self::Udp4 | Self::Udp6 => Protocol::Udp,
        }
    }

    pub fn is_ipv4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.is_ipv4() { 4 } else { 6 };
        write!(f, "{} over IPv{version}", self.protocol().name())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        (Self::ALL.into_iter()).find(|protocol| protocol.name().eq_ignore_ascii_case(name))
    }
}

/// One question: may `from` reach `to`?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub from: Service,
    pub to: Service,
    pub transport: Transport,
}

impl Cell {
    pub const COUNT: usize = 80;

    pub fn all() -> impl Iterator<Item = Self> {
        Service::ALL.into_iter().flat_map(Self::from)
    }

    fn from(from: Service) -> impl Iterator<Item = Self> {
        Transport::ALL.into_iter().flat_map(move |transport| {
            let others = Service::ALL.into_iter().filter(move |to| *to != from);
            others.map(move |to| Self {
                from,
                to,
                transport,
            })
        })
    }

    /// Whether the policy document permits it.
    pub fn permitted(self) -> bool {
        self.transport.protocol() == Protocol::Tcp && is_permitted(self.from, self.to)
    }
}

/// Whether the policy document lets one reach the other over TCP.
pub fn is_permitted(from: Service, to: Service) -> bool {
    PERMITTED.contains(&(from, to))
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            to,
            transport,
        } = self;
        write!(f, "{from} → {to}:{} {transport}", to.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_asks_every_other_in_four_ways() {
        let cells: std::collections::BTreeSet<Cell> = Cell::all().collect();
        assert_eq!(cells.len(), Cell::COUNT);
        assert!(cells.iter().all(|cell| cell.from != cell.to));
    }

    #[test]
    fn ten_cells_are_permitted_and_none_of_them_is_udp() {
        let permitted: Vec<Cell> = Cell::all().filter(|cell| cell.permitted()).collect();
        assert_eq!(permitted.len(), 10);
        let tcp = |cell: &Cell| cell.transport.protocol() == Protocol::Tcp;
        assert!(permitted.iter().all(tcp));
    }
}
