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
            cluster: model.cluster_ranges.iter().copied().map(canonical).collect(),
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
    pub fn rows(
        &self,
        selection: &Selection<'_>,
    ) -> Result<BTreeMap<CidrKey, Peer>, CompileError> {
        let mut prefixes: BTreeSet<IpNet> = self.classes.union(&self.cluster).copied().collect();
        // Both families share one trie, and IPv4 is not part of `::/0`.
        if prefixes.iter().any(swallows_v4) {
            prefixes.insert(all_v4());
        }
        prefixes
            .iter()
            .map(|net| Ok((cidr_key(net), self.peer(*net, selection)?)))
            .collect()
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
        if self.world_denied { identity::WORLD } else { 0 }
    }

    fn in_cluster(&self, net: IpNet) -> bool {
        covering(&self.cluster, net).next().is_some()
    }
}

fn in_link_local(net: IpNet) -> bool {
    link_local().iter().any(|range| range.contains(&net))
}

/// Every selector of every rule.
fn selectors(model: &NodeModel) -> impl Iterator<Item = (&Rule, &Selector)> {
    let rules = model.policies.iter().flat_map(|policy| &policy.rules);
    rules.flat_map(|rule| {
        let targets = rule.to.iter().flat_map(|target| &target.selectors);
        rule.from.iter().chain(targets).map(move |s| (rule, s))
    })
}
