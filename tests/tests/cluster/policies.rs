//! Policies as resources: the API server refuses what our parser refuses, and what
//! it keeps means the same when it is read back.
//!
//! Where the two differ, the case stands in a table of its own with the reason.

use zt_agent::document::{SourceFile, policy};
use zt_agent::model::Policy;
use zt_agent::resource::{self, Kind};
use zt_tests::cluster::{Answer, Cluster};

use crate::definitions::with_definitions;

/// Elements of `spec.rules` that are good for both.
const GOOD: [&str; 24] = [
    "{from: [], to: []}",
    "{from: {spiffe: spiffe://td/a}, to: []}",
    "{from: [{spiffe: spiffe://td/a}, {reserved: host}, {group: g}, {cidr: 10.0.0.0/8}], to: []}",
    "{from: {cidr: 10.0.0.0/8}, to: [{spiffe: spiffe://td/a, ports: any}]}",
    "{from: {cidr: \"2001:db8::/32\"}, to: [{group: g, ports: [1]}]}",
    "{from: {spiffe: spiffe://td/a}, to: [{cidr: 203.0.113.0/24, ports: any}]}",
    "{from: [], to: [{cidr: 0.0.0.0/0, ports: any}, {cidr: \"::/0\", ports: any}]}",
    "{from: [], to: [{cidr: 203.0.113.7/32, ports: any}, {cidr: \"2001:db8::/32\", ports: any}]}",
    "{from: {reserved: nodes}, to: [{reserved: world, ports: [443]}]}",
    "{from: {reserved: masqueraded}, to: [{reserved: apiserver, ports: [6443]}]}",
    "{action: deny, from: {spiffe: spiffe://td/**}, to: [{spiffe: spiffe://td/*/x, ports: any}]}",
    "{action: allow, from: [], to: [{spiffe: spiffe://td/.a/..b/_/-/A.Z, ports: any}]}",
    "{expires: \"2026-12-01T00:00:00Z\", from: [], to: []}",
    "{expires: 2026-12-01T02:00:00+02:00, from: [], to: []}",
    "{expires: 2026-12-01T02:00:00.123456789-05:30, from: [], to: []}",
    "{from: [], to: [{spiffe: spiffe://td/b, ports: [1, 65535, \"1-65535\", \"8000-8010\", \"443\", \" 80 - 81 \"]}]}",
    "{from: [], to: [{spiffe: spiffe://td/b, protocol: UDP, ports: [53]}]}",
    "{from: [], to: [{spiffe: spiffe://td/b, protocol: [UDP, TCP], ports: [53]}]}",
    "{from: [], to: [{spiffe: spiffe://td/b, protocol: ICMP}]}",
    "{from: [], to: [{spiffe: spiffe://td/b, protocol: [ICMP]}]}",
    "{from: [], to: [{spiffe: spiffe://td/b, protocol: ICMP, ports: any}]}",
    "{from: [], to: [{spiffe: spiffe://td/b, protocol: [TCP, ICMP], ports: any}]}",
    "{from: [], to: [{spiffe: spiffe://td/b, protocol: [ICMP, UDP, TCP], ports: any}]}",
    "{from: [], to: [{cidr: 10.0.0.0/8, ports: any}, {spiffe: spiffe://td/b, ports: any}]}",
];

/// Elements of `spec.rules` that are bad for both, and the field that both name.
const BAD: [(&str, &str); 60] = [
    ("{to: []}", "from"),
    ("{from: []}", "to"),
    ("{from: , to: []}", "from"),
    ("{from: [], to: }", "to"),
    ("{from: {}, to: []}", "from"),
    ("{from: [{}], to: []}", "from"),
    ("{from: [null], to: []}", "from"),
    ("{from: [[]], to: []}", "from"),
    ("{from: spiffe://td/a, to: []}", "from"),
    ("{from: [spiffe://td/a], to: []}", "from"),
    ("{from: 5, to: []}", "from"),
    ("{from: 0, to: []}", "from"),
    ("{from: 1.5, to: []}", "from"),
    ("{from: true, to: []}", "from"),
    ("{from: false, to: []}", "from"),
    ("{from: \"\", to: []}", "from"),
    ("{from: {spife: spiffe://td/a}, to: []}", "from"),
    ("{from: [{spife: spiffe://td/a}], to: []}", "from"),
    ("{from: {spiffe: spiffe://td/a, x: 1}, to: []}", "from"),
    ("{from: [{spiffe: spiffe://td/a, x: 1}], to: []}", "from"),
    ("{from: {spiffe: spiffe://td/a, group: g}, to: []}", "from"),
    ("{from: {spiffe: td/a}, to: []}", "from"),
    ("{from: [{spiffe: td/a}], to: []}", "from"),
    ("{from: {spiffe: [spiffe://td/a]}, to: []}", "from"),
    ("{from: {reserved: unenrolled}, to: []}", "from"),
    ("{from: [{reserved: World}], to: []}", "from"),
    ("{from: {cidr: 10.0.0.0}, to: []}", "from"),
    ("{from: {cidr: 10.0.0.0/33}, to: []}", "from"),
    ("{from: {cidr: \"::/129\"}, to: []}", "from"),
    ("{from: [], to: {}}", "to"),
    ("{from: [], to: {spiffe: spiffe://td/b, ports: any}}", "to"),
    ("{from: [], to: [text]}", "to"),
    ("{from: [], to: [{ports: any}]}", "to"),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, reserved: world, ports: any}]}",
        "to",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: any, color: red}]}",
        "color",
    ),
    ("{from: [], to: [{spiffe: spiffe://td/b}]}", "ports"),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: UDP}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: [TCP, ICMP]}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: ICMP, ports: [80]}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: [ICMP, TCP], ports: [80]}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: tcp, ports: any}]}",
        "protocol",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: [SCTP], ports: any}]}",
        "protocol",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: [], ports: any}]}",
        "protocol",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: 6, ports: any}]}",
        "protocol",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, protocol: {}, ports: any}]}",
        "protocol",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: 80}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: ANY}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: {}}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: []}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: [0, 80]}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: [65536]}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: [\"1-65536\"]}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: [\"0-10\"]}]}",
        "ports",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: [http]}]}",
        "ports",
    ),
    (
        "{from: [], to: [{cidr: 203.0.113.5/24, ports: any}]}",
        "cidr",
    ),
    (
        "{from: [], to: [{cidr: \"::ffff:10.0.0.0/104\", ports: any}]}",
        "cidr",
    ),
    (
        "{from: {cidr: 10.0.0.0/8}, to: [{cidr: 192.0.2.0/24, ports: any}]}",
        "rules",
    ),
    (
        "{from: [{reserved: host}, {cidr: 10.0.0.0/8}], to: [{group: g, ports: any}, {cidr: 192.0.2.0/24, ports: any}]}",
        "rules",
    ),
    ("{action: ALLOW, from: [], to: []}", "action"),
    (
        "{action: deny, expires: 2026-12-01T00:00:00Z, from: [], to: []}",
        "expires",
    ),
];

/// More of them: forms of values.
const BAD_FORMS: [(&str, &str); 21] = [
    ("{expires: tomorrow, from: [], to: []}", "expires"),
    ("{expires: \"2026-12-01\", from: [], to: []}", "expires"),
    (
        "{expires: \"2026-12-01T00:00:00\", from: [], to: []}",
        "expires",
    ),
    (
        "{expires: \"1969-01-01T00:00:00Z\", from: [], to: []}",
        "expires",
    ),
    (
        "{expires: \"9999-01-01T00:00:00Z\", from: [], to: []}",
        "expires",
    ),
    (
        "{expires: \"2026-13-01T00:00:00Z\", from: [], to: []}",
        "expires",
    ),
    (
        "{expires: \"2026-02-30T00:00:00Z\", from: [], to: []}",
        "expires",
    ),
    ("{expires: 5, from: [], to: []}", "expires"),
    ("{from: {spiffe: \"spiffe://td\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://TD/a\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://td/a/\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://td//a\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://td/../a\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://td/a/.\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://td/**/a\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://td/a*\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://td/ä\"}, to: []}", "spiffe"),
    ("{from: {spiffe: \"spiffe://td/a\\n\"}, to: []}", "spiffe"),
    (
        "{from: [], to: [{spiffe: \"spiffe://*/a\", ports: any}]}",
        "spiffe",
    ),
    (
        "{from: [], to: [{spiffe: \"spiffe:///a\", ports: any}]}",
        "spiffe",
    ),
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: [\"+80\"]}]}",
        "ports",
    ),
];

/// What only our parser refuses. The API server keeps it, and the resource's status
/// says why no node enforces it.
const ONLY_THE_PARSER_REFUSES: [(&str, &str); 4] = [
    (
        "{from: [], to: [{spiffe: spiffe://td/b, ports: [\"8010-8000\"]}]}",
        "a schema without CEL cannot compare the two ports, and CEL does not see into `ports`",
    ),
    (
        "{from: {cidr: 10.0.0.1/8}, to: []}",
        "a schema without CEL cannot compare bits, and CEL does not see into `from`",
    ),
    (
        "{from: {group: nobody}, to: []}",
        "the API server does not look at other objects; the group may come later",
    ),
    (
        "{action: , from: [], to: []}",
        "to Kubernetes a field of nothing is a field that is not there",
    ),
];

/// What only the API server refuses: nothing that the agent would ever see.
const ONLY_THE_SERVER_REFUSES: [(&str, &str); 2] = [
    (
        "{expires: 2026-12-01 00:00:00Z, from: [], to: []}",
        "the parser takes more spellings of a time than RFC 3339 has",
    ),
    (
        "{expires: \"2026-12-01T23:59:60Z\", from: [], to: []}",
        "Go knows no leap second, and the parser takes it for the second before",
    ),
];

/// A policy of one rule.
fn with_rule(rule: &str) -> String {
    with_spec(&format!("{{rules: [{rule}]}}"))
}

fn with_spec(spec: &str) -> String {
    with_metadata("{name: p}", spec)
}

fn with_metadata(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {metadata}\nspec: {spec}\n"
    )
}

/// The group that the rules name.
fn group() -> SourceFile {
    let text = "apiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {name: g}\n\
                spec: {members: [spiffe://td/x, spiffe://td/y/*]}\n";
    SourceFile::new("group", text)
}

/// What our parser makes of it, or what it complains about.
fn parse(file: SourceFile) -> Result<Policy, String> {
    let policies = policy::parse(&[file, group()]).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })?;
    let [policy] = <[Policy; 1]>::try_from(policies).expect("there is one policy");
    Ok(policy)
}

/// What the API server makes of it, without keeping it.
fn ask(cluster: &Cluster, text: &str) -> Answer {
    let create = ["create", "--dry-run=server", "--output=json", "-f", "-"];
    cluster.kubectl_with(&create, text).expect("kubectl runs")
}

/// Whether an error names a field, in its path or in quotes.
fn names(error: &str, field: &str) -> bool {
    let path = format!(".{field}");
    let quoted = format!("\"{field}\"");
    let first = format!("{field}: ");
    [path, quoted, first]
        .iter()
        .any(|name| error.contains(name))
}

/// All that a policy says, without where it stands.
fn meaning(policy: &Policy) -> String {
    let rules = policy.rules.iter().map(|rule| {
        let targets = rule.to.iter();
        let targets: Vec<_> = targets
            .map(|to| (&to.selectors, &to.protocols, &to.ports))
            .collect();
        (rule.number, rule.action, &rule.from, targets, rule.expires)
    });
    format!(
        "{:?} {:?} {:#?}",
        policy.name,
        policy.mode,
        rules.collect::<Vec<_>>()
    )
}

#[test]
fn a_good_policy_is_kept_and_means_the_same_when_it_is_read_back() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let specs = [
        "{rules: []}",
        "{mode: audit, rules: []}",
        "{mode: enforce, defaultAction: DENY, rules: []}",
    ];
    let texts = GOOD.iter().map(|rule| with_rule(rule));
    for text in texts.chain(specs.iter().map(|spec| with_spec(spec))) {
        let written = parse(SourceFile::new("written", text.clone()));
        let written = written.unwrap_or_else(|error| panic!("{text}: {error}"));
        let kept = ask(cluster, &text)
            .ok()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        let object = serde_json::from_str(&kept).unwrap();
        let read = parse(resource::document(Kind::ServiceAccessPolicy, &object));
        let read = read.unwrap_or_else(|error| panic!("{text}: {kept}: {error}"));
        assert_eq!(meaning(&written), meaning(&read), "{text}: {kept}");
    }
}

#[test]
fn a_bad_policy_is_refused_by_both_and_both_name_the_field() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let rules = BAD.iter().chain(&BAD_FORMS);
    let mut cases: Vec<_> = rules
        .map(|(rule, field)| (with_rule(rule), *field))
        .collect();
    for (spec, field) in [
        ("{}", "rules"),
        ("{rules: }", "rules"),
        ("{rules: {}}", "rules"),
        ("{rules: [], defaultAction: ALLOW}", "defaultAction"),
        ("{rules: [], defaultAction: deny}", "defaultAction"),
        ("{rules: [], defaultAction: []}", "defaultAction"),
        ("{rules: [], mode: \"on\"}", "mode"),
        ("{rules: [], mode: Audit}", "mode"),
        ("{rules: [], color: red}", "color"),
        ("", "spec"),
        ("text", "spec"),
    ] {
        cases.push((with_spec(spec), field));
    }
    let too_long = format!("{{name: {}.{}}}", "a".repeat(63), "b".repeat(37));
    let long_label = format!("{{name: {}}}", "a".repeat(64));
    for metadata in [
        "{name: A}",
        "{name: a_b}",
        "{name: a..b}",
        &too_long,
        &long_label,
    ] {
        cases.push((with_metadata(metadata, "{rules: []}"), "name"));
    }
    let mut wrong = Vec::new();
    for (text, field) in &cases {
        match parse(SourceFile::new("written", text.clone())) {
            Ok(_) => wrong.push(format!("the parser takes {text}")),
            Err(error) if !names(&error, field) => {
                wrong.push(format!("{text}: no {field} in {error}"))
            }
            Err(_) => {}
        }
        let answer = ask(cluster, text);
        if answer.succeeded {
            wrong.push(format!("the API server takes {text}"));
        } else if !names(&answer.errors, field) {
            wrong.push(format!("{text}: no {field} in {}", answer.errors));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_two_differ_only_where_it_is_known_why() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let only_parser = ONLY_THE_PARSER_REFUSES.iter().map(|case| (case, true));
    let only_server = ONLY_THE_SERVER_REFUSES.iter().map(|case| (case, false));
    for ((rule, why), server_takes) in only_parser.chain(only_server) {
        let text = with_rule(rule);
        let parsed = parse(SourceFile::new("written", text.clone()));
        let answer = ask(cluster, &text);
        assert_eq!(parsed.is_ok(), !server_takes, "{rule} ({why}): {parsed:?}");
        assert_eq!(answer.succeeded, server_takes, "{rule} ({why}): {answer:?}");
    }
    // A policy that is too long for the API server can be split.
    let long = with_rule(&["{from: [], to: []}"; 1001].join(", "));
    assert!(parse(SourceFile::new("written", long.clone())).is_ok());
    let answer = ask(cluster, &long);
    assert!(
        answer.errors.contains("spec.rules: Too many: 1001"),
        "{answer:?}"
    );
}
