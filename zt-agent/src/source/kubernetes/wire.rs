//! Objects as the API server sends them, as little of them as is kept: the
//! rest is skipped while it is read.

use std::{borrow::Cow, fmt::Debug, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{ClusterResourceScope, NamespaceResourceScope},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, json};
use zt_common::codes::Protocol;

use super::{
    cluster::Cluster,
    health::Watched,
    objects::{
        Document, DocumentFacts, Namespace, NamespaceFacts, NamespaceMode, Node, NodeFacts, Phase,
        Pod, PodFacts, PortFacts, Service, ServiceFacts, ServiceRange, Slice, SliceFacts, Uid,
        Version,
    },
    table::Change,
    tally::Tally,
};
use crate::resource;

/// A kind of object that is watched.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    const WATCHED: Watched;
    type Kept;

    /// What is kept of it. `None`: it has no UID, which the API server never
    /// sends.
    fn keep(&self, cluster: &mut Cluster) -> Option<Self::Kept>;

    fn tell(cluster: &mut Cluster, change: Change<Self::Kept>) -> bool;

    fn uid(&self) -> Option<Uid> {
        self.meta().uid.as_deref()?.parse().ok()
    }

    fn version(&self) -> Version {
        Version::new(self.meta().resource_version.as_deref().unwrap_or_default())
    }
}

macro_rules! resource {
    ($object:ident, $group:expr, $kind:expr, $plural:expr, $scope:ty) => {
        impl Resource for $object {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(PodObject, "", "Pod", "pods", NamespaceResourceScope);
resource!(NodeObject, "", "Node", "nodes", ClusterResourceScope);
resource!(
    NamespaceObject,
    "",
    "Namespace",
    "namespaces",
    ClusterResourceScope
);

resource!(
    ServiceObject,
    "",
    "Service",
    "services",
    NamespaceResourceScope
);
resource!(
    SliceObject,
    "discovery.k8s.io",
    "EndpointSlice",
    "endpointslices",
    NamespaceResourceScope
);
resource!(
    ServiceRangeObject,
    "networking.k8s.io",
    "ServiceCIDR",
    "servicecidrs",
    ClusterResourceScope
);

resource!(
    PolicyObject,
    resource::GROUP,
    resource::Kind::ServiceAccessPolicy.name(),
    resource::Kind::ServiceAccessPolicy.plural(),
    ClusterResourceScope
);
resource!(
    GroupObject,
    resource::GROUP,
    resource::Kind::IdentityGroup.name(),
    resource::Kind::IdentityGroup.plural(),
    ClusterResourceScope
);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Slim {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
}

fn slim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    Slim::deserialize(deserializer).map(meta)
}

fn meta(slim: Slim) -> ObjectMeta {
    ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        generation: slim.generation,
        ..ObjectMeta::default()
    }
}

/// What cannot be read is nobody's: neither an address nor a range. Each address
/// has one form, in which it is compared.
fn addresses(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Box<[IpAddr]> {
    let read = |text: &str| Some(text.parse::<IpAddr>().ok()?.to_canonical());
    let read = texts.into_iter().map(|text| read(text.as_ref()));
    read.flatten().collect()
}

fn ranges<'a>(texts: impl IntoIterator<Item = &'a String>) -> Box<[IpNet]> {
    let read = texts.into_iter().map(|text| text.parse().ok());
    read.flatten().collect()
}

#[derive(Clone, Debug, Deserialize)]
pub struct PodObject {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    service_account_name: Option<String>,
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    #[serde(default)]
    ip: String,
}

impl Kind for PodObject {
    const WATCHED: Watched = Watched::Pods;
    type Kept = Pod;

    fn keep(&self, cluster: &mut Cluster) -> Option<Pod> {
        let (spec, status) = (&self.spec, &self.status);
        let mut name = |text: &Option<String>| cluster.name(text.as_deref().unwrap_or_default());
        let facts = PodFacts {
            namespace: name(&self.metadata.namespace),
            service_account: name(&spec.service_account_name),
            name: self.metadata.name.clone().unwrap_or_default().into(),
            node: (spec.node_name.as_deref())
                .filter(|node| !node.is_empty())
                .map(|node| cluster.name(node)),
            host_network: spec.host_network == Some(true),
            phase: match status.phase.as_deref() {
                Some("Running") => Phase::Running,
                Some("Succeeded" | "Failed") => Phase::Over,
                _ => Phase::Ahead,
            },
            addresses: addresses(status.pod_ips.iter().flatten().map(|one| &one.ip)),
        };
        Some(Pod {
            uid: self.uid()?,
            version: Kind::version(self),
            facts,
        })
    }

    fn tell(cluster: &mut Cluster, change: Change<Pod>) -> bool {
        cluster.pod(change)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct NodeObject {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeAddress {
    #[serde(default)]
    address: String,
}

impl Kind for NodeObject {
    const WATCHED: Watched = Watched::Nodes;
    type Kept = Node;

    fn keep(&self, cluster: &mut Cluster) -> Option<Node> {
        let own = self.status.addresses.iter().flatten();
        let facts = NodeFacts {
            name: cluster.name(self.metadata.name.as_deref()?),
            ranges: ranges(self.spec.pod_cidrs.iter().flatten()),
            // Host names are among them.
            addresses: addresses(own.map(|one| &one.address)),
        };
        Some(Node {
            uid: self.uid()?,
            version: Kind::version(self),
            facts,
        })
    }

    fn tell(cluster: &mut Cluster, change: Change<Node>) -> bool {
        cluster.node(change)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(from = "NamespaceWire")]
pub struct NamespaceObject {
    metadata: ObjectMeta,
    mode: NamespaceMode,
}

#[derive(Deserialize)]
struct NamespaceWire {
    metadata: NamespaceMeta,
}

#[derive(Deserialize)]
struct NamespaceMeta {
    #[serde(flatten)]
    slim: Slim,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "zt.hanzo.ai/mode", default)]
    mode: Option<String>,
}

impl From<NamespaceWire> for NamespaceObject {
    fn from(wire: NamespaceWire) -> Self {
        let annotation = wire.metadata.annotations.unwrap_or_default().mode;
        Self {
            metadata: meta(wire.metadata.slim),
            mode: NamespaceMode::read(annotation.as_deref()),
        }
    }
}

impl Kind for NamespaceObject {
    const WATCHED: Watched = Watched::Namespaces;
    type Kept = Namespace;

    fn keep(&self, cluster: &mut Cluster) -> Option<Namespace> {
        let facts = NamespaceFacts {
            name: cluster.name(self.metadata.name.as_deref()?),
            mode: self.mode,
        };
        Some(Namespace {
            uid: self.uid()?,
            version: Kind::version(self),
            facts,
        })
    }

    fn tell(cluster: &mut Cluster, change: Change<Namespace>) -> bool {
        cluster.namespace(change)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct ServiceObject {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: ServiceSpec,
    #[serde(default)]
    status: ServiceStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

impl ServiceObject {
    /// Those besides its own at which proxies lead to it.
    fn outside(&self) -> Box<[IpAddr]> {
        let external = self.spec.external_ips.iter().flatten();
        let balancer = self.status.load_balancer.iter();
        let ingress = balancer.flat_map(|balancer| &balancer.ingress).flatten();
        // What is sent to a balancer in the mode `Proxy` goes to the balancer.
        let ingress = ingress.filter(|one| one.ip_mode.as_deref() != Some("Proxy"));
        let ingress = ingress.filter_map(|one| one.ip.as_ref());
        addresses(external.chain(ingress).map(|text| without_zeros(text)))
    }
}

/// Proxies read `203.0.113.09` as decimal, and the API server lets it pass here.
fn without_zeros(text: &str) -> String {
    let (head, quad) = text.split_at(text.rfind(':').map_or(0, |colon| colon + 1));
    let octets = quad
        .split('.')
        .map(|octet| match octet.trim_start_matches('0') {
            "" if !octet.is_empty() => "0",
            short => short,
        });
    format!("{head}{}", octets.collect::<Vec<_>>().join("."))
}

/// Of a Service or a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    /// The API server does not look whether a slice's can be one.
    port: Option<i64>,
}

impl Port {
    fn number(&self) -> Option<u16> {
        let number = self.port.and_then(|port| u16::try_from(port).ok());
        number.filter(|port| *port != 0)
    }

    /// Whether it says a number that is none. Without one, proxies pass it over.
    fn is_wrong(&self) -> bool {
        self.port.is_some_and(|port| port != 0) && self.number().is_none()
    }
}

/// Those that can be decided. What is sent to others is denied: nothing is
/// claimed there, and no rule can name them.
fn ports(ports: Option<&Vec<Port>>, cluster: &mut Cluster) -> Box<[PortFacts]> {
    let read = |port: &Port| {
        let protocol = match port.protocol.as_deref() {
            Some("TCP") | None => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(_) => return None,
        };
        Some(PortFacts {
            name: cluster.name(port.name.as_deref().unwrap_or_default()),
            protocol,
            port: port.number()?,
        })
    };
    ports.into_iter().flatten().filter_map(read).collect()
}

impl Kind for ServiceObject {
    const WATCHED: Watched = Watched::Services;
    type Kept = Service;

    fn keep(&self, cluster: &mut Cluster) -> Option<Service> {
        let facts = ServiceFacts {
            namespace: cluster.name(self.metadata.namespace.as_deref()?),
            name: cluster.name(self.metadata.name.as_deref()?),
            // "None" is among them.
            addresses: addresses(self.spec.cluster_ips.iter().flatten()),
            outside: self.outside(),
            ports: ports(self.spec.ports.as_ref(), cluster),
        };
        Some(Service {
            uid: self.uid()?,
            version: Kind::version(self),
            facts,
        })
    }

    fn tell(cluster: &mut Cluster, change: Change<Service>) -> bool {
        cluster.service(change)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(from = "SliceWire")]
pub struct SliceObject {
    metadata: ObjectMeta,
    service: String,
    ports: Option<Vec<Port>>,
    addresses: Box<[IpAddr]>,
    is_legible: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceWire {
    metadata: SliceMeta,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    ports: Option<Vec<Port>>,
    #[serde(default)]
    endpoints: Option<Vec<BackendWire>>,
}

#[derive(Deserialize)]
struct SliceMeta {
    #[serde(flatten)]
    slim: Slim,
    #[serde(default)]
    labels: Option<SliceLabels>,
}

#[derive(Default, Deserialize)]
struct SliceLabels {
    #[serde(rename = "kubernetes.io/service-name", default)]
    service: Option<String>,
}

#[derive(Deserialize)]
struct BackendWire {
    #[serde(default)]
    addresses: Option<Vec<String>>,
    #[serde(default)]
    conditions: Option<Conditions>,
}

impl BackendWire {
    /// Whether a proxy may lead there: to what is ready, and where nothing is,
    /// to what still serves while it ends. Nothing said means yes to either.
    fn is_used(&self) -> bool {
        let none = Conditions::default();
        let conditions = self.conditions.as_ref().unwrap_or(&none);
        conditions.ready != Some(false) || conditions.serving != Some(false)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
}

impl From<SliceWire> for SliceObject {
    fn from(wire: SliceWire) -> Self {
        let backends = wire.endpoints.into_iter().flatten();
        let used = backends.filter(BackendWire::is_used);
        let mut behind: Vec<String> = used
            .flat_map(|backend| backend.addresses.unwrap_or_default())
            .collect();
        if wire.address_type == "FQDN" {
            // No proxy leads to a name.
            behind.clear();
        }
        let addresses = addresses(&behind);
        let wrong_port = wire.ports.iter().flatten().any(Port::is_wrong);
        Self {
            is_legible: addresses.len() == behind.len() && !wrong_port,
            metadata: meta(wire.metadata.slim),
            service: (wire.metadata.labels)
                .and_then(|labels| labels.service)
                .unwrap_or_default(),
            ports: wire.ports,
            addresses,
        }
    }
}

impl Kind for SliceObject {
    const WATCHED: Watched = Watched::Slices;
    type Kept = Slice;

    fn keep(&self, cluster: &mut Cluster) -> Option<Slice> {
        let facts = SliceFacts {
            namespace: cluster.name(self.metadata.namespace.as_deref()?),
            name: self.metadata.name.as_deref()?.into(),
            service: cluster.name(&self.service),
            ports: ports(self.ports.as_ref(), cluster),
            addresses: self.addresses.clone(),
            is_legible: self.is_legible,
        };
        Some(Slice {
            uid: self.uid()?,
            version: Kind::version(self),
            facts,
        })
    }

    fn tell(cluster: &mut Cluster, change: Change<Slice>) -> bool {
        cluster.slice(change)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct ServiceRangeObject {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: ServiceRangeSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceRangeSpec {
    cidrs: Option<Vec<String>>,
}

impl Kind for ServiceRangeObject {
    const WATCHED: Watched = Watched::ServiceRanges;
    type Kept = ServiceRange;

    fn keep(&self, _: &mut Cluster) -> Option<ServiceRange> {
        Some(ServiceRange {
            uid: self.uid()?,
            version: Kind::version(self),
            facts: ranges(self.spec.cidrs.iter().flatten()),
        })
    }

    fn tell(cluster: &mut Cluster, change: Change<ServiceRange>) -> bool {
        cluster.service_range(change)
    }
}

/// Both are kept as the documents that they stand for.
macro_rules! document {
    ($object:ident, $watched:expr, $resource:expr, $tell:ident) => {
        #[derive(Clone, Debug, Deserialize)]
        pub struct $object {
            #[serde(deserialize_with = "slim")]
            metadata: ObjectMeta,
            #[serde(default)]
            spec: Option<Value>,
            #[serde(default)]
            status: Value,
        }

        impl Kind for $object {
            const WATCHED: Watched = $watched;
            type Kept = Document;

            fn keep(&self, cluster: &mut Cluster) -> Option<Document> {
                let name = self.metadata.name.as_deref()?;
                let mut object = json!({"metadata": {"name": name}});
                if let Some(spec) = &self.spec {
                    object["spec"] = spec.clone();
                }
                Some(Document {
                    uid: self.uid()?,
                    version: Kind::version(self),
                    facts: DocumentFacts {
                        name: cluster.name(name),
                        generation: self.metadata.generation.unwrap_or_default(),
                        document: resource::document($resource, &object),
                    },
                    tally: Tally::read(&self.status, |node| cluster.name(node)),
                })
            }

            fn tell(cluster: &mut Cluster, change: Change<Document>) -> bool {
                cluster.$tell(change)
            }
        }
    };
}

document!(
    PolicyObject,
    Watched::Policies,
    resource::Kind::ServiceAccessPolicy,
    policy
);
document!(
    GroupObject,
    Watched::Groups,
    resource::Kind::IdentityGroup,
    group
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mode, Template, template};

    const UID: &str = "0f0e0d0c-1111-4222-8333-444455556666";

    fn kept<K: Kind>(object: Value) -> K::Kept {
        let template = Template::parse(template::DEFAULT, "td", "c").unwrap();
        let object: K = serde_json::from_value(object).unwrap();
        object.keep(&mut Cluster::new(template)).unwrap()
    }

    #[test]
    fn a_pod_is_what_decides_and_not_what_its_owner_writes() {
        let pod = kept::<PodObject>(json!({
            "metadata": {
                "name": "web-0", "namespace": "hanzo", "uid": UID, "resourceVersion": "77",
                "labels": {"app": "iam"}, "annotations": {"zt.hanzo.ai/mode": "audit"},
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:x": {}}}],
            },
            "spec": {"serviceAccountName": "web", "nodeName": "n", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.1.0.5",
                       "podIPs": [{"ip": "::ffff:10.1.0.5"}, {"ip": "fd00::5"}, {"ip": "x"}]},
        }));
        assert_eq!(pod.uid, UID.parse().unwrap());
        assert_eq!(pod.version, Version::new("77"));
        let expected = PodFacts {
            namespace: "hanzo".into(),
            name: "web-0".into(),
            service_account: "web".into(),
            node: Some("n".into()),
            host_network: false,
            phase: Phase::Running,
            addresses: ["10.1.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).into(),
        };
        assert_eq!(pod.facts, expected);
    }

    #[test]
    fn a_pod_of_which_little_is_known_yet_is_read() {
        let pod = kept::<PodObject>(json!({"metadata": {"name": "a", "uid": UID}}));
        assert_eq!(pod.facts.node, None);
        assert!(pod.facts.addresses.is_empty() && pod.facts.phase == Phase::Ahead);
        for (text, phase) in [
            ("Succeeded", Phase::Over),
            ("Failed", Phase::Over),
            ("Pending", Phase::Ahead),
            ("Unknown", Phase::Ahead),
        ] {
            let pod = kept::<PodObject>(json!({
                "metadata": {"uid": UID}, "spec": {"hostNetwork": true, "nodeName": ""},
                "status": {"phase": text},
            }));
            assert_eq!((pod.facts.phase, pod.facts.host_network), (phase, true));
            assert_eq!(pod.facts.node, None);
        }
    }

    #[test]
    fn a_node_has_ranges_and_addresses() {
        let node = kept::<NodeObject>(json!({
            "metadata": {"name": "n", "uid": UID},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64", "x"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "::ffff:192.0.2.2"},
                {"type": "Hostname", "address": "n"},
            ]},
        }));
        assert_eq!(node.facts.ranges.len(), 2);
        // In another form it would not be found in another node's range.
        let expected = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(*node.facts.addresses, expected);
    }

    #[test]
    fn of_a_policy_its_name_its_spec_and_its_generation_are_kept() {
        let policy = kept::<PolicyObject>(json!({
            "metadata": {"name": "p", "uid": UID, "generation": 3, "labels": {"x": "y"}},
            "spec": {"rules": []}, "status": {"enforced": "1/1"},
        }));
        assert_eq!(policy.tally.enforced(), Some("1/1"));
        assert_eq!((&*policy.facts.name, policy.facts.generation), ("p", 3));
        assert_eq!(&*policy.facts.document.name, "serviceaccesspolicy/p");
        let text: Value = serde_json::from_str(&policy.facts.document.text).unwrap();
        assert_eq!(text["spec"], json!({"rules": []}));
        assert!(text.get("status").is_none());
    }

    #[test]
    fn a_service_has_addresses_of_its_own_and_others_that_lead_to_it() {
        let service = kept::<ServiceObject>(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": UID},
            "spec": {"clusterIPs": ["10.96.0.7", "None"],
                     "externalIPs": ["203.000.113.09", "::ffff:203.0.113.010", "2001:db8::", "x"]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "VIP"},
                {"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "lb.example.org"},
            ]}},
        }));
        let texts = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&service.facts.addresses), ["10.96.0.7"]);
        assert_eq!(
            texts(&service.facts.outside),
            [
                "203.0.113.9",
                "203.0.113.10",
                "2001:db8::",
                "198.51.100.1",
                "198.51.100.2"
            ]
        );
        for status in [
            json!({}),
            json!({"loadBalancer": {}}),
            json!({"loadBalancer": null}),
        ] {
            let metadata = json!({"name": "web", "namespace": "ns", "uid": UID});
            let service = kept::<ServiceObject>(json!({"metadata": metadata, "status": status}));
            assert!(service.facts.outside.is_empty());
        }
    }

    fn slice(kind: &str, port: &Value, endpoints: &Value) -> SliceFacts {
        let slice = kept::<SliceObject>(json!({
            "metadata": {"name": "s", "namespace": "ns", "uid": UID,
                         "labels": {"kubernetes.io/service-name": "web", "x": "y"}},
            "addressType": kind, "ports": [port], "endpoints": endpoints,
        }));
        assert_eq!(
            (&*slice.facts.namespace, &*slice.facts.service),
            ("ns", "web")
        );
        slice.facts
    }

    /// What kube-proxy does, whatever is (not) said.
    #[test]
    fn a_backend_counts_while_a_proxy_may_lead_to_it() {
        let port = json!({"name": "http", "port": 80});
        let behind = |conditions: Value| {
            let endpoint = json!({"addresses": ["10.1.0.5"], "conditions": conditions});
            slice("IPv4", &port, &json!([endpoint])).addresses.len()
        };
        for used in [
            Value::Null,
            json!({}),
            json!({"ready": true, "serving": false}),
            json!({"serving": false}),
            json!({"ready": false}),
            json!({"ready": false, "terminating": true}),
            json!({"ready": false, "serving": true, "terminating": true}),
        ] {
            assert_eq!(behind(used.clone()), 1, "{used}");
        }
        assert_eq!(behind(json!({"ready": false, "serving": false})), 0);
    }

    #[test]
    fn a_slice_that_cannot_be_read_is_not_taken_for_the_rest_of_it() {
        let (port, backend) = (json!({"port": 80}), json!([{"addresses": ["10.1.0.5"]}]));
        assert!(slice("IPv4", &port, &backend).is_legible);
        for number in [70_000_i64, -1, i64::MAX] {
            let slice = slice("IPv4", &json!({"port": number}), &backend);
            assert!(!slice.is_legible && slice.ports.is_empty());
        }
        // A proxy passes over a port without a number.
        for nothing in [json!({}), json!({"port": 0}), json!({"port": null})] {
            assert!(slice("IPv4", &nothing, &backend).is_legible, "{nothing}");
        }
        let mixed = json!([{"addresses": ["10.1.0.5", "198.051.100.066"]}]);
        let slice_of_mixed = slice("IPv4", &port, &mixed);
        assert!(!slice_of_mixed.is_legible && slice_of_mixed.addresses.len() == 1);
        // No proxy leads to a name.
        let named = json!([{"addresses": ["example.org"]}]);
        assert!(slice("FQDN", &port, &named).is_legible);
    }

    #[test]
    fn a_namespace_may_say_a_mode() {
        let mode = |metadata| {
            kept::<NamespaceObject>(json!({"metadata": metadata}))
                .facts
                .mode
        };
        let said =
            mode(json!({"name": "a", "uid": UID, "annotations": {"zt.hanzo.ai/mode": "audit"}}));
        assert_eq!(said, NamespaceMode::Said(Mode::Audit));
        let unsaid =
            mode(json!({"name": "a", "uid": UID, "annotations": {"x": "audit"}, "labels": {}}));
        assert_eq!(unsaid, NamespaceMode::Unsaid);
    }
}
