//! The configuration file.

use std::path::{Component, Path};

use zt_agent::{
    document::{
        Config, SourceFile,
        config::{IdentityConfig, Interfaces, Limits, POLICY_PATH_VARIABLE},
    },
    model::Problem,
};

use crate::document;

/// Where the file is said to lie.
const DIRECTORY: &str = "/etc/zt-agent";
const ELSEWHERE: &str = "/elsewhere/policies";

/// Reads `bytes` as a configuration file and checks what comes of it.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    let Some(file) = document::open(bytes) else {
        return;
    };
    match parse(&file, None) {
        Ok(config) => {
            check_paths(&config);
            check_audit(&config);
            check_limits(&config.limits);
            check_interfaces(&config.interfaces);
            check_variable(&file, config);
        }
        Err(problems) => document::check_refusal(&file, &problems),
    }
}

fn parse(file: &SourceFile, policies: Option<&str>) -> Result<Config, Vec<Problem>> {
    Config::parse(file, Path::new(DIRECTORY), |name| {
        let wanted = name == POLICY_PATH_VARIABLE;
        policies.filter(|_| wanted).map(str::to_owned)
    })
}

fn check_paths(config: &Config) {
    let single = [
        &config.pin_directory,
        &config.state_directory,
        &config.runtime_directory,
        &config.identities,
        &config.audit.file,
    ];
    let kubeconfig = match &config.identity {
        IdentityConfig::Kubernetes(kubernetes) => kubernetes.kubeconfig.as_ref(),
        IdentityConfig::File => None,
    };
    for path in (single.into_iter().chain(&config.policies)).chain(kubeconfig) {
        assert!(path.is_absolute(), "{path:?} is relative");
        assert!(!has_nul(path), "{path:?}");
    }
    let root = &config.cgroup_root;
    assert!(!has_nul(root), "{root:?}");
    assert!(
        root.components().all(|part| part != Component::ParentDir),
        "{root:?} leads out of the cgroup mount"
    );
    let is_root = root.as_os_str().is_empty() || root == Path::new("/");
    assert!(
        !is_root || config.allow_root_cgroup,
        "the root cgroup without leave"
    );
    if let Some(node) = &config.node {
        let is_name = !node.is_empty() && !node.chars().any(char::is_control);
        assert!(is_name, "{node:?} names the node");
    }
}

fn has_nul(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

fn check_audit(config: &Config) {
    let audit = &config.audit;
    assert!(audit.rotate_bytes >= 4096, "{audit:?}");
    assert!(audit.keep_files >= 1, "{audit:?}");
    assert!(audit.checkpoint.as_secs() >= 1, "{audit:?}");
    for range in &config.cluster_ranges {
        assert_eq!(*range, range.trunc(), "bits behind a prefix");
    }
}

fn check_limits(limits: &Limits) {
    let sizes = [
        limits.policy_entries,
        limits.addresses,
        limits.cidrs,
        limits.workloads,
        limits.flows,
        limits.flow_share,
    ];
    assert!(!sizes.contains(&0), "a map without room: {limits:?}");
    assert!(limits.flow_share <= limits.flows, "{limits:?}");
    let ring = limits.ring_bytes;
    assert!(ring.is_power_of_two() && ring >= 4096, "a ring of {ring}");
}

/// A pattern names interfaces that the kernel can have, and never all of them.
fn check_interfaces(interfaces: &Interfaces) {
    assert_eq!(interfaces.mark.count_ones(), 1, "{interfaces:?}");
    for pattern in &interfaces.managed {
        let text = pattern.text();
        assert!((1..=15).contains(&text.len()), "{pattern}");
        assert!(!text.contains(['*', '/', ':', ' ', '\n']), "{pattern}");
        assert!(!pattern.matches("lo"), "{pattern} governs loopback");
    }
}

/// The variable replaces the policies, and nothing else.
fn check_variable(file: &SourceFile, config: Config) {
    let changed = parse(file, Some(ELSEWHERE));
    let expected = Config {
        policies: vec![ELSEWHERE.into()],
        ..config
    };
    assert_eq!(changed, Ok(expected), "with {POLICY_PATH_VARIABLE}");
}
