//! What the cluster looks like, from all that the watches told. Pure.
//!
//! The view depends on the objects alone, never on the order in which they
//! came: nothing is remembered of an address but who claims it now.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use zt_common::identity;

use super::{
    health::Watched,
    objects::{
        Document, MODE_ANNOTATION, Namespace, NamespaceMode, Node, NodeFacts, Object, Phase, Pod,
        PodFacts, Service, ServiceRange, Slice, Uid,
    },
    ranges::{Ranges, Refusal},
    services::{self, Land, Owners, ServicePort},
    table::{Change, Table},
};
use crate::{
    model::{Endpoint, Mode, Party, SpiffeId, Template},
    resource,
    source::resources::{Listing, Told},
};

/// Complaints that are kept, with the number of the others in the last place. One
/// node could make as many as it likes.
const COMPLAINTS: usize = 64;

/// Addresses of a node that are believed: it has one of each family, perhaps some
/// outside, and on some clouds one for each interface.
const NODE_ADDRESSES: usize = 64;

/// All objects that matter.
#[derive(Clone, Debug)]
pub struct Cluster {
    template: Template,
    pods: Table<Pod>,
    nodes: Table<Node>,
    namespaces: Table<Namespace>,
    policies: Table<Document>,
    groups: Table<Document>,
    services: Table<Service>,
    slices: Table<Slice>,
    service_ranges: Table<ServiceRange>,
    /// Nodes whose agents say that they enforce everything there. `None`: nobody
    /// asked yet.
    governing: Option<BTreeSet<Arc<str>>>,
    /// What the API server does not know.
    absent: BTreeSet<Watched>,
    /// Differs whenever the view may.
    revision: u64,
    /// Differs whenever the listing may.
    listing_revision: u64,
    /// Differs whenever the policies' statuses or the nodes may.
    tally_revision: u64,
    names: HashSet<Arc<str>>,
}

/// The cluster as one node needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// In the order of their UIDs.
    pub local: Vec<LocalPod>,
    /// Who is at the addresses of the other nodes, and they themselves.
    pub elsewhere: Vec<Endpoint>,
    /// Who answers at the ports of Services.
    pub services: Vec<ServicePort>,
    /// Addresses of Services that nobody may reach.
    pub denied: BTreeSet<IpAddr>,
    /// Addresses of pods, here and elsewhere.
    pub owned: Arc<BTreeSet<IpAddr>>,
    /// The pod ranges of all nodes and those of Services: an address in them is
    /// never `world`.
    pub ranges: Vec<IpNet>,
    /// The pod ranges that are this node's and that no other claims.
    pub own_ranges: Vec<IpNet>,
    /// Addresses outside the pod ranges that pods are said to have: nobody
    /// believes it, and they are not `world` either.
    pub unowned: BTreeSet<IpAddr>,
    /// What was not believed, or not understood, for people.
    pub complaints: Vec<String>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    pub uid: Uid,
    /// `namespace/name`, for people.
    pub name: String,
    /// Or why it has none.
    pub identity: Result<SpiffeId, String>,
    /// It has no service account: it stands for a static pod, which the API
    /// server refuses one.
    pub is_static: bool,
    /// Of its namespace; `None`: the node's.
    pub mode: Option<Mode>,
    pub host_network: bool,
    pub phase: Phase,
    /// Those that are its own; none on the host's network. `None`: nobody said
    /// any yet.
    pub addresses: Option<Vec<IpAddr>>,
}

impl Cluster {
    #[must_use]
    pub fn new(template: Template) -> Self {
        Self {
            template,
            pods: Table::default(),
            nodes: Table::default(),
            namespaces: Table::default(),
            policies: Table::default(),
            groups: Table::default(),
            services: Table::default(),
            slices: Table::default(),
            service_ranges: Table::default(),
            governing: None,
            absent: BTreeSet::new(),
            revision: 0,
            listing_revision: 0,
            tally_revision: 0,
            names: HashSet::new(),
        }
    }

    /// Whether everybody was listed once, and it is known who is governed: before,
    /// who is missing may exist.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_listed() && self.governing.is_some()
    }

    /// Whether everybody was listed once.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        let has_ranges =
            self.service_ranges.is_complete() || self.absent.contains(&Watched::ServiceRanges);
        self.pods.is_complete()
            && self.nodes.is_complete()
            && self.namespaces.is_complete()
            && self.services.is_complete()
            && self.slices.is_complete()
            && has_ranges
    }

    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether a pod of that UID was there, and was deleted not long ago.
    #[must_use]
    pub fn was_deleted(&self, pod: Uid) -> bool {
        self.pods.was_deleted(pod)
    }

    /// How many pods are known.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// How many nodes are known.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// `true`: the view may differ.
    pub fn pod(&mut self, change: Change<Pod>) -> bool {
        let news = self.pods.apply(change);
        self.count(news)
    }

    /// `true`: the view may differ.
    pub fn node(&mut self, change: Change<Node>) -> bool {
        let news = self.nodes.apply(change);
        self.tally_revision += u64::from(news);
        self.count(news)
    }

    /// `true`: the view may differ.
    pub fn namespace(&mut self, change: Change<Namespace>) -> bool {
        let news = self.namespaces.apply(change);
        self.count(news)
    }

    /// `true`: the view may differ.
    pub fn service(&mut self, change: Change<Service>) -> bool {
        let news = self.services.apply(change);
        self.count(news)
    }

    /// `true`: the view may differ.
    pub fn slice(&mut self, change: Change<Slice>) -> bool {
        let news = self.slices.apply(change);
        self.count(news)
    }

    /// `true`: the view may differ.
    pub fn service_range(&mut self, change: Change<ServiceRange>) -> bool {
        let news = self.service_ranges.apply(change);
        self.count(news)
    }

    /// All nodes whose agents say that they enforce everything there. `true`: the
    /// view may differ.
    pub fn govern(&mut self, nodes: BTreeSet<Arc<str>>) -> bool {
        let news = self.governing.as_ref() != Some(&nodes);
        self.governing = Some(nodes);
        self.count(news)
    }

    fn is_governed(&self, node: &str) -> bool {
        let governing = self.governing.as_ref();
        governing.is_some_and(|nodes| nodes.contains(node))
    }

    /// `true`: the listing may differ.
    pub fn policy(&mut self, change: Change<Document>) -> bool {
        let news = self.policies.apply(change);
        // What is new may be in its status.
        self.tally_revision += 1;
        self.count_listing(news)
    }

    /// `true`: the listing may differ.
    pub fn group(&mut self, change: Change<Document>) -> bool {
        let news = self.groups.apply(change);
        self.count_listing(news)
    }

    fn count_listing(&mut self, news: bool) -> bool {
        self.listing_revision += u64::from(news);
        news
    }

    #[must_use]
    pub const fn listing_revision(&self) -> u64 {
        self.listing_revision
    }

    #[must_use]
    pub const fn tally_revision(&self) -> u64 {
        self.tally_revision
    }

    /// What the policies' statuses say. `None`: not all is known yet.
    #[must_use]
    pub fn tallies(&self) -> Option<Tallies<'_>> {
        let is_complete = self.policies.is_complete() && self.nodes.is_complete();
        is_complete.then(|| Tallies {
            nodes: self.nodes.iter().map(|node| &*node.facts.name).collect(),
            policies: newest(self.policies.iter(), |policy| &policy.facts.name),
        })
    }

    /// The API server does not know this kind, or does. `true`: that is new.
    pub fn define(&mut self, watched: Watched, is_known: bool) -> bool {
        if is_known {
            self.absent.remove(&watched)
        } else {
            self.absent.insert(watched)
        }
    }

    /// Our definitions that the API server said it does not know.
    #[must_use]
    pub fn absent(&self) -> Vec<resource::Kind> {
        let ours = self.absent.iter().copied();
        ours.filter_map(Watched::resource).collect()
    }

    /// All policies and groups. `None`: they were not listed yet, and what is
    /// missing may exist.
    #[must_use]
    pub fn listing(&self) -> Option<Listing> {
        let is_complete = self.policies.is_complete() && self.groups.is_complete();
        is_complete.then(|| Listing {
            policies: told(&self.policies),
            groups: told(&self.groups),
        })
    }

    fn count(&mut self, news: bool) -> bool {
        self.revision += u64::from(news);
        news
    }

    /// One copy of a name that thousands of pods have.
    pub fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        // Names that nobody uses any more are dropped now and then.
        if self.names.len().is_power_of_two() {
            self.names.retain(|name| Arc::strong_count(name) > 1);
        }
        let name: Arc<str> = text.into();
        self.names.insert(name.clone());
        name
    }

    /// What the node of that name needs to know.
    #[must_use]
    pub fn view(&self, node: &str) -> View {
        let nodes = newest(self.nodes.iter(), |node| &node.facts.name);
        let namespaces = newest(self.namespaces.iter(), |namespace| &namespace.facts.name);
        let ranges = Ranges::of(nodes.values().map(|node| &node.facts));
        let mut viewer = Viewer {
            cluster: self,
            node,
            ranges,
            namespaces,
            identities: BTreeMap::new(),
            owners: Owners::default(),
            unshown: 0,
            view: View::default(),
        };
        viewer.look(&nodes);
        viewer.services();
        viewer.view.ranges.extend(viewer.ranges.all());
        viewer.view.own_ranges = viewer.ranges.alone(node);
        viewer.view.ranges.extend(self.service_ranges());
        viewer.count_unshown();
        viewer.view
    }

    fn service_ranges(&self) -> impl Iterator<Item = &IpNet> {
        self.service_ranges.iter().flat_map(|range| &range.facts)
    }
}

/// One of each name: of two there is only one, and the other's deletion was
/// not told yet.
fn newest<'a, T: Object>(
    objects: impl Iterator<Item = &'a T>,
    name: impl Fn(&T) -> &Arc<str>,
) -> BTreeMap<Arc<str>, &'a T> {
    let mut by_name: BTreeMap<Arc<str>, &T> = BTreeMap::new();
    for object in objects {
        let known = by_name.entry(name(object).clone()).or_insert(object);
        if known.version().is_before(object.version()) {
            *known = object;
        }
    }
    by_name
}

/// What the policies' statuses say.
pub struct Tallies<'a> {
    /// The names of those that exist.
    pub nodes: BTreeSet<&'a str>,
    /// By name.
    pub policies: BTreeMap<Arc<str>, &'a Document>,
}

struct Viewer<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    ranges: Ranges,
    namespaces: BTreeMap<Arc<str>, &'a Namespace>,
    /// Made once per service account.
    identities: BTreeMap<(&'a str, &'a str), Result<SpiffeId, String>>,
    /// Of all addresses, this node's and its pods' among them.
    owners: Owners,
    /// Complaints beyond [`COMPLAINTS`].
    unshown: usize,
    view: View,
}

impl<'a> Viewer<'a> {
    fn look(&mut self, nodes: &BTreeMap<Arc<str>, &Node>) {
        for range in self.ranges.disputed().clone() {
            self.complain(|| format!("the pod range {range} overlaps with another node's: nobody is believed to be at an address that two of them claim"));
        }
        let wrong = self.namespaces.values();
        let wrong: Vec<Arc<str>> = wrong
            .filter(|namespace| namespace.facts.mode == NamespaceMode::Wrong)
            .map(|namespace| namespace.facts.name.clone())
            .collect();
        for name in wrong {
            self.complain(|| format!("the annotation {MODE_ANNOTATION} of the namespace {name} is neither enforce nor audit: its pods are in enforce mode"));
        }
        let (here, cluster) = (self.node, self.cluster);
        let own = nodes
            .get(here)
            .map_or(&[][..], |node| &node.facts.addresses);
        self.owners.add(own, &Party::Reserved(identity::HOST));
        let services = cluster.services.iter();
        let services = services.flat_map(|service| &service.facts.addresses);
        let taken: BTreeSet<IpAddr> = services.chain(own).copied().collect();
        for node in nodes.values().filter(|node| &*node.facts.name != here) {
            self.other_node(&node.facts, &taken);
        }
        for pod in cluster.pods.iter() {
            match pod.facts.node.as_deref() {
                Some(node) if node == here => self.local(pod),
                Some(node) => self.remote(node, &pod.facts),
                // Not scheduled: it is nowhere.
                None => {}
            }
        }
    }

    fn complain(&mut self, text: impl FnOnce() -> String) {
        if self.view.complaints.len() < COMPLAINTS {
            self.view.complaints.push(text());
        } else {
            self.unshown += 1;
        }
    }

    fn count_unshown(&mut self) {
        if self.unshown > 0
            && let Some(last) = self.view.complaints.last_mut()
        {
            *last = format!("and {} more are not shown", self.unshown + 1);
        }
    }

    /// `taken` are addresses of Services and this node's own. Whoever has a node may
    /// say in its name that it has any.
    fn other_node(&mut self, facts: &NodeFacts, taken: &BTreeSet<IpAddr>) {
        let name = &facts.name;
        for ip in facts.addresses.iter().take(NODE_ADDRESSES) {
            // A node must not make its own what is a pod's elsewhere.
            let is_pods = self.ranges.contains(*ip) && self.ranges.check(name, *ip).is_err();
            let whose = if is_pods {
                "in another node's pod range"
            } else if taken.contains(ip) {
                "a Service's or this node's"
            } else if self
                .cluster
                .service_ranges()
                .any(|range| range.contains(ip))
            {
                "in a range of Services"
            } else {
                let nodes = Party::Reserved(identity::NODES);
                self.owners.add(&[*ip], &nodes);
                self.view.elsewhere.push(claim(*ip, nodes));
                continue;
            };
            self.complain(|| format!("the node {name} says that it has the address {ip}, which is {whose}: it is not believed"));
        }
        let count = facts.addresses.len();
        if count > NODE_ADDRESSES {
            self.complain(|| format!("the node {name} says that it has {count} addresses: only the first {NODE_ADDRESSES} are believed"));
        }
    }

    /// The addresses of a pod that are its own.
    fn addresses(&mut self, node: &str, facts: &PodFacts) -> Vec<IpAddr> {
        if facts.host_network || facts.phase == Phase::Over {
            return Vec::new();
        }
        let mut own = Vec::new();
        for ip in &facts.addresses {
            match self.ranges.check(node, *ip) {
                Ok(()) => own.push(*ip),
                Err(refusal) => self.refuse(node, facts, *ip, refusal),
            }
        }
        own
    }

    fn refuse(&mut self, node: &str, facts: &PodFacts, ip: IpAddr, refusal: Refusal) {
        if !self.ranges.contains(ip) {
            self.view.unowned.insert(ip);
        }
        self.complain(|| {
            format!(
                "the pod {} of the node {node} says that it is at {ip}: {refusal}",
                full_name(facts)
            )
        });
    }

    /// These addresses are a pod's of that node.
    fn own(&mut self, node: &str, addresses: &[IpAddr], party: &Party) {
        self.owners.add(addresses, party);
        Arc::make_mut(&mut self.view.owned).extend(addresses);
        if self.cluster.is_governed(node) {
            self.owners.govern(addresses);
        }
    }

    fn remote(&mut self, node: &str, facts: &'a PodFacts) {
        let addresses = self.addresses(node, facts);
        if addresses.is_empty() {
            return;
        }
        match self.identity(facts) {
            Ok(id) => {
                let party = Party::Workload(id);
                self.own(node, &addresses, &party);
                let claims = addresses.into_iter().map(|ip| claim(ip, party.clone()));
                self.view.elsewhere.extend(claims);
            }
            // Its addresses lie in the ranges and are `unknown-peer`.
            Err(error) => self.complain(|| format!("the pod {}: {error}", full_name(facts))),
        }
    }

    fn local(&mut self, pod: &'a Pod) {
        let facts = &pod.facts;
        let addresses = self.addresses(self.node, facts);
        let is_over = facts.phase == Phase::Over;
        let is_unsaid = facts.addresses.is_empty() && !facts.host_network && !is_over;
        let mode = (self.namespaces.get(&facts.namespace))
            .and_then(|namespace| namespace.facts.mode.mode());
        let identity = self.identity(facts);
        if let Ok(id) = &identity {
            self.own(self.node, &addresses, &Party::Workload(id.clone()));
        }
        let local = LocalPod {
            uid: pod.uid,
            name: full_name(facts),
            identity,
            is_static: facts.service_account.is_empty(),
            mode,
            host_network: facts.host_network,
            phase: facts.phase,
            addresses: (!is_unsaid).then_some(addresses),
        };
        self.view.local.push(local);
    }

    fn services(&mut self) {
        let cluster = self.cluster;
        let (services, slices) = (cluster.services.iter(), cluster.slices.iter());
        let found = services::resolve(
            services.map(|service| &service.facts),
            slices.map(|slice| &slice.facts),
            &self.owners,
            Land {
                is_for_pods: |ip| self.ranges.contains(ip),
                is_for_services: |ip| cluster.service_ranges().any(|range| range.contains(&ip)),
            },
        );
        self.view.services = found.ports;
        self.view.denied = found.denied;
        for complaint in found.complaints {
            self.complain(|| complaint);
        }
    }

    fn identity(&mut self, facts: &'a PodFacts) -> Result<SpiffeId, String> {
        let (namespace, account) = (&*facts.namespace, &*facts.service_account);
        let template = &self.cluster.template;
        let make = || {
            if account.is_empty() {
                return Err("it has no service account, and so no identity".to_owned());
            }
            let made = template.identity(namespace, account);
            made.map_err(|error| error.to_string())
        };
        let made = self.identities.entry((namespace, account));
        made.or_insert_with(make).clone()
    }
}

/// In the order of their names.
fn told(table: &Table<Document>) -> Vec<Told> {
    let documents = newest(table.iter(), |document| &document.facts.name);
    let told = documents.into_values().map(|document| Told {
        name: document.facts.name.clone(),
        uid: document.uid,
        generation: document.facts.generation,
        document: document.facts.document.clone(),
    });
    told.collect()
}

fn full_name(facts: &PodFacts) -> String {
    format!("{}/{}", facts.namespace, facts.name)
}

const fn claim(ip: IpAddr, party: Party) -> Endpoint {
    Endpoint {
        ip,
        party,
        cgroup: None,
        ports: None,
        target: None,
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
