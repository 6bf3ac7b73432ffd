use super::*;

fn parse_with(text: &str, variable: Option<&str>) -> Result<Config, Vec<Problem>> {
    let lookup = |name: &str| match name {
        POLICY_PATH_VARIABLE => variable.map(str::to_owned),
        NODE_VARIABLE => None,
        other => panic!("{other} is looked up"),
    };
    Config::parse(
        &SourceFile::new("c.yaml", text),
        Path::new("/etc/zt"),
        lookup,
    )
}

fn load(text: &str) -> Config {
    parse_with(text, None).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn refusal(text: &str) -> String {
    let problems = parse_with(text, None).expect_err("it loads");
    problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect()
}

#[test]
fn an_empty_file_is_all_defaults() {
    for text in ["", "# nothing\n", "{}\n"] {
        let config = load(text);
        assert_eq!(config.identities, Path::new("/etc/zt/identities.yaml"));
        assert_eq!(config.policies, [Path::new("/etc/zt/policies")]);
        let defaults = Config {
            identities: config.identities.clone(),
            policies: config.policies.clone(),
            ..Config::default()
        };
        assert_eq!(config, defaults);
    }
}

#[test]
fn the_documented_file_says_the_defaults() {
    let config = load(include_str!("../../testdata/agent.yaml"));
    let expected = Config {
        node: Some("laptop".into()),
        ..load("")
    };
    assert_eq!(config, expected);
}

#[test]
fn every_field_is_read() {
    let config = load(
        "node: n\nmode: audit\ncgroupRoot: /sys/fs/cgroup/kubepods.slice/\nallowRootCgroup: true\n\
         pinDirectory: /sys/fs/bpf/x\nstateDirectory: s\nruntimeDirectory: /r\nidentity: file\nidentities: i\n\
         policies: [a, /b]\nclusterRanges: [10.244.0.0/16, \"fd00::/64\"]\nhostMayReach: false\n\
         audit: {file: a.jsonl, rotateBytes: 4096, keepFiles: 1, foldSeconds: 0, checkpointSeconds: 1}\n\
         verifySeconds: 7\n\
         listen: \"[::1]:1\"\n\
         limits: {policyEntries: 1, addresses: 2, cidrs: 3, workloads: 4, flows: 6, flowShare: 5, ringBytes: 4096}\n\
         interfaces: {managed: [veth*, cali0], mark: 32}\n",
    );
    let expected = Config {
        node: Some("n".into()),
        mode: Mode::Audit,
        cgroup_root: "/sys/fs/cgroup/kubepods.slice".into(),
        allow_root_cgroup: true,
        pin_directory: "/sys/fs/bpf/x".into(),
        state_directory: "/etc/zt/s".into(),
        runtime_directory: "/r".into(),
        identity: IdentityConfig::File,
        identities: "/etc/zt/i".into(),
        policies: vec!["/etc/zt/a".into(), "/b".into()],
        cluster_ranges: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00::/64".parse().unwrap(),
        ],
        host_may_reach: false,
        audit: AuditConfig {
            file: "/etc/zt/a.jsonl".into(),
            rotate_bytes: 4096,
            keep_files: 1,
            fold: Duration::ZERO,
            checkpoint: Duration::from_secs(1),
        },
        verify: Duration::from_secs(7),
        listen: "[::1]:1".parse().unwrap(),
        limits: Limits {
            policy_entries: 1,
            addresses: 2,
            cidrs: 3,
            workloads: 4,
            flows: 6,
            flow_share: 5,
            ring_bytes: 4096,
        },
        interfaces: Interfaces {
            managed: vec!["veth*".parse().unwrap(), "cali0".parse().unwrap()],
            mark: 32,
        },
    };
    assert_eq!(config, expected);
}

#[test]
fn a_managed_interface_has_a_name_and_a_mark_is_one_bit() {
    for managed in [
        "\"*\"",
        "lo",
        "\"\"",
        "a*b",
        "a/b",
        "\"a b\"",
        "sixteen-letters-x",
    ] {
        let refused = refusal(&format!("interfaces: {{managed: [{managed}]}}\n"));
        assert!(refused.contains("interfaces.managed[1]"), "{refused}");
    }
    assert!(refusal("interfaces: {mark: 48}\n").contains("single bit"));
}

#[test]
fn the_environment_replaces_the_policy_paths() {
    let text = "policies: [a]\n";
    let paths = |variable| parse_with(text, variable).unwrap().policies;
    assert_eq!(
        paths(Some("/etc/zt/policies/")),
        [Path::new("/etc/zt/policies/")]
    );
    assert_eq!(paths(Some("/a::b")), [Path::new("/a"), Path::new("b")]);
    assert_eq!(paths(Some("")), [Path::new("/etc/zt/a")]);
}

#[test]
fn the_root_cgroup_is_governed_only_on_demand() {
    for root in [
        "/",
        "\"\"",
        ".",
        "/sys/fs/cgroup",
        "//",
        "/sys/fs/cgroup/unified/",
    ] {
        let refused = refusal(&format!("cgroupRoot: {root}\n"));
        assert!(
            refused.contains("c.yaml:1:13: error: cgroupRoot: is the root cgroup"),
            "{refused}"
        );
        let config = load(&format!("cgroupRoot: {root}\nallowRootCgroup: true\n"));
        assert_eq!(config.cgroup_root, Path::new(""));
    }
    assert!(refusal("cgroupRoot: a/../..\n").contains("`..` is not allowed"));
}

#[test]
fn what_cannot_be_is_refused() {
    for (text, expected) in [
        ("mode: off", "none of enforce, audit"),
        ("mod: audit", "did you mean \"mode\"?"),
        ("node: \"\"", "is no name"),
        ("pinDirectory: pins", "must be an absolute path"),
        ("identities: \"\"", "is no path"),
        ("policies: policies/", "must be a list"),
        ("clusterRanges: [10.0.0.1/8]", "write 10.0.0.0/8"),
        ("hostMayReach: yes", "must be true or false"),
        ("listen: 8055", "put it in double quotes"),
        ("listen: localhost:8055", "write it like 127.0.0.1:8055"),
        (
            "audit: {rotateBytes: 0}",
            "audit.rotateBytes: 0 is too small",
        ),
        ("audit: {keepFiles: 0}", "too small"),
        ("audit: {checkpointSeconds: 0}", "too small"),
        ("audit: {foldSeconds: -1}", "must be a whole number"),
        ("limits: {flows: 0}", "limits.flows: 0 is too small"),
        ("limits: {cidrs: 4294967296}", "too large"),
        ("limits: {ringBytes: 5000}", "write 8192"),
        ("limits: {ringBytes: 2048}", "write 4096"),
        ("limits: {ringBytes: 4294967295}", "not a power of two"),
        (
            "limits: {flows: 10, flowShare: 11}",
            "limits.flowShare: one workload's share",
        ),
        ("limits: ", "has no value"),
        ("[]", "must be a mapping"),
        ("{}\n---\n{}", "one document"),
    ] {
        let refused = refusal(text);
        assert!(refused.contains(expected), "{text}: {refused}");
    }
}

#[test]
fn fewer_flows_lower_the_default_share() {
    assert_eq!(load("limits: {flows: 100}\n").limits.flow_share, 100);
}

fn kubernetes(fields: &str) -> KubernetesConfig {
    let config = load(&format!("identity: kubernetes\nkubernetes: {{{fields}}}\n"));
    match config.identity {
        IdentityConfig::Kubernetes(kubernetes) => kubernetes,
        IdentityConfig::File => panic!("from a file"),
    }
}

#[test]
fn identities_may_come_from_a_cluster() {
    let config = kubernetes("trustDomain: hanzo.ai, cluster: hanzo-k8s");
    assert_eq!(config.kubeconfig, None);
    let id = config.template.identity("hanzo", "iam").unwrap();
    assert_eq!(id.as_str(), "spiffe://hanzo.ai/hanzo-k8s/hanzo/iam");

    let config = kubernetes(
        "trustDomain: td, cluster: c, kubeconfig: k, template: \"spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}\"",
    );
    assert_eq!(config.kubeconfig.as_deref(), Some(Path::new("/etc/zt/k")));
    let id = config.template.identity("hanzo", "iam").unwrap();
    assert_eq!(id.as_str(), "spiffe://td/ns/hanzo/sa/iam");
}

#[test]
fn with_a_cluster_its_policies_count_and_files_only_where_they_are_named() {
    let read = |more: &str| {
        let section = "identity: kubernetes\nkubernetes: {trustDomain: td, cluster: c";
        let config = load(&format!("{section}{more}\n"));
        (config.identity.has_policies(), config.policies)
    };
    let paths = |name: &str| vec![Path::new("/etc/zt").join(name)];
    assert_eq!(read("}"), (true, vec![]));
    assert_eq!(read("}\npolicies: [a]"), (true, paths("a")));
    assert_eq!(read(", policies: false}"), (false, paths("policies")));
    let by_files = load("");
    assert!(!by_files.identity.has_policies() && by_files.policies == paths("policies"));
}

#[test]
fn a_wrong_cluster_is_told_where_it_stands() {
    let section = "identity: kubernetes\nkubernetes:\n  trustDomain: td\n  cluster: c\n";
    for (text, expected) in [
        ("identity: kube", "none of file, kubernetes"),
        ("identity: kubernetes", "kubernetes"),
        (
            "identity: kubernetes\nkubernetes: {cluster: c}",
            "trustDomain",
        ),
        (
            "identity: kubernetes\nkubernetes: {trustDomain: td}",
            "cluster",
        ),
        (
            "kubernetes: {trustDomain: td, cluster: c}",
            "c.yaml:1:13: error: kubernetes: is not read",
        ),
        (
            &format!("{section}identities: i"),
            "c.yaml:5:13: error: identities: is not read",
        ),
        (
            &format!("{section}  template: spiffe://td/x"),
            "c.yaml:5:13: error: kubernetes.template: of the template for identities: {namespace} must be a whole segment",
        ),
        (
            &format!("{section}  template: \"spiffe://td/{{namespace}}/{{pod}}\""),
            "{pod} is no variable",
        ),
        (&format!("{section}  token: x"), "kubernetes.token"),
        (
            "identity: kubernetes\nkubernetes: {trustDomain: TD, cluster: c}",
            "lower case",
        ),
    ] {
        let refused = refusal(text);
        assert!(refused.contains(expected), "{text}: {refused}");
    }
}

#[test]
fn the_environment_names_the_node_of_a_daemon_set() {
    let parse = |text: &str, node: &str| {
        let lookup = |name: &str| (name == NODE_VARIABLE).then(|| node.to_owned());
        let file = SourceFile::new("c.yaml", text);
        Config::parse(&file, Path::new("/etc/zt"), lookup)
            .unwrap()
            .node
    };
    assert_eq!(parse("node: a\n", "b").as_deref(), Some("b"));
    assert_eq!(parse("node: a\n", "").as_deref(), Some("a"));
    assert_eq!(parse("", "b").as_deref(), Some("b"));
}
