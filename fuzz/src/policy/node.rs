//! The policies compiled for a small node.

use zt_agent::{
    compile::{self, Tables},
    model::{
        Endpoint, Mode, NodeModel, Numbers, Party, Policy, RuleAction, SpiffeId, WorkloadSpec,
    },
};
use zt_common::{
    codes::{Action, Protocol},
    identity,
    policy::Entry,
};

/// They compile, in any order to the same tables, and nothing is allowed that
/// no rule allows.
pub fn check(policies: &[Policy]) {
    let mut model = node();
    model.policies = policies.to_vec();
    let numbers = numbers(&model);
    let tables = compiled(&model, &numbers);
    model.policies.reverse();
    assert_eq!(
        tables,
        compiled(&model, &numbers),
        "the order of the policies matters"
    );
    if !policies.iter().any(can_allow) {
        let entries = tables.policy.values().chain(tables.range.values());
        for entry in entries {
            assert!(!allows(entry), "allowed by no rule: {entry:?}");
        }
    }
}

/// An empty list selects nobody.
fn can_allow(policy: &Policy) -> bool {
    policy.rules.iter().any(|rule| {
        rule.action == RuleAction::Allow
            && !rule.from.is_empty()
            && rule.to.iter().any(|target| !target.selectors.is_empty())
    })
}

fn allows(entry: &Entry) -> bool {
    [entry.now, entry.would]
        .iter()
        .any(|side| side.action == Action::Allow as u8)
}

fn compiled(model: &NodeModel, numbers: &Numbers) -> Tables {
    let compiled = compile::compile(model, numbers);
    let compiled = compiled.unwrap_or_else(|error| panic!("refused: {error}"));
    compiled.tables
}

fn numbers(model: &NodeModel) -> Numbers {
    let needs = compile::names(model);
    let mut numbers = Numbers::default();
    for name in &needs.names {
        (numbers.intern(name)).unwrap_or_else(|error| panic!("{error:?}"));
    }
    for rule in &needs.rules {
        (numbers.intern_rule(rule)).unwrap_or_else(|error| panic!("{error:?}"));
    }
    numbers
}

/// Two workloads here, one elsewhere, one address that two share, and the
/// cluster's API; their names are in the corpus and in the dictionary.
fn node() -> NodeModel {
    let workload = |name, cgroup, mode, netns| WorkloadSpec {
        identity: spiffe(name),
        cgroup,
        path: format!("demo/{cgroup}").into(),
        mode,
        raw_sockets: false,
        netns,
    };
    let at = |ip: [u8; 4], party, cgroup, ports| Endpoint {
        ip: ip.into(),
        party,
        cgroup,
        ports,
        target: None,
    };
    let elsewhere = |name| Party::Workload(spiffe(name));
    NodeModel {
        mode: Mode::Enforce,
        workloads: vec![
            workload("spiffe://td/a/one", 11, Mode::Enforce, Some(7)),
            workload("spiffe://td/c/ns/postgres", 12, Mode::Audit, None),
        ],
        endpoints: vec![
            at(
                [10, 0, 0, 1],
                elsewhere("spiffe://td/a/one"),
                Some(11),
                None,
            ),
            at(
                [10, 0, 0, 2],
                elsewhere("spiffe://td/c/ns/postgres"),
                Some(12),
                Some(vec![(Protocol::Tcp, 5432)]),
            ),
            at([10, 0, 0, 2], elsewhere("spiffe://td/b"), None, None),
            at(
                [10, 0, 0, 9],
                Party::Reserved(identity::APISERVER),
                None,
                None,
            ),
        ],
        interfaces: Vec::new(),
        host_netns: None,
        departed: Vec::new(),
        node_addresses: vec![[10, 0, 0, 2].into()],
        cluster_ranges: "10.0.0.0/8".parse().into_iter().collect(),
        policies: Vec::new(),
        boot_offset: 1_700_000_000_000_000_000,
        set_back_from: 0,
    }
}

fn spiffe(text: &str) -> SpiffeId {
    (text.parse()).unwrap_or_else(|error| panic!("{text}: {error}"))
}
