//! Stable codes: reasons, verdicts, hooks, directions.
//!
//! A code is written into maps, records and metrics that outlive a release.
//! It is never reused for another meaning; a retired one leaves a gap.

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal, $text:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $code,)+ }

        impl $name {
            /// Every code, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code as it stands in maps and events; `None` if unknown.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }

            /// The word used in records, metrics and on the terminal.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

codes! {
    /// What became of the packet or the call.
    Verdict {
        /// It passed.
        Allow = 1, "ALLOW";
        /// It was stopped.
        Deny = 2, "DENY";
        /// It passed only because this end is in audit mode.
        WouldDeny = 3, "WOULD_DENY";
    }
}

codes! {
    /// Why. Below 32: allowed. From 32: denied.
    Reason {
        /// A rule allows it.
        AllowedByRule = 1, "allowed-by-rule";
        /// A rule with a deadline allows it, and the deadline is ahead.
        LiveGrant = 2, "live-grant";
        /// A TCP segment without a flow entry whose other direction is allowed.
        AllowedReverse = 3, "allowed-reverse";
        /// The node's own processes may reach its workloads (probes), and are
        /// not governed themselves.
        HostAllowed = 4, "host-allowed";
        /// No rule speaks of it: default deny.
        NoPolicy = 32, "no-policy";
        /// A deny rule matches.
        DeniedByRule = 33, "denied-by-rule";
        /// This end is a cgroup under the managed root that nobody enrolled.
        Unenrolled = 34, "unenrolled";
        /// One of the ends is quarantined.
        Quarantined = 35, "quarantined";
        /// A rule allowed it until its deadline passed.
        GrantExpired = 36, "grant-expired";
        /// The other end's address is in the cluster's ranges and nobody's.
        UnknownPeer = 37, "unknown-peer";
        /// Two workloads claim the other end's address.
        Conflict = 38, "conflict";
        /// The headers cannot be read, or name port 0.
        Unparseable = 39, "unparseable";
        /// A transport protocol that no rule can name.
        UnsupportedProtocol = 40, "unsupported-protocol";
        /// A fragment without its transport header: the first one was not
        /// seen or not allowed, or this one would write over its header.
        Fragment = 41, "fragment";
        /// A raw socket, and the identity has no grant for it.
        RawSocket = 42, "raw-socket";
        /// The port is declared by another workload that shares the address.
        PortOwned = 43, "port-owned";
        /// The programs run but no policy generation was ever made active.
        NotReady = 44, "not-ready";
        /// A source address, IP or MAC, that is not the sender's.
        Spoofed = 45, "spoofed";
        /// A frame that is neither IP nor ARP.
        UnknownEthertype = 46, "unknown-ethertype";
        /// IP options, or a routing header: they can lead elsewhere than the
        /// header says.
        IpOptions = 47, "ip-options";
        /// Packets inside packets, about which no rule can be asked.
        Tunnel = 48, "tunnel";
        /// A workload that plays router: an advertisement or a redirect.
        RouterAdvertisement = 49, "router-advertisement";
        /// An ICMP error that quotes no flow that exists.
        StrayError = 50, "stray-error";
        /// What the rules deny this end finds no room in the maps, and so all
        /// that it does is denied.
        NoRoom = 51, "no-room";
    }
}

impl Reason {
    /// Whether this reason lets traffic pass.
    #[must_use]
    pub const fn is_allow(self) -> bool {
        (self as u8) < Self::NoPolicy as u8
    }
}

codes! {
    /// The hook at which a decision was made.
    Hook {
        Connect4 = 1, "connect4";
        Connect6 = 2, "connect6";
        Sendmsg4 = 3, "sendmsg4";
        Sendmsg6 = 4, "sendmsg6";
        SkbEgress = 5, "cgroup_skb/egress";
        SkbIngress = 6, "cgroup_skb/ingress";
        SockCreate = 7, "sock_create";
        Bind4 = 8, "bind4";
        Bind6 = 9, "bind6";
        /// On the host side of a workload's veth: what it sends.
        TcFrom = 10, "tc/from-workload";
        /// On the host side of a workload's veth: what it is sent.
        TcTo = 11, "tc/to-workload";
    }
}

codes! {
    /// Seen from the governed end.
    Direction {
        /// The governed end opens the flow.
        Egress = 1, "egress";
        /// The other end opens the flow.
        Ingress = 2, "ingress";
    }
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Egress => Self::Ingress,
            Self::Ingress => Self::Egress,
        }
    }
}

codes! {
    /// IP protocol numbers that a rule can name. ICMP stands for ICMPv6 too.
    Protocol {
        Icmp = 1, "ICMP";
        Tcp = 6, "TCP";
        Udp = 17, "UDP";
    }
}

codes! {
    /// What one side of a policy entry says.
    Action {
        /// Nothing: default deny.
        None = 0, "none";
        Allow = 1, "allow";
        Deny = 2, "deny";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_survives_the_round_trip() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(*reason as u8), Some(*reason));
        }
        assert_eq!(Reason::from_code(0), None);
        assert_eq!(Reason::from_code(255), None);
    }

    #[test]
    fn reasons_below_32_allow_and_the_others_deny() {
        assert!(Reason::HostAllowed.is_allow());
        assert!(!Reason::NoPolicy.is_allow());
    }
}
