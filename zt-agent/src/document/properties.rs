//! Properties of the readers: they survive any text, point inside the file,
//! and read back what was written.

use std::{fmt::Write as _, ops::RangeInclusive, path::Path, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use proptest::prelude::*;
use zt_common::{codes::Protocol, identity};

use super::{Config, SourceFile, identities, policy, text::split_lines};
use crate::model::{
    Policy, PolicyMode, Ports, Position, Problem, Rule, RuleAction, Selector, Target,
};

const SAMPLES: [&str; 4] = [
    include_str!("../../testdata/hanzo-core-policy.yaml"),
    include_str!("../../testdata/every-form.yaml"),
    include_str!("../../testdata/identities.yaml"),
    include_str!("../../testdata/agent.yaml"),
];

/// Reads a text as each kind of document and checks what comes of it.
fn read_as_everything(text: &str) {
    let file = SourceFile::new("f", text);
    let lookup = |_: &str| None;
    check(text, policy::parse(std::slice::from_ref(&file)).err());
    check(text, identities::parse(&file).err());
    check(text, Config::parse(&file, Path::new("/"), lookup).err());
}

fn check(text: &str, problems: Option<Vec<Problem>>) {
    let Some(problems) = problems else { return };
    assert!(!problems.is_empty(), "refused without a reason");
    for problem in problems {
        let line = split_lines(text).nth(usize::try_from(problem.at.line).unwrap() - 1);
        let width = line.expect("no such line").chars().count();
        let column = usize::try_from(problem.at.column).unwrap();
        assert!((1..=width + 1).contains(&column), "{problem}");
        assert!(!problem.message.is_empty());
    }
}

/// A piece of a document that tends to break things.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("---\n".to_owned()),
        Just("\n  ".to_owned()),
        Just("\t".to_owned()),
        Just(": ".to_owned()),
        Just("- ".to_owned()),
        Just("&a ".to_owned()),
        Just("*a".to_owned()),
        Just("!!binary ".to_owned()),
        Just("<<: ".to_owned()),
        Just("|\n".to_owned()),
        Just("~".to_owned()),
        Just("\u{feff}".to_owned()),
        "[\\[\\]{},:&*#?|>'\"%@`0-9.a-z-]{1,4}",
        "\\PC{1,3}",
    ]
}

/// A good document with a few pieces cut out and put in.
fn damaged() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0..12usize, fragment());
    let edits = prop::collection::vec(edit, 1..6);
    (prop::sample::select(&SAMPLES[..]), edits).prop_map(|(sample, edits)| {
        let mut chars: Vec<char> = sample.chars().collect();
        for (at, cut, put) in edits {
            let at = at.index(chars.len() + 1);
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, put.chars());
        }
        chars.into_iter().collect()
    })
}

fn spiffe() -> impl Strategy<Value = Selector> {
    "spiffe://[a-z]{1,4}(/([A-Za-z0-9_-]{1,4}|\\*)){1,3}(/\\*\\*)?"
        .prop_map(|text| Selector::Spiffe(text.parse().unwrap()))
}

fn cidr() -> impl Strategy<Value = Selector> {
    let v4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(ip, len)| IpNet::new(ip.into(), len));
    let v6 = (any::<[u8; 16]>(), 0..=128u8).prop_map(|(ip, len)| IpNet::new(ip.into(), len));
    prop_oneof![v4, v6].prop_map(|net| Selector::Cidr(net.unwrap().trunc()))
}

fn reserved() -> impl Strategy<Value = Selector> {
    let numbers = [
        identity::HOST,
        identity::NODES,
        identity::APISERVER,
        identity::WORLD,
        identity::MASQUERADED,
    ];
    prop::sample::select(numbers.to_vec()).prop_map(Selector::Reserved)
}

/// Disjoint ranges that do not touch, in order.
fn ranges() -> impl Strategy<Value = Vec<RangeInclusive<u16>>> {
    prop::collection::btree_set(1..=u16::MAX, 1..8).prop_map(|edges| {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for pair in edges.into_iter().collect::<Vec<_>>().chunks(2) {
            let (low, high) = (pair[0], *pair.last().unwrap());
            match ranges.last() {
                Some(last) if low - last.end() == 1 => {}
                _ => ranges.push(low..=high),
            }
        }
        ranges
    })
}

fn target() -> impl Strategy<Value = Target> {
    let list = [Protocol::Icmp, Protocol::Tcp, Protocol::Udp];
    let protocols = prop::sample::subsequence(list.to_vec(), 1..=3);
    let selector = prop_oneof![spiffe(), cidr(), reserved()];
    let ports = prop_oneof![Just(Ports::Any), ranges().prop_map(Ports::Ranges)];
    (selector, protocols, ports).prop_map(|(selector, protocols, ports)| Target {
        selectors: vec![selector],
        ports: match protocols.contains(&Protocol::Icmp) {
            true => Ports::Any,
            false => ports,
        },
        protocols,
        at: nowhere(),
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let from = prop::collection::vec(prop_oneof![spiffe(), reserved()], 0..3);
    let to = prop::collection::vec(target(), 0..3);
    let action = prop_oneof![
        Just((RuleAction::Deny, None)),
        prop::option::of(0..=u64::MAX).prop_map(|expires| (RuleAction::Allow, expires)),
    ];
    (from, to, action).prop_map(|(from, to, (action, expires))| Rule {
        number: 0,
        action,
        from,
        to,
        expires,
        at: nowhere(),
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let mode = prop_oneof![Just(PolicyMode::Enforce), Just(PolicyMode::Audit)];
    let rules = prop::collection::vec(rule(), 0..4);
    ("[a-z][a-z0-9-]{0,9}[a-z0-9]", mode, rules).prop_map(|(name, mode, mut rules)| {
        for (number, rule) in (1..).zip(&mut rules) {
            rule.number = number;
        }
        Policy {
            name: name.into(),
            mode,
            rules: rules.into(),
            at: nowhere(),
        }
    })
}

fn nowhere() -> Position {
    Position {
        file: "".into(),
        line: 0,
        column: 0,
    }
}

fn without_places(mut policy: Policy) -> Policy {
    policy.at = nowhere();
    for rule in Arc::make_mut(&mut policy.rules) {
        rule.at = nowhere();
        for target in &mut rule.to {
            target.at = nowhere();
        }
    }
    policy
}

fn write_policy(policy: &Policy) -> String {
    let mode = match policy.mode {
        PolicyMode::Enforce => "enforce",
        PolicyMode::Audit => "audit",
    };
    let mut out = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: \"{}\"\nspec:\n  mode: {mode}\n",
        policy.name
    );
    out += if policy.rules.is_empty() {
        "  rules: []\n"
    } else {
        "  rules:\n"
    };
    for rule in policy.rules.iter() {
        write_rule(&mut out, rule);
    }
    out
}

fn write_rule(out: &mut String, rule: &Rule) {
    let action = match rule.action {
        RuleAction::Allow => "allow",
        RuleAction::Deny => "deny",
    };
    writeln!(out, "    - action: {action}").unwrap();
    if let Some(expires) = rule.expires {
        let time = Timestamp::from_nanosecond(expires.into()).unwrap();
        writeln!(out, "      expires: {time}").unwrap();
    }
    let from: Vec<String> = rule
        .from
        .iter()
        .map(|s| format!("{{{}}}", selector(s)))
        .collect();
    writeln!(out, "      from: [{}]", from.join(", ")).unwrap();
    *out += if rule.to.is_empty() {
        "      to: []\n"
    } else {
        "      to:\n"
    };
    for target in &rule.to {
        write_target(out, target);
    }
}

fn write_target(out: &mut String, target: &Target) {
    let protocols: Vec<&str> = target.protocols.iter().map(|p| p.name()).collect();
    writeln!(out, "        - {}", selector(&target.selectors[0])).unwrap();
    writeln!(out, "          protocol: [{}]", protocols.join(", ")).unwrap();
    let ports = match &target.ports {
        Ports::Any => "any".to_owned(),
        Ports::Ranges(ranges) => format!("[{}]", ranges.iter().map(range).collect::<String>()),
    };
    writeln!(out, "          ports: {ports}").unwrap();
}

fn range(range: &RangeInclusive<u16>) -> String {
    match (range.start(), range.end()) {
        (low, high) if low == high => format!("{low}, "),
        (low, high) => format!("{low}-{high}, "),
    }
}

fn selector(selector: &Selector) -> String {
    match selector {
        Selector::Spiffe(pattern) => format!("spiffe: {pattern}"),
        Selector::Cidr(net) => format!("cidr: \"{net}\""),
        Selector::Reserved(number) => {
            let known = identity::RESERVED.iter().find(|(known, _)| known == number);
            format!("reserved: {}", known.unwrap().1)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        read_as_everything(&text);
    }

    #[test]
    fn any_yaml_like_text_is_read_or_refused(pieces in prop::collection::vec(fragment(), 0..40)) {
        read_as_everything(&pieces.concat());
    }

    #[test]
    fn a_damaged_document_is_read_or_refused(text in damaged()) {
        read_as_everything(&text);
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let valid = std::str::from_utf8(&bytes).is_ok();
        prop_assert_eq!(SourceFile::from_bytes("f", bytes).is_ok(), valid);
    }

    #[test]
    fn a_policy_is_read_back_as_it_was_written(policy in any_policy()) {
        let text = write_policy(&policy);
        let read = policy::parse(&[SourceFile::new("f", text.clone())]);
        let read = read.unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"));
        let read: Vec<Policy> = read.into_iter().map(without_places).collect();
        prop_assert_eq!(read, [policy], "{}", text);
    }
}
