//! Which prefixes matter, which are classes, and what `zt_cidr_v1` says.
//!
//! Every prefix that changes anything (named by a policy, a range of the
//! cluster, link-local) is a row of its own. So all addresses with the same
//! longest match are alike, and a row can be judged by its prefix alone.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use zt_common::{
    address::{CidrKey, Peer},
    identity::{self, Number},
};

use super::{
    CompileError,
    network::{all_v4, canonical, cidr_key, covered, covering, link_local, swallows_v4},
    selection::Selection,
};
use crate::model::{NodeModel, Rule, RuleAction, Selector};

/// The map of the land.
#[derive(Debug, Default)]
pub struct Territory {
    cluster: BTreeSet<IpNet>,
    /// The prefixes that have a number of their own.
    classes: BTreeSet<IpNet>,
    /// The prefixes that deny rules name.
    denied: BTreeSet<IpNet>,
    /// Some rule denies `world`.
    world_denied: bool,
}

impl Territory {
    /// Reads the prefixes from the model.
    pub fn survey(model: &NodeModel) -> Self {
        let mut land = Self {
            cluster: model
                .cluster_ranges
                .iter()
                .copied()
                .map(canonical)
                .collect(),
            ..Self::default()
        };
        let mut world_allowed = false;
        for (rule, selector) in selectors(model) {
            let denies = rule.action == RuleAction::Deny;
            match selector {
                Selector::Cidr(net) => land.add(canonical(*net), denies),
                Selector::Reserved(identity::WORLD) if denies => land.world_denied = true,
                Selector::Reserved(identity::WORLD) => world_allowed = true,
                _ => {}
            }
        }
        land.fence_link_local(world_allowed);
        land
    }

    fn add(&mut self, net: IpNet, denies: bool) {
        self.classes.insert(net);
        if denies {
            self.denied.insert(net);
        }
    }

    /// A link-local range needs a class of its own where an allow from
    /// outside (of `world`, or of a wider prefix) would otherwise reach it.
    fn fence_link_local(&mut self, world_allowed: bool) {
        for range in link_local() {
            if world_allowed || covering(&self.classes, range).next().is_some() {
                self.classes.insert(range);
            }
        }
    }

    pub fn classes(&self) -> &BTreeSet<IpNet> {
        &self.classes
    }

    /// The class whose rules apply to `net`: the longest that covers it.
    pub fn class_of(&self, net: IpNet) -> Option<IpNet> {
        covering(&self.classes, net).next()
    }

    /// The class whose CIDR denies apply to an end in `net` that is known by
    /// its identity, if there are such denies.
    pub fn denying_class_of(&self, net: IpNet) -> Option<IpNet> {
        covering(&self.denied, net).next()?;
        self.class_of(net)
    }

    /// The classes that a rule on the prefix `net` reaches.
    ///
    /// 1. A deny reaches everything the prefix covers.
    /// 2. An allow never reaches into the cluster's ranges.
    /// 3. An allow reaches link-local addresses only from inside that range.
    pub fn reached(&self, net: IpNet, action: RuleAction) -> impl Iterator<Item = IpNet> {
        covered(&self.classes, net).filter(move |class| {
            action == RuleAction::Deny
                || !self.in_cluster(*class) && (!in_link_local(*class) || in_link_local(net))
        })
    }

    /// The classes that an allow of `world` reaches. Its denies need no class:
    /// every row outside the cluster points to `world` itself for them.
    pub fn world(&self) -> impl Iterator<Item = IpNet> {
        let outside = |class: &IpNet| !self.in_cluster(*class) && !in_link_local(*class);
        self.classes.iter().copied().filter(outside)
    }

    /// The rows of `zt_cidr_v1`.
    ///
    /// # Errors
    /// When a class has no number.
    pub fn rows(&self, selection: &Selection<'_>) -> Result<BTreeMap<CidrKey, Peer>, CompileError> {
        self.prefixes()
            .iter()
            .map(|net| Ok((cidr_key(net), self.peer(*net, selection)?)))
            .collect()
    }

    /// Those that have a row.
    pub fn prefixes(&self) -> BTreeSet<IpNet> {
        let mut prefixes: BTreeSet<IpNet> = self.classes.union(&self.cluster).copied().collect();
        // Both families share one trie, and IPv4 is not part of `::/0`.
        if prefixes.iter().any(swallows_v4) {
            prefixes.insert(all_v4());
        }
        prefixes
    }

    fn peer(&self, net: IpNet, selection: &Selection<'_>) -> Result<Peer, CompileError> {
        let (identity, class) = if self.in_cluster(net) {
            (identity::UNKNOWN_PEER, selection.denying_class(net)?)
        } else if let Some(class) = self.class_of(net) {
            (selection.class(class)?, self.world_denies())
        } else {
            (identity::WORLD, 0)
        };
        Ok(Peer {
            identity,
            class,
            ..Peer::default()
        })
    }

    /// Where an outside class finds the denies of `world`. They are not copied
    /// into the class, because a class also stands for the addresses of
    /// workloads, which a deny of `world` does not mean.
    fn world_denies(&self) -> Number {
        if self.world_denied {
            identity::WORLD
        } else {
            0
        }
    }

    /// Whether a range of the cluster holds all of `net`.
    pub fn in_cluster(&self, net: IpNet) -> bool {
        covering(&self.cluster, net).next().is_some()
    }
}

fn in_link_local(net: IpNet) -> bool {
    link_local().iter().any(|range| range.contains(&net))
}

/// Every selector of every rule.
fn selectors(model: &NodeModel) -> impl Iterator<Item = (&Rule, &Selector)> {
    let rules = model.policies.iter().flat_map(|policy| policy.rules.iter());
    rules.flat_map(|rule| {
        let targets = rule.to.iter().flat_map(|target| &target.selectors);
        rule.from.iter().chain(targets).map(move |s| (rule, s))
    })
}

#[cfg(test)]
mod tests {
    use zt_common::{
        codes::Reason,
        identity::{UNKNOWN_PEER, WORLD},
    };

    use super::*;
    use crate::{
        compile::samples::*,
        model::{Name, Policy},
    };

    /// A local workload a, one range of the cluster, and a known peer in it.
    fn with(policies: Vec<Policy>) -> NodeModel {
        let mut model = model();
        model.workloads = vec![workload("a", 1)];
        model.endpoints = vec![endpoint("10.1.0.1", "r", 0)];
        model.cluster_ranges = vec!["10.1.0.0/16".parse().unwrap()];
        model.policies = policies;
        model
    }

    fn rules(rules: Vec<Rule>) -> Built {
        built(&with(vec![policy("p", rules)]))
    }

    const OUTSIDE: &str = "8.8.8.8";
    const NOBODYS: &str = "10.1.0.99";
    const METADATA: &str = "169.254.169.254";

    #[test]
    fn without_rules_there_are_only_the_clusters_ranges() {
        let built = rules(vec![]);
        assert_eq!(built.tables().cidr.len(), 1);
        assert_eq!(built.peer(NOBODYS, 80).identity, UNKNOWN_PEER);
        assert_eq!(built.peer(OUTSIDE, 80).identity, WORLD);
        assert_eq!(built.egress("a", NOBODYS, 80), Reason::UnknownPeer);
        assert_eq!(built.egress("a", OUTSIDE, 80), Reason::NoPolicy);
    }

    #[test]
    fn an_allow_of_everything_reaches_the_outside_and_nothing_else() {
        for everything in ["0.0.0.0/0", "@world"] {
            let built = rules(vec![allow(1, "a", everything)]);
            assert_eq!(built.egress("a", OUTSIDE, 80), Reason::AllowedByRule);
            assert_eq!(built.egress("a", NOBODYS, 80), Reason::UnknownPeer);
            assert_eq!(built.egress("a", "10.1.0.1", 80), Reason::NoPolicy);
            assert_eq!(built.egress("a", METADATA, 80), Reason::NoPolicy);
            assert_eq!(built.egress("a", "fe80::1", 80), Reason::NoPolicy);
            assert_eq!(
                built.ingress("a", OUTSIDE, 80),
                Reason::NoPolicy,
                "one way only"
            );
        }
    }

    #[test]
    fn a_deny_of_everything_reaches_everybody() {
        let built = rules(vec![
            deny(1, "a", "0.0.0.0/0"),
            allow(2, "a", "**"),
            allow(3, "a", "@world"),
        ]);
        for address in [OUTSIDE, NOBODYS, "10.1.0.1", METADATA] {
            assert_eq!(
                built.egress("a", address, 80),
                Reason::DeniedByRule,
                "{address}"
            );
        }
        assert_eq!(built.egress("a", "2001:db8::1", 80), Reason::AllowedByRule);
    }

    #[test]
    fn a_deny_of_the_world_does_not_reach_workloads_inside_a_denied_prefix() {
        let web = [(80, 80)];
        let mail = [(25, 25)];
        let built = rules(vec![
            deny(1, "a", "0.0.0.0/0").ports(&mail),
            deny(2, "a", "@world").ports(&web),
            allow(3, "a", "r"),
        ]);
        assert_eq!(built.egress("a", "10.1.0.1", 25), Reason::DeniedByRule);
        assert_eq!(built.egress("a", "10.1.0.1", 80), Reason::AllowedByRule);
        assert_eq!(built.egress("a", NOBODYS, 80), Reason::UnknownPeer);
        for address in [OUTSIDE, METADATA, "2001:db8::1"] {
            assert_eq!(
                built.egress("a", address, 80),
                Reason::DeniedByRule,
                "{address}"
            );
        }
    }

    #[test]
    fn a_narrow_allow_does_not_defeat_a_broad_deny() {
        let built = rules(vec![allow(1, "a", "8.8.8.0/24"), deny(2, "a", "8.0.0.0/8")]);
        assert_eq!(built.egress("a", OUTSIDE, 80), Reason::DeniedByRule);
    }

    #[test]
    fn a_longer_prefix_inherits_a_broad_allow() {
        let built = rules(vec![
            allow(1, "a", "8.0.0.0/8").ports(&[(53, 53)]),
            allow(2, "a", "8.8.8.0/24").ports(&[(80, 80)]),
        ]);
        assert_eq!(built.egress("a", OUTSIDE, 53), Reason::AllowedByRule);
        assert_eq!(built.egress("a", OUTSIDE, 80), Reason::AllowedByRule);
        assert_eq!(built.egress("a", "8.1.1.1", 80), Reason::NoPolicy);
    }

    #[test]
    fn link_local_is_allowed_only_from_inside() {
        let built = rules(vec![
            allow(1, "a", "169.254.169.254/32"),
            allow(2, "a", "169.0.0.0/8"),
            allow(3, "a", "@world"),
        ]);
        assert_eq!(built.egress("a", METADATA, 80), Reason::AllowedByRule);
        assert_eq!(built.egress("a", "169.254.0.1", 80), Reason::NoPolicy);
        assert_eq!(built.egress("a", "169.253.0.1", 80), Reason::AllowedByRule);
        assert_eq!(
            built.peer("169.254.0.1", 80).identity,
            built.class("169.254.0.0/16")
        );
    }

    #[test]
    fn a_prefix_inside_the_cluster_is_unknown_and_counts_only_its_denies() {
        let allowed = rules(vec![allow(1, "a", "10.1.0.0/24")]);
        let peer = allowed.peer(NOBODYS, 80);
        assert_eq!((peer.identity, peer.class), (UNKNOWN_PEER, 0));
        let class = allowed.class("10.1.0.0/24");
        assert_eq!(allowed.entry(allowed.number("a"), class, 80).now.action, 0);
        let world = rules(vec![
            deny(1, "a", "10.1.0.0/24").ports(&[(25, 25)]),
            allow(2, "a", "@world"),
        ]);
        let (a, class) = (world.number("a"), world.class("10.1.0.0/24"));
        let said = [25, 80].map(|port| world.entry(a, class, port).now.action);
        assert_eq!(said, [2, 0]);

        let denied = rules(vec![
            deny(1, "a", "10.0.0.0/8"),
            allow(2, "a", "10.1.0.0/24"),
        ]);
        let peer = denied.peer(NOBODYS, 80);
        assert_eq!(
            (peer.identity, peer.class),
            (UNKNOWN_PEER, denied.class("10.1.0.0/24"))
        );
        let peer = denied.peer("10.1.77.1", 80);
        assert_eq!(
            (peer.identity, peer.class),
            (UNKNOWN_PEER, denied.class("10.0.0.0/8"))
        );
        assert_eq!(denied.egress("a", "10.1.77.1", 80), Reason::DeniedByRule);
    }

    #[test]
    fn everything_of_ipv6_is_not_ipv4() {
        let one = rules(vec![allow(1, "a", "::/0")]);
        assert_eq!(one.egress("a", "2001:db8::1", 80), Reason::AllowedByRule);
        assert_eq!(one.peer(OUTSIDE, 80).identity, WORLD);
        assert_eq!(one.egress("a", OUTSIDE, 80), Reason::NoPolicy);

        let both = rules(vec![allow(1, "a", "::/0"), deny(2, "a", "0.0.0.0/0")]);
        assert_eq!(both.peer(OUTSIDE, 80).identity, both.class("0.0.0.0/0"));
        assert_eq!(both.egress("a", OUTSIDE, 80), Reason::DeniedByRule);
    }

    #[test]
    fn only_the_far_ends_address_counts() {
        let mut model = with(vec![policy(
            "p",
            vec![deny(1, "r", "10.0.0.0/8"), allow(2, "r", "a")],
        )]);
        model.endpoints.push(endpoint("10.1.0.2", "a", 1));
        let built = built(&model);
        // a is the destination: that its own address is in 10/8 is for r's node.
        assert_eq!(built.ingress("a", "10.1.0.1", 80), Reason::AllowedByRule);
    }

    #[test]
    fn what_needs_a_number_is_listed_once_and_sorted() {
        let model = with(vec![policy(
            "p",
            vec![
                allow(1, "a", "10.0.0.9/8"),
                allow(2, "a", "::ffff:10.0.0.0/104"),
                allow(3, "@world", "a"),
            ],
        )]);
        let needs = crate::compile::names(&model);
        let texts: Vec<String> = needs.names.iter().map(Name::to_string).collect();
        assert_eq!(
            texts,
            [
                "spiffe://td/a",
                "spiffe://td/r",
                "cidr:10.0.0.0/8",
                "cidr:169.254.0.0/16",
                "cidr:fe80::/10"
            ]
        );
        assert_eq!(needs.rules.len(), 3);
    }
}
