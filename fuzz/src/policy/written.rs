//! Policies as a document again: every field written out, in JSON, which is
//! YAML too.

use std::ops::RangeInclusive;

use serde_json::{Value, json};
use zt_agent::{
    audit::record::Time,
    document::API_VERSION,
    model::{Policy, PolicyMode, Ports, Rule, RuleAction, Selector, Target},
};
use zt_common::{codes::Protocol, identity::RESERVED};

pub fn document(policies: &[Policy]) -> String {
    let mut documents = Documents::default();
    for policy in policies {
        let rules: Vec<Value> = (policy.rules.iter())
            .map(|rule| documents.rule(rule))
            .collect();
        let mode = match policy.mode {
            PolicyMode::Enforce => "enforce",
            PolicyMode::Audit => "audit",
        };
        let spec = json!({"mode": mode, "defaultAction": "DENY", "rules": rules});
        documents.add("ServiceAccessPolicy", &policy.name, &spec);
    }
    documents.text
}

#[derive(Default)]
struct Documents {
    text: String,
    groups: usize,
}

impl Documents {
    fn add(&mut self, kind: &str, name: &str, spec: &Value) {
        let document = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec,
        });
        self.text += &format!("---\n{document}\n");
    }

    fn rule(&mut self, rule: &Rule) -> Value {
        let action = match rule.action {
            RuleAction::Allow => "allow",
            RuleAction::Deny => "deny",
        };
        let from: Vec<Value> = rule.from.iter().map(selector).collect();
        let to: Vec<Value> = rule.to.iter().map(|target| self.target(target)).collect();
        let mut value = json!({"action": action, "from": from, "to": to});
        if let Some(expires) = rule.expires {
            value["expires"] = json!(Time(expires).to_string());
        }
        value
    }

    fn target(&mut self, target: &Target) -> Value {
        let mut value = match &*target.selectors {
            [one] => selector(one),
            several => json!({"group": self.group(several)}),
        };
        let protocols: Vec<&str> = (target.protocols.iter())
            .map(|protocol: &Protocol| protocol.name())
            .collect();
        value["protocol"] = json!(protocols);
        value["ports"] = ports(&target.ports);
        value
    }

    /// Only a group stands for several selectors, or for none.
    fn group(&mut self, selectors: &[Selector]) -> String {
        let members: Vec<&str> = (selectors.iter())
            .map(|selector| match selector {
                Selector::Spiffe(pattern) => pattern.as_str(),
                other => panic!("{other:?} in a group"),
            })
            .collect();
        self.groups += 1;
        let name = format!("group-{}", self.groups);
        self.add("IdentityGroup", &name, &json!({"members": members}));
        name
    }
}

fn ports(ports: &Ports) -> Value {
    match ports {
        Ports::Any => json!("any"),
        Ports::Ranges(ranges) => ranges.iter().map(range).collect(),
    }
}

fn range(range: &RangeInclusive<u16>) -> Value {
    json!(format!("{}-{}", range.start(), range.end()))
}

fn selector(selector: &Selector) -> Value {
    match selector {
        Selector::Spiffe(pattern) => json!({"spiffe": pattern.as_str()}),
        Selector::Cidr(network) => json!({"cidr": network.to_string()}),
        Selector::Reserved(number) => {
            let known = RESERVED.iter().find(|(known, _)| known == number);
            json!({"reserved": known.map(|(_, name)| name)})
        }
    }
}
