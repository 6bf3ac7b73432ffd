//! Names that look like others.

use std::net::SocketAddr;

use zt_agent::{
    document::{SourceFile, identities, policy},
    model::{SpiffeId, SpiffePattern},
};
use zt_common::identity::{self, RESERVED};
use zt_tests::{
    Workload,
    cgroup::Cgroup,
    node::{Node, World, policies},
};

use crate::lab::{Lab, PATIENT, PORT, SHORT};

/// Every reserved name, and how other systems write them.
fn reserved_names() -> Vec<String> {
    let names = RESERVED.iter().map(|(_, name)| *name);
    names
        .flat_map(|name| {
            [
                name.to_owned(),
                name.to_uppercase(),
                format!("reserved:{name}"),
                format!("reserved.{name}"),
                format!("reserved/{name}"),
                format!("cidr:0.0.0.0/0#{name}"),
            ]
        })
        .collect()
}

fn policy_errors(text: &str) -> Vec<String> {
    match policy::parse(&[SourceFile::new("test.yaml", text)]) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn rule(selector: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: p}}\nspec:\n  rules:\n    - from: {{{selector}}}\n      to: [{{spiffe: spiffe://t/a, ports: any}}]\n"
    )
}

/// CVE-2023-39347 and GHSA-pfhr-pccp-hwmh: a label that a pod's owner may set
/// was taken for one that only the system sets, and another policy applied.
/// Here nothing that a document says where an identity is wanted is ever a
/// reserved one: it is refused.
#[test]
fn cve_2023_39347_no_spelling_of_an_identity_is_a_reserved_one() {
    for name in reserved_names() {
        assert!(name.parse::<SpiffeId>().is_err(), "{name}");
        assert!(name.parse::<SpiffePattern>().is_err(), "{name}");
        let errors = policy_errors(&rule(&format!("spiffe: \"{name}\"")));
        assert!(!errors.is_empty(), "a rule from {name}");
        let enrolled = format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n  - {{spiffe: \"{name}\", cgroup: a}}\n"
        );
        assert!(
            identities::parse(&SourceFile::new("i.yaml", enrolled)).is_err(),
            "{name}"
        );
        let member = format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {{name: g}}\nspec:\n  members: [\"{name}\"]\n"
        );
        assert!(!policy_errors(&member).is_empty(), "a group with {name}");
        // Nobody is in a group that was not declared, whatever its name.
        assert!(
            !policy_errors(&rule(&format!("group: \"{name}\""))).is_empty(),
            "{name}"
        );
    }
    // What means "cannot be told" can be neither allowed nor claimed.
    for name in ["unknown-peer", "conflict", "unenrolled", "nobody"] {
        assert!(
            !policy_errors(&rule(&format!("reserved: {name}"))).is_empty(),
            "{name}"
        );
    }
    for name in [
        "world",
        "unknown-peer",
        "conflict",
        "masqueraded",
        "unenrolled",
        "nobody",
        "Host",
    ] {
        let claimed = format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nendpoints:\n  - {{reserved: {name}, addresses: [10.0.0.1]}}\n"
        );
        assert!(
            identities::parse(&SourceFile::new("i.yaml", claimed)).is_err(),
            "{name}"
        );
    }
}

/// The same at the receiver: workloads, groups, policies and labels that are
/// called as reserved identities are, are themselves and nobody else.
#[test]
fn cve_2023_39347_a_workload_called_like_a_reserved_identity_is_none() {
    let lab = Lab::new();
    let to = SocketAddr::from((Lab::ips(20)[0], PORT));
    let _serving = lab.b.serve(&[to], &[]).unwrap();
    let names = [
        "host",
        "world",
        "nodes",
        "apiserver",
        "masqueraded",
        "unknown-peer",
    ];
    let called = |name: &str, path: &str| {
        let mut world = lab.world();
        for (at, host) in [10, 20].into_iter().enumerate() {
            let id: SpiffeId = if at == 0 {
                format!("spiffe://{path}/{name}").parse().unwrap()
            } else {
                "spiffe://test/c/ns/b".parse().unwrap()
            };
            world.model.workloads[at].identity = id.clone();
            for endpoint in &mut world.model.endpoints {
                if Lab::ips(host).contains(&endpoint.ip) {
                    endpoint.party = zt_agent::model::Party::Workload(id.clone());
                }
            }
        }
        world
    };
    let document = |name: &str, selector: &str| {
        format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: {name}\n  labels: {{\"reserved:{name}\": \"\", \"zt.hanzo.ai/identity\": host}}\n  annotations: {{identity: spiffe://test/c/ns/b}}\nspec:\n  rules:\n    - from: {{{selector}}}\n      to: [{{spiffe: spiffe://test/c/ns/b, ports: any}}]\n---\napiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {{name: {name}}}\nspec:\n  members: [spiffe://nobody/{name}]\n"
        )
    };
    let mut node = lab.node(&lab.world());
    for name in names {
        for path in ["test", name, "reserved"] {
            let mut world = called(name, path);
            let own = format!("spiffe: spiffe://{path}/{name}");
            // Allowed by its own name it passes: the denials below are real.
            world.model.policies = policies(&document(name, &own)).unwrap();
            node.apply(&world.model).unwrap();
            assert!(lab.a.tcp(to, PATIENT).unwrap().replied(), "{path}/{name}");
            let number = node.number(&format!("spiffe://{path}/{name}")).unwrap();
            assert!(number >= identity::FIRST_SPIFFE);
            let mut others = vec![format!("group: {name}"), "cidr: 10.89.7.0/24".to_owned()];
            if name != "unknown-peer" {
                others.push(format!("reserved: {name}"));
            }
            for selector in others {
                world.model.policies = policies(&document(name, &selector)).unwrap();
                node.apply(&world.model).unwrap();
                let attempt = lab.a.tcp(to, SHORT).unwrap();
                assert!(
                    !attempt.connected,
                    "{path}/{name} by {selector}: {attempt:?}"
                );
            }
        }
    }
}

/// `a` enrolled under other names, one after the other, and who passes.
fn who_passes(
    lab: &Lab,
    node: &mut Node,
    policies_text: &str,
    ids: &[&str],
    quarantined: &str,
) -> Vec<String> {
    let to = SocketAddr::from((Lab::ips(20)[0], PORT));
    let mut passed = Vec::new();
    for id in ids {
        let mut world: World = lab.world();
        let id: SpiffeId = id.parse().unwrap();
        world.model.workloads[0].identity = id.clone();
        for endpoint in &mut world.model.endpoints {
            if Lab::ips(10).contains(&endpoint.ip) {
                endpoint.party = zt_agent::model::Party::Workload(id.clone());
            }
        }
        world.model.policies = policies(policies_text).unwrap();
        node.apply(&world.model).unwrap();
        if !quarantined.is_empty() {
            // Also where the name is not that of anybody here.
            let name = zt_agent::model::Name::Spiffe(quarantined.parse().unwrap());
            if let Some(number) = node.numbers.get(&name) {
                node.trust.set(number, true).unwrap();
            }
        }
        let attempt = lab.a.tcp(to, SHORT).unwrap();
        if attempt.replied() {
            passed.push(id.to_string());
        }
    }
    passed
}

fn from(selector: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: p}}\nspec:\n  rules:\n    - from: {{{selector}}}\n      to: [{{spiffe: spiffe://test/c/ns/b, ports: any}}]\n"
    )
}

/// CVE-2026-39350: the names of service accounts were matched as regular
/// expressions, so a rule for `cert-manager.io` let `cert-manager-io` pass and
/// a denial missed it. Here a `.` is a `.`, in rules, groups and quarantines.
#[test]
fn cve_2026_39350_a_dot_in_a_name_is_a_dot() {
    let lab = Lab::new();
    let to = SocketAddr::from((Lab::ips(20)[0], PORT));
    let _serving = lab.b.serve(&[to], &[]).unwrap();
    let mut node = lab.node(&lab.world());
    let ids = [
        "spiffe://test/c/ns/cert-manager.io",
        "spiffe://test/c/ns/cert-manager-io",
        "spiffe://test/c/ns/cert-managerXio",
        "spiffe://test/c/ns/cert-managerio",
        "spiffe://test/c/ns/cert-manager..io",
        "spiffe://test/c/ns/cert-manager.io.",
    ];
    let exact = from("spiffe: spiffe://test/c/ns/cert-manager.io");
    assert_eq!(who_passes(&lab, &mut node, &exact, &ids, ""), ids[..1]);
    let group = format!(
        "{}---\napiVersion: zt.hanzo.ai/v1\nkind: IdentityGroup\nmetadata: {{name: g}}\nspec:\n  members: [spiffe://test/c/ns/cert-manager.io]\n",
        from("group: g")
    );
    assert_eq!(who_passes(&lab, &mut node, &group, &ids, ""), ids[..1]);
    let domains = ["spiffe://a.b/x", "spiffe://axb/x", "spiffe://a-b/x"];
    let domain = from("spiffe: \"spiffe://a.b/*\"");
    assert_eq!(
        who_passes(&lab, &mut node, &domain, &domains, ""),
        domains[..1]
    );
    // A denial, and a quarantine, hit whom they name, and nobody less or more.
    let deny = from("spiffe: \"spiffe://test/c/ns/*\"").replace(
        "    - from",
        "    - action: deny\n      from: {spiffe: spiffe://test/c/ns/cert-manager.io}\n      to: [{spiffe: spiffe://test/c/ns/b, ports: any}]\n    - from",
    );
    assert_eq!(who_passes(&lab, &mut node, &deny, &ids, ""), ids[1..]);
    let all = from("spiffe: \"spiffe://test/c/ns/*\"");
    assert_eq!(who_passes(&lab, &mut node, &all, &ids, ids[0]), ids[1..]);
}

/// CVE-2021-39155: names that differ in case only are the same host to HTTP,
/// and were different ones to the policy. A SPIFFE trust domain has no upper
/// case, so one with it is refused everywhere; in a path case counts, and what
/// differs is never equal.
#[test]
fn cve_2021_39155_case_is_refused_or_tells_two_names_apart() {
    for id in [
        "spiffe://Test/c/ns/a",
        "spiffe://TEST/c/ns/a",
        "Spiffe://test/c/ns/a",
        "spiffe://tEst/*",
    ] {
        assert!(id.parse::<SpiffeId>().is_err(), "{id}");
        assert!(id.parse::<SpiffePattern>().is_err(), "{id}");
    }
    // What looks like a letter of another case, or like the same letter.
    for id in [
        "spiffe://te\u{17f}t/a",
        "spiffe://test/\u{430}",
        "spiffe://test/a\u{301}",
        "spiffe://test/\u{212a}",
    ] {
        assert!(id.parse::<SpiffeId>().is_err(), "{id}");
    }
    let lab = Lab::new();
    let to = SocketAddr::from((Lab::ips(20)[0], PORT));
    let _serving = lab.b.serve(&[to], &[]).unwrap();
    let mut node = lab.node(&lab.world());
    let ids = [
        "spiffe://test/c/ns/a",
        "spiffe://test/c/ns/A",
        "spiffe://test/C/ns/a",
        "spiffe://test/c/NS/a",
    ];
    let exact = from("spiffe: spiffe://test/c/ns/a");
    assert_eq!(who_passes(&lab, &mut node, &exact, &ids, ""), ids[..1]);
    let all = from("spiffe: \"spiffe://test/**\"");
    assert_eq!(
        who_passes(&lab, &mut node, &all, &ids, ids[1]),
        [ids[0], ids[2], ids[3]]
    );
    // Nor do cgroups that differ in case share an identity.
    let parent = Cgroup::child(lab.a.cgroup(), "case").unwrap();
    let (lower, upper) = (parent.child("x").unwrap(), parent.child("X").unwrap());
    let world = World::default()
        .enrol(&lab.b, &Lab::ips(20))
        .enrol_cgroup("a", &lower, None)
        .rules("[{from: {spiffe: spiffe://test/c/ns/a}, to: [{spiffe: spiffe://test/c/ns/b, ports: any}]}]")
        .unwrap();
    let mut world = world;
    for ip in Lab::ips(10) {
        world = world.claim(zt_agent::model::Endpoint {
            ip,
            party: zt_tests::node::party("a"),
            cgroup: lower.id().ok(),
            ports: None,
            target: None,
        });
    }
    node.trust
        .set(node.number("spiffe://test/c/ns/a").unwrap(), false)
        .unwrap();
    node.apply(&world.model).unwrap();
    let member = |cgroup| Workload::sharing("a", cgroup, lab.a.netns().cloned());
    assert!(member(lower).tcp(to, PATIENT).unwrap().replied());
    assert!(!member(upper).tcp(to, SHORT).unwrap().connected);
}
