use zt_common::{codes::Protocol, identity};

use super::*;
use crate::model::{Ports, RuleAction, Selector};

fn file(text: &str) -> SourceFile {
    SourceFile::new("p.yaml", text)
}

fn load(text: &str) -> Vec<Policy> {
    parse(&[file(text)]).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// All problems, one per line: `line:column field: message | hint`.
fn refusal(text: &str) -> String {
    let problems = parse(&[file(text)]).expect_err("it loads");
    let line = |p: &Problem| {
        let hint = p.hint.as_deref().unwrap_or("-");
        format!(
            "{}:{} {}: {} | {hint}",
            p.at.line, p.at.column, p.field, p.message
        )
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A policy of one rule: `rule` is its flow mapping.
fn with_rule(rule: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: p}}\n\
         spec:\n  rules:\n    - {rule}\n"
    )
}

fn with_target(target: &str) -> String {
    with_rule(&format!(
        "{{from: {{spiffe: spiffe://td/a}}, to: [{target}]}}"
    ))
}

fn only_rule(rule: &str) -> Rule {
    load(&with_rule(rule))[0].rules[0].clone()
}

#[test]
fn the_seeds_document_loads_unchanged() {
    let policies = load(include_str!("../../testdata/hanzo-core-policy.yaml"));
    let [policy] = &*policies else {
        panic!("{policies:?}")
    };
    assert_eq!(&*policy.name, "hanzo-core-policy");
    assert_eq!(policy.mode, PolicyMode::Enforce);
    let short = |selector: &Selector| match selector {
        Selector::Spiffe(pattern) => pattern.as_str().rsplit('/').next().unwrap().to_owned(),
        other => format!("{other:?}"),
    };
    let mut seen = Vec::new();
    for rule in policy.rules.iter() {
        assert_eq!((rule.action, rule.expires), (RuleAction::Allow, None));
        for target in &rule.to {
            assert_eq!(target.protocols, [Protocol::Tcp]);
            let Ports::Ranges(ports) = &target.ports else {
                panic!("{target:?}")
            };
            seen.push((
                rule.number,
                short(&rule.from[0]),
                short(&target.selectors[0]),
                ports.clone(),
            ));
        }
    }
    let line = |number, from: &str, to: &str, port| {
        (number, from.to_owned(), to.to_owned(), vec![port..=port])
    };
    assert_eq!(
        seen,
        [
            line(1, "iam", "postgres", 5432),
            line(1, "iam", "redis", 6379),
            line(2, "gateway", "iam", 8000),
            line(2, "gateway", "postgres", 5432),
            line(3, "chat", "gateway", 4000),
        ]
    );
}

#[test]
fn every_form_of_a_rule_is_understood() {
    let policies = load(include_str!("../../testdata/every-form.yaml"));
    let [policy] = &*policies else {
        panic!("{policies:?}")
    };
    assert_eq!(policy.mode, PolicyMode::Audit);
    let spiffe = |text: &str| Selector::Spiffe(text.parse().unwrap());
    let databases = [
        spiffe("spiffe://td/c/ns/postgres"),
        spiffe("spiffe://td/c/data/*"),
    ];

    let grant = &policy.rules[0];
    assert_eq!(
        grant.from,
        [
            spiffe("spiffe://td/a/*"),
            Selector::Reserved(identity::HOST)
        ]
    );
    assert_eq!(grant.expires, Some(1_796_083_200_000_000_000));
    assert_eq!(grant.to[0].selectors, databases);
    assert_eq!(
        grant.to[0].ports,
        Ports::Ranges(vec![443..=443, 5432..=5432, 8000..=8010])
    );
    assert_eq!(
        grant.to[1].selectors,
        [Selector::Cidr("203.0.113.0/24".parse().unwrap())]
    );
    assert_eq!(grant.to[1].protocols, [Protocol::Tcp, Protocol::Udp]);
    assert_eq!(grant.to[2].ports, Ports::Any);
    assert_eq!(grant.to[2].protocols, [Protocol::Icmp]);

    let deny = &policy.rules[1];
    assert_eq!((deny.number, deny.action), (2, RuleAction::Deny));
    assert_eq!(deny.from, databases);
    assert_eq!(deny.to[0].selectors, [Selector::Reserved(identity::WORLD)]);
    assert_eq!(deny.at.to_string(), "p.yaml:28:7");
}

#[test]
fn an_empty_list_loads_and_selects_nobody() {
    let rule = only_rule("{from: [], to: []}");
    assert!(rule.from.is_empty() && rule.to.is_empty());
    let group = "---\napiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {name: g}\nspec: {members: []}\n";
    let text = with_target("{group: g, ports: any}") + group;
    assert!(load(&text)[0].rules[0].to[0].selectors.is_empty());
}

#[test]
fn a_file_without_documents_is_a_set_without_policies() {
    for text in ["", "# nothing here\n", "---\n---\n"] {
        assert_eq!(load(text), [], "{text:?}");
    }
}

#[test]
fn ports_that_are_no_ports_are_told_apart() {
    for (ports, expected) in [
        ("[0]", "there is no port 0"),
        ("[65536]", "the highest port is 65535"),
        ("[\"1-65536\"]", "the highest port is 65535"),
        ("[99999999999999999999]", "is no port"),
        ("[\"99999999999999999999\"]", "the highest port is 65535"),
        (
            "[\"8010-8000\"]",
            "the range \"8010-8000\" is reversed | write \"8000-8010\"",
        ),
        ("[\"0-10\"]", "there is no port 0"),
        ("[http]", "\"http\" is no port"),
        ("[-1]", "this is no port"),
        ("[\"-1\"]", "\"-1\" is no port"),
        ("[\"+80\"]", "\"+80\" is no port"),
        ("[80.5]", "this is no port"),
        ("[true]", "this is no port"),
        ("[any]", "`any` cannot stand in a list"),
        ("[]", "an empty list of ports selects nothing"),
        ("80", "must be `any` or a list of ports"),
        ("ANY", "must be `any` or a list of ports"),
        ("", "must be `any` or a list of ports"),
    ] {
        let refused = refusal(&with_target(&format!(
            "{{spiffe: spiffe://td/b, ports: {ports}}}"
        )));
        assert!(refused.contains(expected), "{ports}: {refused}");
        assert!(
            refused.contains("spec.rules[1].to[1].ports"),
            "{ports}: {refused}"
        );
        assert_eq!(refused.lines().count(), 1, "{ports}: {refused}");
    }
}

#[test]
fn a_quoted_port_is_a_port() {
    let text = with_target("{spiffe: spiffe://td/b, ports: [\"5432\", ' 80 - 81 ']}");
    assert_eq!(
        load(&text)[0].rules[0].to[0].ports,
        Ports::Ranges(vec![80..=81, 5432..=5432])
    );
}

#[test]
fn ports_left_out_are_an_error_except_for_icmp() {
    let refused = refusal(&with_target("{spiffe: spiffe://td/b}"));
    assert!(
        refused.contains("has no field \"ports\" | list the ports, or write `ports: any`"),
        "{refused}"
    );
    load(&with_target("{spiffe: spiffe://td/b, protocol: ICMP}"));
    load(&with_target(
        "{spiffe: spiffe://td/b, protocol: ICMP, ports: any}",
    ));
    load(&with_target(
        "{spiffe: spiffe://td/b, protocol: [TCP, ICMP], ports: any}",
    ));
    for protocol in ["ICMP", "[TCP, ICMP]"] {
        let refused = refusal(&with_target(&format!(
            "{{spiffe: spiffe://td/b, protocol: {protocol}, ports: [80]}}"
        )));
        assert!(refused.contains("ICMP has no ports"), "{refused}");
    }
    assert!(
        refusal(&with_target(
            "{spiffe: spiffe://td/b, protocol: [TCP, ICMP]}"
        ))
        .contains("ports: any")
    );
}

#[test]
fn words_have_one_spelling() {
    for (rule, expected) in [
        (
            "{action: ALLOW, from: [], to: []}",
            "\"ALLOW\" is none of allow, deny | did you mean \"allow\"?",
        ),
        (
            "{from: [], to: [{spiffe: spiffe://td/b, ports: any, protocol: tcp}]}",
            "did you mean \"TCP\"?",
        ),
        (
            "{from: [], to: [{spiffe: spiffe://td/b, ports: any, protocol: SCTP}]}",
            "\"SCTP\" is none of TCP, UDP, ICMP",
        ),
        (
            "{from: [], to: [{spiffe: spiffe://td/b, ports: any, protocol: []}]}",
            "an empty list of protocols",
        ),
        (
            "{from: [], to: [], action: null}",
            "has no value; it must be text",
        ),
    ] {
        let refused = refusal(&with_rule(rule));
        assert!(refused.contains(expected), "{rule}: {refused}");
    }
}

#[test]
fn a_default_that_allows_is_refused_with_the_reason() {
    let text =
        |action: &str| with_rule("{from: [], to: []}") + &format!("  defaultAction: {action}\n");
    load(&text("DENY"));
    assert!(refusal(&text("ALLOW")).contains("7:18 spec.defaultAction: ALLOW is refused"));
    for bad in ["deny", "allow", "Deny", "LOG", "", "[]"] {
        refusal(&text(bad));
    }
}

#[test]
fn only_an_allow_may_lapse() {
    let refused = refusal(&with_rule(
        "{action: deny, expires: 2026-12-01T00:00:00Z, from: [], to: []}",
    ));
    assert!(
        refused.starts_with("6:31 spec.rules[1].expires: a deny that lapses would open by itself"),
        "{refused}"
    );
    for bad in [
        "tomorrow",
        "2026-12-01",
        "2026-12-01T00:00:00",
        "1969-01-01T00:00:00Z",
        "5",
        "9999-01-01T00:00:00Z",
    ] {
        let refused = refusal(&with_rule(&format!("{{expires: {bad}, from: [], to: []}}")));
        assert!(
            refused.contains("spec.rules[1].expires"),
            "{bad}: {refused}"
        );
    }
    let rule = only_rule("{expires: 2026-12-01T02:00:00+02:00, from: [], to: []}");
    assert_eq!(rule.expires, Some(1_796_083_200_000_000_000));
}

#[test]
fn an_element_says_in_exactly_one_way_whom_it_means() {
    for (target, expected) in [
        ("{ports: any}", "needs one of spiffe, group, cidr, reserved"),
        (
            "{spiffe: spiffe://td/b, reserved: world, ports: any}",
            "reserved cannot stand beside spiffe",
        ),
        (
            "{spiffe: td/b, ports: any}",
            "must start with \"spiffe://\"",
        ),
        (
            "{spiffe: [spiffe://td/b], ports: any}",
            "must be text, and this is a list",
        ),
        ("{spiffe: , ports: any}", "has no value"),
        (
            "{spife: spiffe://td/b, ports: any}",
            "unknown field | did you mean \"spiffe\"?",
        ),
        ("{reserved: World, ports: any}", "did you mean \"world\"?"),
        (
            "{reserved: unenrolled, ports: any}",
            "unenrolled can be seen in records, and never be allowed by name",
        ),
        (
            "{reserved: unknown-peer, ports: any}",
            "unknown-peer can be seen",
        ),
        ("{reserved: conflict, ports: any}", "conflict can be seen"),
        (
            "{group: nobody, ports: any}",
            "there is no group \"nobody\"",
        ),
        (
            "{cidr: 203.0.113.5/24, ports: any}",
            "write 203.0.113.0/24 for the network, or 203.0.113.5/32",
        ),
        ("{cidr: 203.0.113.5, ports: any}", "write 203.0.113.5/32"),
        ("{cidr: 203.0.113.0/33, ports: any}", "is no network"),
        (
            "{cidr: \"2001:db8::1/32\", ports: any}",
            "write 2001:db8::/32",
        ),
        (
            "{cidr: \"::ffff:10.0.0.0/104\", ports: any}",
            "write 10.0.0.0/8",
        ),
        ("text", "must be a mapping, and this is text"),
    ] {
        let refused = refusal(&with_target(target));
        assert!(refused.contains(expected), "{target}: {refused}");
    }
    assert!(refusal(&with_rule("{from: {}, to: []}")).contains("spec.rules[1].from: needs one of"));
    assert!(
        refusal(&with_rule("{from: [{}], to: []}")).contains("spec.rules[1].from[1]: needs one of")
    );
}

#[test]
fn both_ends_cannot_be_addresses() {
    let refused = refusal(&with_rule(
        "{from: [{spiffe: spiffe://td/a}, {cidr: 10.0.0.0/8}], to: [{cidr: 192.0.2.0/24, ports: any}]}",
    ));
    assert!(
        refused.contains("spec.rules[1].to[1].cidr: both ends of the rule are addresses"),
        "{refused}"
    );
}

#[test]
fn what_is_missing_is_named() {
    for (rule, expected) in [
        ("{to: []}", "has no field \"from\""),
        ("{from: []}", "has no field \"to\""),
        ("{from: , to: []}", "spec.rules[1].from: has no value"),
        ("{from: [], to: }", "spec.rules[1].to: has no value"),
    ] {
        let refused = refusal(&with_rule(rule));
        assert!(refused.contains(expected), "{rule}: {refused}");
    }
    let refused = refusal("apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\n");
    assert!(
        refused.contains("\"metadata\"") && refused.contains("\"spec\""),
        "{refused}"
    );
    let refused = refusal(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {name: a}\nspec: {}\n",
    );
    assert!(
        refused.contains("spec: has no field \"rules\""),
        "{refused}"
    );
}

#[test]
fn version_and_kind_are_checked() {
    for (head, expected) in [
        (
            "apiVersion: v1\nkind: ServiceAccessPolicy",
            "1:13 apiVersion: \"v1\" is not a version",
        ),
        ("kind: ServiceAccessPolicy", "has no field \"apiVersion\""),
        (
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccesPolicy",
            "2:7 kind: unknown kind \"ServiceAccesPolicy\" | did you mean \"ServiceAccessPolicy\"?",
        ),
        (
            "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities",
            "the kinds here are: ServiceAccessPolicy, IdentityGroup",
        ),
        ("just text", "must be a mapping"),
        ("[]", "must be a mapping"),
    ] {
        let refused = refusal(head);
        assert!(refused.contains(expected), "{head}: {refused}");
    }
}

#[test]
fn a_fields_name_is_text() {
    let refused = refusal(&with_rule("{from: [], to: [], 5: x, ~: y, [a]: z}"));
    assert_eq!(
        refused.matches("a field's name must be text").count(),
        3,
        "{refused}"
    );
}

#[test]
fn names_are_checked() {
    let text = |metadata: &str| with_rule("{from: [], to: []}").replace("{name: p}", metadata);
    let longest = format!("{{name: {}.{}}}", "a".repeat(63), "b".repeat(36));
    load(&text(&longest));
    load(&text(
        "{name: a.b-c, labels: {x: y}, annotations: {z: \"1\"}}",
    ));
    for (metadata, expected) in [
        ("{name: A}", "metadata.name: \"A\" is no name"),
        ("{name: a_b}", "is no name"),
        ("{name: a..b}", "is no name"),
        ("{name: \"\"}", "is no name"),
        ("{name: a/b}", "is no name"),
        ("{name: 5}", "put it in double quotes"),
        ("{}", "has no field \"name\""),
        (
            "{name: p, namespace: x}",
            "metadata.namespace: the document holds for the whole node",
        ),
        ("{name: p, lables: {}}", "did you mean \"labels\"?"),
        ("{name: p, labels: x}", "metadata.labels: must be a mapping"),
    ] {
        let refused = refusal(&text(metadata));
        assert!(refused.contains(expected), "{metadata}: {refused}");
    }
    let too_long = format!("{{name: {}.{}}}", "a".repeat(63), "b".repeat(37));
    assert!(refusal(&text(&too_long)).contains("longer than 100 bytes"));
}

#[test]
fn a_name_is_given_once_over_all_files() {
    let one = SourceFile::new("a.yaml", with_rule("{from: [], to: []}"));
    let two = SourceFile::new("b.yaml", with_rule("{from: [], to: []}"));
    let problems = parse(&[one, two]).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].at.to_string(), "b.yaml:3:18");
    assert!(problems[0].hint.as_ref().unwrap().contains("a.yaml:3:18"));
}

#[test]
fn a_group_may_stand_in_another_file_and_bear_a_policys_name() {
    let group = "apiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {name: p}\nspec: {members: [spiffe://td/x]}\n";
    let policy = with_target("{group: p, ports: any}");
    let files = [SourceFile::new("a", policy), SourceFile::new("b", group)];
    assert_eq!(parse(&files).unwrap()[0].rules[0].to[0].selectors.len(), 1);
    let near = group.replace("{name: p}", "{name: databases}");
    let text = with_target("{group: database, ports: any}") + "---\n" + &near;
    assert!(refusal(&text).contains("did you mean \"databases\"?"));
}

#[test]
fn a_broken_file_is_not_the_reason_for_unknown_groups() {
    let files = [
        SourceFile::new("a", with_target("{group: g, ports: [0]}")),
        SourceFile::new("b", "a: ]"),
    ];
    let problems = parse(&files).unwrap_err();
    let places: Vec<&str> = problems.iter().map(|p| &*p.at.file).collect();
    assert_eq!(places, ["a", "b"], "{problems:#?}");
    assert!(problems[0].message.contains("port 0"));
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let text = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata: {name: P}
spec:
  mode: on
  color: red
  rules:
    - from: {spiffe: nobody}
      to:
        - spiffe: spiffe://td/b
          ports: [0, 70000, 80]
    - to: [{spiffe: spiffe://td/a*, ports: any}]
---
apiVersion: zt.hanzo.ai/v1
kind: IdentityGroup
metadata: {name: g}
spec: {members: [x]}
";
    let refused = refusal(text);
    let places: Vec<&str> = refused
        .lines()
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "3:18 metadata.name",
            "5:9 spec.mode",
            "6:3 spec.color",
            "8:22 spec.rules[1].from.spiffe",
            "11:19 spec.rules[1].to[1].ports[1]",
            "11:22 spec.rules[1].to[1].ports[2]",
            "12:7 spec.rules[2]",
            "12:21 spec.rules[2].to[1].spiffe",
            "17:18 spec.members[1]",
        ],
        "{refused}"
    );
}

#[test]
fn duplicate_fields_and_merge_keys_are_refused() {
    let refused = refusal("apiVersion: zt.hanzo.ai/v1\napiVersion: zt.hanzo.ai/v1\n");
    assert!(
        refused.starts_with("2:1 : the field \"apiVersion\" is given twice"),
        "{refused}"
    );
    let refused = refusal(&with_rule(
        "{from: &a {spiffe: spiffe://td/a}, to: [{<<: *a, ports: any}]}",
    ));
    assert!(refused.contains("merge keys"), "{refused}");
}

#[test]
fn a_plain_alias_is_followed_and_complained_about_where_it_is_used() {
    let refused = refusal(&with_rule(
        "{from: {spiffe: &a spiffe://td/*}, to: [{spiffe: *a, ports: any}, {reserved: *a, ports: any}]}",
    ));
    assert_eq!(refused.lines().count(), 1, "{refused}");
    assert!(refused.contains("to[2].reserved"), "{refused}");
}

#[test]
fn groups_that_multiply_without_end_are_refused() {
    let members = vec!["spiffe://td/x"; 2_000].join(", ");
    let rules = "    - {from: {group: g}, to: []}\n".repeat(600);
    let text = format!(
        "{}{rules}---\napiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {{name: g}}\n\
         spec: {{members: [{members}]}}\n",
        with_rule("{from: [], to: []}")
    );
    let refused = refusal(&text);
    assert!(
        refused.contains("spec.rules[502].from.group: the groups"),
        "{refused}"
    );
    assert_eq!(refused.lines().count(), 1);
}

#[test]
fn columns_count_characters_whatever_the_line_ending() {
    let text = with_rule("{from: [], to: [{\"spiffe\": \"ää\u{1f600}\", ports: [0]}]}");
    let places: Vec<String> = [
        text.clone(),
        text.replace('\n', "\r\n"),
        format!("\u{feff}{text}"),
    ]
    .iter()
    .map(|text| {
        refusal(text)
            .lines()
            .map(|l| l.split(' ').next().unwrap().to_owned() + " ")
            .collect()
    })
    .collect();
    assert_eq!(places, ["6:34 6:49 "; 3]);
}
