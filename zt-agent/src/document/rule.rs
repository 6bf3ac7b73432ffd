//! One element of `spec.rules`.

use jiff::Timestamp;
use zt_common::codes::Protocol;

use super::{
    field::{Field, Fields, all},
    ports,
    selector::{self, Groups},
};
use crate::model::{Ports, Rule, RuleAction, Selector, Target};

pub(super) const ACTIONS: [(&str, RuleAction); 2] =
    [("allow", RuleAction::Allow), ("deny", RuleAction::Deny)];

pub(super) const PROTOCOLS: [(&str, Protocol); 3] = [
    ("TCP", Protocol::Tcp),
    ("UDP", Protocol::Udp),
    ("ICMP", Protocol::Icmp),
];

/// Reads a rule; `number` counts from 1 within its policy.
pub fn rule(field: &Field<'_>, number: u32, groups: &Groups) -> Option<Rule> {
    let fields = field.fields(&["action", "expires", "from", "to"])?;
    let action = fields.or("action", RuleAction::Allow, |f| f.word(&ACTIONS));
    let expires = fields.or("expires", None, |f| deadline(&f, action).map(Some));
    let from = fields
        .required("from", "say who opens the connection; `from: []` is nobody")
        .and_then(|f| sources(&f, groups));
    let to = fields
        .required("to", "say to whom; `to: []` is nobody")
        .and_then(|f| targets(&f, groups));
    if from.as_ref().is_some_and(|from| from.iter().any(is_cidr)) {
        refuse_cidr_on_both_ends(&fields);
    }
    Some(Rule {
        number,
        action: action?,
        from: from?,
        to: to?,
        expires: expires?,
        at: field.at(),
    })
}

/// Nanoseconds since the Unix epoch.
fn deadline(field: &Field<'_>, action: Option<RuleAction>) -> Option<u64> {
    if action == Some(RuleAction::Deny) {
        return field.refuse(
            "a deny that lapses would open by itself",
            "remove `expires`, and the rule itself when it is no longer wanted",
        );
    }
    let time: Timestamp = field.parse("write it like 2026-12-01T00:00:00Z")?;
    u64::try_from(time.as_nanosecond())
        .ok()
        .or_else(|| field.refuse("must lie between the years 1970 and 2554", ""))
}

fn sources(field: &Field<'_>, groups: &Groups) -> Option<Vec<Selector>> {
    let source = |element: &Field<'_>| {
        let fields = element.fields(&selector::KINDS)?;
        selector::selectors(&fields, groups)
    };
    let sources = all(field.one_or_more().iter().map(source))?;
    Some(sources.concat())
}

fn targets(field: &Field<'_>, groups: &Groups) -> Option<Vec<Target>> {
    all(field
        .elements()?
        .iter()
        .map(|element| target(element, groups)))
}

fn target(field: &Field<'_>, groups: &Groups) -> Option<Target> {
    const KNOWN: [&str; 6] = ["spiffe", "group", "cidr", "reserved", "ports", "protocol"];
    let fields = field.fields(&KNOWN)?;
    let selectors = selector::selectors(&fields, groups);
    let protocols = fields.or("protocol", vec![Protocol::Tcp], |f| protocols(&f));
    let ports = target_ports(&fields, protocols.as_deref());
    Some(Target {
        selectors: selectors?,
        protocols: protocols?,
        ports: ports?,
        at: field.at(),
    })
}

fn protocols(field: &Field<'_>) -> Option<Vec<Protocol>> {
    let elements = field.one_or_more();
    if elements.is_empty() {
        return field.refuse(
            "an empty list of protocols selects nothing",
            "name TCP, UDP or ICMP, or remove the target",
        );
    }
    let mut protocols = all(elements.iter().map(|element| element.word(&PROTOCOLS)))?;
    protocols.sort_unstable();
    protocols.dedup();
    Some(protocols)
}

/// `protocols` is `None` if they are bad; then only the ports' own form is
/// checked.
fn target_ports(fields: &Fields<'_>, protocols: Option<&[Protocol]>) -> Option<Ports> {
    let only_icmp = protocols == Some(&[Protocol::Icmp]);
    let Some(field) = fields.optional("ports") else {
        return match protocols {
            None => None,
            Some(_) if only_icmp => Some(Ports::Any),
            Some(_) => fields.node.refuse(
                "has no field \"ports\"",
                "list the ports, or write `ports: any` for all of them",
            ),
        };
    };
    let ports = ports::ports(&field)?;
    let icmp = protocols.is_some_and(|list| list.contains(&Protocol::Icmp));
    if icmp && ports != Ports::Any {
        return field.refuse(
            "ICMP has no ports",
            if only_icmp {
                "remove the field"
            } else {
                "give ICMP a target of its own, without ports"
            },
        );
    }
    Some(ports)
}

fn is_cidr(selector: &Selector) -> bool {
    matches!(selector, Selector::Cidr(_))
}

/// A rule between two ranges of addresses names no workload that could be
/// governed by it.
fn refuse_cidr_on_both_ends(fields: &Fields<'_>) {
    let targets = fields.optional("to").map(|to| to.one_or_more());
    for target in targets.unwrap_or_default() {
        if let Some(cidr) = target.peek("cidr") {
            cidr.error(
                "both ends of the rule are addresses: it would govern no workload",
                "name the workload's end by its SPIFFE ID or a group",
            );
        }
    }
}
