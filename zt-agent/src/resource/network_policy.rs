//! Policies as the `NetworkPolicy` objects that mirror them: a second line of
//! defence, kept by the cluster's network plugin. Pure.
//!
//! Such an object knows labels and not identities, so a pod is found by one
//! label that names its service account. It cannot say everything; what it
//! cannot say is told and left out, and never becomes "everybody".

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use zt_common::{codes::Protocol, identity};

use crate::model::{
    Place, Policy, PolicyMode, Ports, Rule, RuleAction, RuleRef, Selector, Target, Template,
};

/// The label that the API server gives every namespace.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mirror {
    /// In the order of namespace and name.
    pub objects: Vec<Value>,
    /// What they do not say, one sentence each, sorted.
    pub left_out: BTreeSet<String>,
}

/// The pods that an object is about: `None` all of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    namespace: String,
    account: Option<String>,
}

/// What may come to the subject, and go from it.
#[derive(Debug, Default)]
struct Traffic {
    ingress: Vec<Value>,
    egress: Vec<Value>,
}

/// The objects for `policies`; `label` is that of pods with the name of their
/// service account.
#[must_use]
pub fn mirror(policies: &[Policy], template: &Template, label: &str) -> Mirror {
    let mut writer = Writer {
        template,
        label,
        subjects: BTreeMap::new(),
        left_out: BTreeSet::new(),
    };
    for policy in policies {
        if policy.mode == PolicyMode::Audit {
            writer.leave_out(format!(
                "{}: it is in audit mode, and a NetworkPolicy would enforce it",
                policy.name
            ));
            continue;
        }
        for rule in policy.rules.iter() {
            writer.rule(rule, &policy.rule_ref(rule));
        }
    }
    Mirror {
        objects: writer.objects(),
        left_out: writer.left_out,
    }
}

struct Writer<'a> {
    template: &'a Template,
    label: &'a str,
    subjects: BTreeMap<Subject, Traffic>,
    left_out: BTreeSet<String>,
}

impl Writer<'_> {
    fn leave_out(&mut self, what: String) {
        self.left_out.insert(what);
    }

    fn rule(&mut self, rule: &Rule, name: &RuleRef) {
        if rule.action == RuleAction::Deny {
            return self.leave_out(format!("{name}: a NetworkPolicy cannot deny"));
        }
        if rule.expires.is_some() {
            self.leave_out(format!(
                "{name}: a NetworkPolicy does not lapse; this one is in it until you render again"
            ));
        }
        for target in &rule.to {
            self.target(&rule.from, target, name);
        }
    }

    fn target(&mut self, from: &[Selector], target: &Target, name: &RuleRef) {
        let Some(ports) = self.ports(target, name) else {
            return;
        };
        let sources = self.peers(from, name);
        let targets = self.peers(&target.selectors, name);
        for subject in self.subjects_of(&target.selectors, name) {
            // No peers would mean everybody.
            if !sources.is_empty() {
                let entry = json!({"from": sources, "ports": ports});
                self.at(subject).ingress.push(entry);
            }
        }
        for subject in self.subjects_of(from, name) {
            if !targets.is_empty() {
                let entry = json!({"to": targets, "ports": ports});
                self.at(subject).egress.push(entry);
            }
        }
    }

    fn at(&mut self, subject: Subject) -> &mut Traffic {
        self.subjects.entry(subject).or_default()
    }

    /// The pods that an object has to be written for.
    fn subjects_of(&mut self, selectors: &[Selector], name: &RuleRef) -> Vec<Subject> {
        let mut subjects = Vec::new();
        for selector in selectors {
            let Selector::Spiffe(pattern) = selector else {
                continue;
            };
            match self.template.place(pattern) {
                Some(Place {
                    namespace: Some(namespace),
                    account,
                }) => subjects.push(Subject { namespace, account }),
                Some(_) => self.leave_out(format!(
                    "{name}: {} has no namespace of its own; a NetworkPolicy has",
                    pattern.as_str()
                )),
                // Told where it is a peer.
                None => {}
            }
        }
        subjects
    }

    fn peers(&mut self, selectors: &[Selector], name: &RuleRef) -> Vec<Value> {
        let mut peers = Vec::new();
        for selector in selectors {
            match selector {
                Selector::Spiffe(pattern) => match self.template.place(pattern) {
                    Some(place) => peers.push(self.pods(&place)),
                    None => self.leave_out(format!(
                        "{name}: {} is not of this cluster",
                        pattern.as_str()
                    )),
                },
                Selector::Cidr(net) => peers.push(json!({"ipBlock": {"cidr": net}})),
                Selector::Reserved(identity::WORLD) => {
                    self.leave_out(format!(
                        "{name}: `world` becomes every address, also the cluster's own"
                    ));
                    peers.extend(
                        ["0.0.0.0/0", "::/0"].map(|cidr| json!({"ipBlock": {"cidr": cidr}})),
                    );
                }
                Selector::Reserved(number) => {
                    let known = identity::RESERVED.iter().find(|(one, _)| one == number);
                    let reserved = known.map_or("a reserved identity", |(_, name)| name);
                    self.leave_out(format!("{name}: a NetworkPolicy cannot name `{reserved}`"));
                }
            }
        }
        peers
    }

    fn pods(&self, place: &Place) -> Value {
        let namespaces = match &place.namespace {
            Some(name) => json!({"matchLabels": {NAMESPACE_LABEL: name}}),
            None => json!({}),
        };
        let mut peer = json!({"namespaceSelector": namespaces});
        if let Some(account) = &place.account {
            peer["podSelector"] = self.labelled(account);
        }
        peer
    }

    fn labelled(&self, account: &str) -> Value {
        json!({"matchLabels": {self.label: account}})
    }

    /// `None`: nothing that a NetworkPolicy could name.
    fn ports(&mut self, target: &Target, name: &RuleRef) -> Option<Vec<Value>> {
        let mut ports = Vec::new();
        for protocol in &target.protocols {
            if *protocol == Protocol::Icmp {
                self.leave_out(format!("{name}: a NetworkPolicy cannot name ICMP"));
                continue;
            }
            let protocol = protocol.name();
            match &target.ports {
                Ports::Any => ports.push(json!({"protocol": protocol})),
                Ports::Ranges(ranges) => ports.extend(ranges.iter().map(|range| {
                    let mut port = json!({"protocol": protocol, "port": range.start()});
                    if range.start() != range.end() {
                        port["endPort"] = json!(range.end());
                    }
                    port
                })),
            }
        }
        // An empty list would mean every port.
        (!ports.is_empty()).then_some(ports)
    }

    fn objects(&self) -> Vec<Value> {
        let object = |(subject, traffic): (&Subject, &Traffic)| {
            let selector = match &subject.account {
                Some(account) => self.labelled(account),
                None => json!({}),
            };
            let account = subject.account.as_deref();
            let name = account.map_or_else(|| "zt".to_owned(), |name| format!("zt-{name}"));
            json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": name, "namespace": subject.namespace},
                "spec": {
                    "podSelector": selector,
                    "policyTypes": ["Ingress", "Egress"],
                    "ingress": traffic.ingress,
                    "egress": traffic.egress,
                },
            })
        };
        self.subjects.iter().map(object).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        document::{SourceFile, policy},
        model::template,
    };

    fn mirrored(rules: &str) -> Mirror {
        let head = "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {name: p}\n";
        mirrored_document(&format!("{head}spec:\n  rules: {rules}\n"))
    }

    fn mirrored_document(text: &str) -> Mirror {
        let policies = policy::parse(&[SourceFile::new("p.yaml", text)]).unwrap();
        let template = Template::parse(template::DEFAULT, "hanzo.ai", "hanzo-k8s").unwrap();
        mirror(&policies, &template, "app")
    }

    fn id(rest: &str) -> String {
        format!("{{spiffe: \"spiffe://hanzo.ai/hanzo-k8s/{rest}\"}}")
    }

    fn to(rest: &str, ports: &str) -> String {
        format!("{{spiffe: \"spiffe://hanzo.ai/hanzo-k8s/{rest}\", ports: {ports}}}")
    }

    #[test]
    fn the_seeds_policy_gives_both_sides_of_every_pair() {
        let mirror = mirrored_document(include_str!("../../testdata/hanzo-core-policy.yaml"));
        assert!(mirror.left_out.is_empty(), "{:?}", mirror.left_out);
        let names: Vec<&Value> = mirror
            .objects
            .iter()
            .map(|o| &o["metadata"]["name"])
            .collect();
        assert_eq!(
            names,
            ["zt-chat", "zt-gateway", "zt-iam", "zt-postgres", "zt-redis"]
        );
        let postgres = &mirror.objects[3]["spec"];
        assert_eq!(postgres["podSelector"]["matchLabels"]["app"], "postgres");
        assert_eq!(postgres["egress"], json!([]));
        let from: Vec<&Value> = postgres["ingress"].as_array().unwrap().iter().collect();
        let apps: Vec<&Value> = from
            .iter()
            .map(|entry| &entry["from"][0]["podSelector"]["matchLabels"]["app"])
            .collect();
        assert_eq!(apps, ["iam", "gateway"]);
        assert_eq!(from[0]["ports"], json!([{"protocol": "TCP", "port": 5432}]));
        // Chat has no way to postgres, and nobody has one to chat.
        let chat = &mirror.objects[0]["spec"];
        assert_eq!(chat["ingress"], json!([]));
        assert_eq!(chat["egress"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn nobody_never_becomes_everybody() {
        for rules in [
            format!("[{{from: [], to: [{}]}}]", to("a/b", "any")),
            format!("[{{from: {}, to: []}}]", id("a/b")),
            format!("[{{from: {{reserved: host}}, to: [{}]}}]", to("a/b", "any")),
            format!(
                "[{{from: {{spiffe: \"spiffe://else/x/y\"}}, to: [{}]}}]",
                to("a/b", "any")
            ),
        ] {
            for object in mirrored(&rules).objects {
                assert_eq!(object["spec"]["ingress"], json!([]), "{rules}");
                assert_eq!(object["spec"]["egress"], json!([]), "{rules}");
            }
        }
        let icmp = "{spiffe: \"spiffe://hanzo.ai/hanzo-k8s/a/b\", protocol: ICMP}";
        let mirror = mirrored(&format!("[{{from: {}, to: [{icmp}]}}]", id("a/c")));
        assert!(mirror.objects.is_empty(), "no ports would mean every port");
        assert_eq!(mirror.left_out.len(), 1);
    }

    #[test]
    fn what_cannot_be_said_is_told() {
        let rules = format!(
            "[{{action: deny, from: {a}, to: [{b}]}}, {{from: {any}, to: [{b}]}}, {{from: {a}, to: [{{reserved: world, ports: [443]}}]}}, {{from: {a}, to: [{b}], expires: 2030-01-01T00:00:00Z}}]",
            a = id("a/a"),
            b = to("a/b", "[1, \"5-9\"]"),
            any = id("*/c"),
        );
        let mirror = mirrored(&rules);
        let told: Vec<&str> = mirror.left_out.iter().map(|text| &text[..8]).collect();
        assert_eq!(told, ["p/rule-1", "p/rule-2", "p/rule-3", "p/rule-4"]);
        let ports = &mirror.objects[1]["spec"]["ingress"][0]["ports"];
        assert_eq!(
            *ports,
            json!([{"protocol": "TCP", "port": 1}, {"protocol": "TCP", "port": 5, "endPort": 9}])
        );
    }

    #[test]
    fn a_policy_in_audit_mode_is_not_enforced_by_the_back_door() {
        let mirror = mirrored_document(&format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: p}}\nspec: {{mode: audit, rules: [{{from: {}, to: [{}]}}]}}\n",
            id("a/a"),
            to("a/b", "any")
        ));
        assert!(mirror.objects.is_empty() && mirror.left_out.len() == 1);
    }
}
