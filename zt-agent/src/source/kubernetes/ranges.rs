//! Which node may give which addresses to its pods. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::objects::NodeFacts;

/// The pod ranges of all nodes.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    by_node: BTreeMap<Arc<str>, Vec<IpNet>>,
    all: BTreeSet<IpNet>,
    /// Those that another node's cover or lie in. A node that calls somebody
    /// else's range its own gets nothing by it; neither does the other.
    disputed: BTreeSet<IpNet>,
}

/// Why an address is not a pod's of that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its node is not known")]
    NoNode,
    #[error("its node has no pod ranges (spec.podCIDRs)")]
    NoRange,
    #[error("it lies outside its node's pod ranges")]
    Outside,
    #[error("another node claims that range, too")]
    Disputed,
}

impl Ranges {
    #[must_use]
    pub fn of<'a>(nodes: impl IntoIterator<Item = &'a NodeFacts>) -> Self {
        let by_node: BTreeMap<Arc<str>, Vec<IpNet>> = (nodes.into_iter())
            .map(|node| {
                (
                    node.name.clone(),
                    node.ranges.iter().map(IpNet::trunc).collect(),
                )
            })
            .collect();
        Self {
            all: by_node.values().flatten().copied().collect(),
            disputed: disputed(&by_node),
            by_node,
        }
    }

    /// All of them, sorted.
    pub fn all(&self) -> impl Iterator<Item = IpNet> {
        self.all.iter().copied()
    }

    /// Whether it is an address for pods, of whichever node.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let mut prefixes = std::iter::successors(Some(IpNet::from(ip)), IpNet::supernet);
        prefixes.any(|prefix| self.all.contains(&prefix))
    }

    #[must_use]
    pub const fn disputed(&self) -> &BTreeSet<IpNet> {
        &self.disputed
    }

    /// Those of a node in which nobody else claims anything.
    #[must_use]
    pub fn alone(&self, node: &str) -> Vec<IpNet> {
        let own = self.by_node.get(node).into_iter().flatten();
        let alone = own.filter(|range| !self.disputed.contains(range));
        alone.copied().collect()
    }

    /// Whether a pod of that node may be there.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, node: &str, ip: IpAddr) -> Result<(), Refusal> {
        let own = self.by_node.get(node).ok_or(Refusal::NoNode)?;
        if own.is_empty() {
            return Err(Refusal::NoRange);
        }
        let range = own.iter().find(|range| range.contains(&ip));
        let range = range.ok_or(Refusal::Outside)?;
        if self.is_disputed(*range, ip) {
            return Err(Refusal::Disputed);
        }
        Ok(())
    }

    /// In a part of `range` that another node claims.
    fn is_disputed(&self, range: IpNet, ip: IpAddr) -> bool {
        let others = || {
            let ranges = self.by_node.values().flatten();
            ranges.filter(|other| other.contains(&ip)).count()
        };
        // Disputes are rare: only then are all of them looked at.
        self.disputed.contains(&range) && others() > 1
    }
}

/// Prefixes either lie in one another or have nothing in common.
fn disputed(by_node: &BTreeMap<Arc<str>, Vec<IpNet>>) -> BTreeSet<IpNet> {
    let mut all: Vec<(IpNet, &str)> = (by_node.iter())
        .flat_map(|(node, ranges)| ranges.iter().map(|range| (*range, &**node)))
        .collect();
    // A prefix comes before those that lie in it.
    all.sort_unstable();
    let mut disputed = BTreeSet::new();
    let mut around: Vec<(IpNet, &str)> = Vec::new();
    for (range, node) in all {
        while around
            .pop_if(|(wider, _)| !wider.contains(&range))
            .is_some()
        {}
        for (wider, owner) in &around {
            if *owner != node {
                disputed.extend([*wider, range]);
            }
        }
        around.push((range, node));
    }
    disputed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ranges: &[&str]) -> NodeFacts {
        NodeFacts {
            name: name.into(),
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            addresses: Box::default(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_a_nodes_only_in_its_own_ranges() {
        let ranges = Ranges::of(&[
            node("a", &["10.1.0.0/24", "fd00:1::/64"]),
            node("b", &["10.1.1.0/24"]),
            node("c", &[]),
        ]);
        assert_eq!(ranges.check("a", ip("10.1.0.7")), Ok(()));
        assert_eq!(ranges.check("a", ip("fd00:1::7")), Ok(()));
        assert_eq!(ranges.check("a", ip("10.1.1.7")), Err(Refusal::Outside));
        assert_eq!(ranges.check("b", ip("10.1.0.7")), Err(Refusal::Outside));
        assert_eq!(ranges.check("c", ip("10.1.0.7")), Err(Refusal::NoRange));
        assert_eq!(ranges.check("d", ip("10.1.0.7")), Err(Refusal::NoNode));
        assert!(ranges.disputed().is_empty());
        assert_eq!(ranges.all().count(), 3);
        assert!(ranges.contains(ip("10.1.1.0")) && ranges.contains(ip("fd00:1::1")));
        assert!(!ranges.contains(ip("10.1.2.0")) && !ranges.contains(ip("fd00:2::1")));
    }

    #[test]
    fn what_two_nodes_claim_is_neithers_and_the_rest_stays_its_owners() {
        let ranges = Ranges::of(&[
            node("all", &["10.1.0.0/16"]),
            node("a", &["10.1.0.0/24"]),
            node("b", &["10.2.0.0/24"]),
            node("twin", &["10.2.0.0/24"]),
            node("c", &["10.3.0.0/24"]),
        ]);
        for (node, address) in [
            ("all", "10.1.0.7"),
            ("a", "10.1.0.7"),
            ("b", "10.2.0.7"),
            ("twin", "10.2.0.7"),
        ] {
            assert_eq!(
                ranges.check(node, ip(address)),
                Err(Refusal::Disputed),
                "{node}"
            );
        }
        assert_eq!(ranges.check("all", ip("10.1.9.7")), Ok(()));
        assert_eq!(ranges.alone("all"), []);
        assert_eq!(ranges.alone("c"), ["10.3.0.0/24".parse().unwrap()]);
        assert_eq!(ranges.check("c", ip("10.3.0.7")), Ok(()));
        assert_eq!(ranges.disputed().len(), 3);
    }
}
