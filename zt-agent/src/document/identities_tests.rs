use super::*;

fn load(body: &str) -> Result<IdentityFile, Vec<Problem>> {
    let text = format!("apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\n{body}");
    parse(&SourceFile::new("i.yaml", text))
}

/// All problems, one per line: `line field: message | hint`.
fn lines(problems: &[Problem]) -> String {
    let line = |p: &Problem| {
        let hint = p.hint.as_deref().unwrap_or("-");
        format!("{} {}: {} | {hint}", p.at.line, p.field, p.message)
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn refusal(body: &str) -> String {
    lines(&load(body).expect_err("it loads"))
}

fn workload_refusal(fields: &str) -> String {
    refusal(&format!(
        "workloads: [{{spiffe: spiffe://td/a, {fields}}}]\n"
    ))
}

#[test]
fn every_form_is_understood() {
    let text = include_str!("../../testdata/identities.yaml");
    let file = parse(&SourceFile::new("i.yaml", text)).unwrap();
    let [iam, dns, client] = &*file.workloads else {
        panic!("{file:?}")
    };
    assert_eq!(iam.spiffe.as_str(), "spiffe://hanzo.ai/hanzo-k8s/hanzo/iam");
    assert_eq!(iam.cgroup, CgroupRef::Path("zt-demo/iam".into()));
    let addresses: [IpAddr; 2] = ["10.89.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
    assert_eq!(iam.addresses, addresses);
    assert_eq!(
        iam.network_namespace,
        Some(NamespaceRef::Name("zt-demo-iam".into()))
    );
    assert_eq!(
        (iam.ports.clone(), iam.mode, iam.raw_sockets),
        (None, None, false)
    );

    assert_eq!(dns.cgroup, CgroupRef::SystemdUnit("dns@1.service".into()));
    let ports = vec![
        (Protocol::Tcp, 53),
        (Protocol::Tcp, 8080),
        (Protocol::Udp, 53),
    ];
    assert_eq!(dns.ports, Some(ports));
    assert_eq!((dns.mode, dns.raw_sockets), (Some(Mode::Audit), true));
    assert_eq!(
        dns.network_namespace,
        Some(NamespaceRef::Path("/proc/self/ns/net".into()))
    );
    assert_eq!(client.addresses, [] as [IpAddr; 0]);

    let parties: Vec<&Party> = file.endpoints.iter().map(|e| &e.party).collect();
    let remote = Party::Workload("spiffe://td/elsewhere".parse().unwrap());
    assert_eq!(parties, [&remote, &Party::Reserved(identity::APISERVER)]);
    assert_eq!(file.endpoints[1].ports, Some(vec![(Protocol::Tcp, 6443)]));
    assert_eq!(file.warnings, []);
}

#[test]
fn a_file_that_says_nothing_is_not_a_node_without_workloads() {
    for text in ["", "# saved in a moment\n"] {
        let problems = parse(&SourceFile::new("i.yaml", text)).unwrap_err();
        assert!(lines(&problems).contains("holds no NodeIdentities document"));
    }
    assert_eq!(load("workloads: []\n").unwrap(), IdentityFile::default());
    assert_eq!(load("").unwrap(), IdentityFile::default());
    let two = refusal("---\napiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\n");
    assert!(two.contains("there can be one"), "{two}");
}

#[test]
fn cgroups_are_named_without_detours() {
    for (cgroup, expected) in [
        ("cgroup: ../x", "`..` is not allowed"),
        ("cgroup: /sys/fs/cgroup/../x", "`..` is not allowed"),
        ("cgroup: a/../../b", "`..` is not allowed"),
        ("cgroup: /", "is the root cgroup"),
        ("cgroup: \"\"", "is the root cgroup"),
        ("cgroup: ./.", "is the root cgroup"),
        ("cgroup: /sys/fs/cgroup/", "is the root cgroup"),
        ("cgroup: \"a\\0b\"", "no NUL"),
        ("systemd: iam", "is no name of a systemd unit"),
        ("systemd: .service", "is no name of a systemd unit"),
        ("systemd: ../x.service", "is no name of a systemd unit"),
        (
            "systemd: a.service, cgroup: b",
            "systemd cannot stand beside cgroup",
        ),
        ("mode: audit", "needs one of cgroup, systemd"),
    ] {
        let refused = workload_refusal(cgroup);
        assert!(refused.contains(expected), "{cgroup}: {refused}");
    }
}

#[test]
fn a_cgroup_has_one_identity_however_it_is_spelled() {
    let refused = refusal(
        "workloads:\n- {spiffe: spiffe://td/a, cgroup: zt/a}\n- {spiffe: spiffe://td/b, cgroup: ./zt//a/}\n",
    );
    assert!(
        refused.starts_with("5 workloads[2].cgroup: another workload has this cgroup"),
        "{refused}"
    );
    let units = "workloads:\n- {spiffe: spiffe://td/a, systemd: a.service}\n- {spiffe: spiffe://td/b, systemd: a.service}\n";
    assert!(refusal(units).contains("workloads[2].systemd"));
}

#[test]
fn addresses_must_be_somebodys_own() {
    for (addresses, expected) in [
        ("[127.0.0.1]", "a loopback address belongs to nobody alone"),
        ("[\"::1\"]", "a loopback address"),
        ("[\"::ffff:127.0.0.1\"]", "a loopback address"),
        ("[0.0.0.0]", "the unspecified address"),
        ("[\"::\"]", "the unspecified address"),
        ("[224.0.0.1]", "a multicast address"),
        ("[\"ff02::1\"]", "a multicast address"),
        ("[255.255.255.255]", "the broadcast address"),
        ("[10.0.0.0/8]", "without a prefix length"),
        ("[localhost]", "is no IP address"),
        ("[10.0.0]", "is no IP address"),
        ("[5]", "put it in double quotes"),
        ("10.0.0.1", "must be a list"),
    ] {
        let refused = workload_refusal(&format!("cgroup: a, addresses: {addresses}"));
        assert!(refused.contains(expected), "{addresses}: {refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
    let both = workload_refusal("cgroup: a, addresses: [0.0.0.0], ports: [80]");
    assert!(both.contains("unspecified"), "{both}");
}

#[test]
fn loopback_with_ports_is_a_laptops_service() {
    let file = load(
        "workloads: [{spiffe: spiffe://td/a, cgroup: a, addresses: [127.0.0.1, \"::ffff:127.0.0.1\"], ports: [8080]}]\n",
    );
    assert_eq!(
        file.unwrap().workloads[0].addresses,
        [IpAddr::from([127, 0, 0, 1])]
    );
}

#[test]
fn ports_are_numbers_with_a_protocol() {
    for (ports, expected) in [
        ("[0]", "there is no port 0"),
        ("[65536]", "the highest port"),
        ("[\"0/tcp\"]", "there is no port 0"),
        ("[\"80/sctp\"]", "is no port with a protocol"),
        ("[\"/tcp\"]", "is no port with a protocol"),
        ("[\"80/\"]", "is no port with a protocol"),
        ("[\"80-90/tcp\"]", "is no port with a protocol"),
        ("[any]", "is no port with a protocol"),
        ("[]", "an empty list of ports owns nothing"),
        ("80", "must be a list"),
    ] {
        let refused = workload_refusal(&format!(
            "cgroup: a, addresses: [127.0.0.1], ports: {ports}"
        ));
        assert!(refused.contains(expected), "{ports}: {refused}");
        assert_eq!(refused.lines().count(), 1, "{ports}: {refused}");
    }
    assert!(workload_refusal("cgroup: a, ports: [80]").contains("ports without addresses"));
}

#[test]
fn namespaces_are_names_or_absolute_paths() {
    for bad in ["\"\"", "a/b", "../x", "/run/../x", "."] {
        let refused = workload_refusal(&format!("cgroup: a, networkNamespace: {bad}"));
        assert!(
            refused.contains("workloads[1].networkNamespace"),
            "{bad}: {refused}"
        );
    }
}

#[test]
fn endpoints_name_whom_a_person_may_declare() {
    for (endpoint, expected) in [
        (
            "{reserved: world, addresses: [10.0.0.1]}",
            "cannot be declared by hand",
        ),
        (
            "{reserved: masqueraded, addresses: [10.0.0.1]}",
            "cannot be declared by hand",
        ),
        (
            "{spiffe: spiffe://td/a, reserved: host, addresses: [10.0.0.1]}",
            "cannot stand beside",
        ),
        (
            "{spiffe: spiffe://td/*, addresses: [10.0.0.1]}",
            "endpoints[1].spiffe",
        ),
        ("{spiffe: spiffe://td/a}", "has no field \"addresses\""),
        ("{addresses: [10.0.0.1]}", "needs one of spiffe, reserved"),
        (
            "{spiffe: spiffe://td/a, adresses: [10.0.0.1]}",
            "did you mean \"addresses\"?",
        ),
    ] {
        let refused = refusal(&format!("endpoints: [{endpoint}]\n"));
        assert!(refused.contains(expected), "{endpoint}: {refused}");
    }
}

#[test]
fn two_at_one_address_are_a_warning_and_replicas_are_none() {
    let text = |second: &str| {
        format!(
            "workloads: [{{spiffe: spiffe://td/a, cgroup: a, addresses: [10.0.0.1]}}]\n\
             endpoints: [{{spiffe: {second}, addresses: [10.0.0.1]}}]\n"
        )
    };
    let warnings = load(&text("spiffe://td/b")).unwrap().warnings;
    assert!(
        lines(&warnings).contains("10.0.0.1 belongs to another one too"),
        "{warnings:?}"
    );
    assert_eq!((warnings[0].at.line, warnings.len()), (4, 1));
    assert_eq!(load(&text("spiffe://td/a")).unwrap().warnings, []);
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let refused = refusal(
        "workloads:\n- {spiffe: x, cgroup: ../a, addresses: [no, 0.0.0.0], ports: [0], mode: on, rawSockets: yes, networkNamespace: a/b}\n- 5\nendpoint: []\n",
    );
    for field in [
        "endpoint: unknown field",
        "workloads[1].spiffe",
        "workloads[1].cgroup",
        "workloads[1].addresses[1]",
        "workloads[1].addresses[2]",
        "workloads[1].ports[1]",
        "workloads[1].mode",
        "workloads[1].rawSockets",
        "workloads[1].networkNamespace",
        "workloads[2]",
    ] {
        assert!(refused.contains(field), "{field}: {refused}");
    }
}
