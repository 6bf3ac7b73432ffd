//! The manifests of `deploy/`, as the API server takes them.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zt_tests::cluster::{Answer, Cluster};

use crate::definitions::with_definitions;

/// kubectl's flag for being an agent.
pub const ACCOUNT: &str = "--as=system:serviceaccount:zt-system:zt-agent";

fn overlay(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the clone has a root");
    root.join("deploy/overlays")
        .join(name)
        .display()
        .to_string()
}

/// Every overlay deploys the same objects: one test after the other has them.
pub fn in_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Applies one for good: the API server knows no nodes, so nothing starts.
pub fn apply(cluster: &Cluster, name: &str) {
    let answer = cluster
        .kubectl(&["apply", "-k", &overlay(name)])
        .expect("kubectl runs");
    assert!(answer.succeeded, "{name}: {answer:?}");
    // Warnings are the API server's advice about fields.
    assert!(!answer.errors.contains("Warning"), "{name}: {answer:?}");
}

#[test]
fn every_overlay_is_taken_and_names_the_configuration_that_it_has() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let _turn = in_turn();
    for (name, mode) in [
        ("observe", "mode: audit"),
        ("canary", "mode: audit"),
        ("enforce", "mode: enforce"),
    ] {
        // The namespace has to be there for a dry run of what is in it.
        apply(cluster, name);
        let dry = ["apply", "--dry-run=server", "-k", &overlay(name)];
        cluster.kubectl(&dry).unwrap().ok().unwrap();
        let volume =
            "-o=jsonpath={.spec.template.spec.volumes[?(@.name=='config')].configMap.name}";
        let get = [
            "get",
            "daemonset",
            "zt-agent",
            "--namespace=zt-system",
            volume,
        ];
        let named = cluster.kubectl(&get).unwrap().ok().unwrap();
        let get = [
            "get",
            "configmap",
            &named,
            "--namespace=zt-system",
            "-o=yaml",
        ];
        let config = cluster.kubectl(&get).unwrap().ok().unwrap();
        assert!(config.contains(mode), "{name}: {config}");
    }
}

/// How to get from one directory to another.
fn relative(from: &Path, to: &Path) -> String {
    let up = from.components().skip(1).map(|_| "../");
    let to = to.strip_prefix("/").expect("an absolute path");
    up.collect::<String>() + &to.display().to_string()
}

#[test]
fn a_node_may_be_prepared_for_its_next_boot() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let _turn = in_turn();
    apply(cluster, "enforce");
    let sandbox = zt_tests::Sandbox::new().unwrap();
    let here = sandbox.directory().canonicalize().unwrap();
    let of = |name: &str| {
        relative(
            &here,
            &Path::new(&overlay("..")).join(name).canonicalize().unwrap(),
        )
    };
    let kustomization = format!(
        "resources: [{}]\ncomponents: [{}]\n",
        of("overlays/enforce"),
        of("boot")
    );
    std::fs::write(here.join("kustomization.yaml"), kustomization).unwrap();
    let directory = here.display().to_string();
    let containers = "-o=jsonpath={.items[*].spec.template.spec.initContainers[*].args}";
    let dry = ["apply", "--dry-run=server", "-k", &directory, containers];
    let taken = cluster.kubectl(&dry).unwrap();
    assert!(
        taken.succeeded && !taken.errors.contains("Warning"),
        "{taken:?}"
    );
    assert!(
        taken
            .output
            .contains(r#"["boot","install","--root","/host""#),
        "{taken:?}"
    );
}

/// As the comment in it says.
fn with_plugin(name: &str, directory: &Path) -> String {
    let deploy = directory.join("deploy");
    let from = Path::new(&overlay(name)).join("../..");
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(from).arg(&deploy);
    assert!(copy.status().expect("cp runs").success());
    let overlay = deploy.join("overlays").join(name);
    let path = overlay.join("kustomization.yaml");
    let text = std::fs::read_to_string(&path).expect("it is text");
    let with = text.replace(
        "# components: [../../monitoring]",
        "components: [../../cni]",
    );
    assert_ne!(text, with);
    std::fs::write(&path, with).expect("it is a copy");
    overlay.display().to_string()
}

#[test]
fn the_plugin_is_installed_by_a_container_that_may_do_nothing_else() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let _turn = in_turn();
    let sandbox = zt_tests::Sandbox::new().unwrap();
    apply(cluster, "enforce");
    let overlay = with_plugin("enforce", &sandbox.directory());
    let dry = ["apply", "--dry-run=server", "-o=json", "-k", &overlay];
    let answer = cluster.kubectl(&dry).unwrap();
    assert!(
        answer.succeeded && !answer.errors.contains("Warning"),
        "{answer:?}"
    );
    let made: serde_json::Value = serde_json::from_str(&answer.output).unwrap();
    let objects = made["items"].as_array().unwrap();
    let agent = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let pod = &agent.unwrap()["spec"]["template"]["spec"];
    let [container] = &pod["initContainers"].as_array().unwrap()[..] else {
        panic!("{pod:#}")
    };
    assert_eq!(container["image"], pod["containers"][0]["image"]);
    assert_eq!(
        container["securityContext"]["capabilities"]["drop"][0],
        "ALL"
    );
    assert!(container["securityContext"]["capabilities"]["add"].is_null());
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mounted: Vec<_> = mounts.iter().map(|mount| &mount["name"]).collect();
    assert_eq!(mounted, ["cni-bin", "cni-networks"]);
}

/// What the agent may do anywhere: with what, and what.
const ANYWHERE: [(&str, &str); 10] = [
    ("endpointslices.discovery.k8s.io", "get list watch"),
    ("events.events.k8s.io", "create patch"),
    ("identitygroups.zt.hanzo.ai", "get list watch"),
    ("namespaces", "get list watch"),
    ("nodes", "get list watch"),
    ("pods", "get list watch"),
    ("serviceaccesspolicies.zt.hanzo.ai", "get list watch"),
    ("serviceaccesspolicies.zt.hanzo.ai/status", "patch"),
    ("servicecidrs.networking.k8s.io", "get list watch"),
    ("services", "get list watch"),
];

#[test]
fn the_agent_may_do_what_it_does_and_nothing_else() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let _turn = in_turn();
    apply(cluster, "observe");
    let anywhere = ANYWHERE.map(|(what, verbs)| (what.to_owned(), verbs.to_owned()));
    assert_eq!(allowed(cluster, "default"), anywhere);
    // Beside it the nodes' Leases: which of them, admission decides.
    let mut at_home = anywhere.to_vec();
    let leases = ("leases.coordination.k8s.io", "list create patch");
    at_home.push((leases.0.to_owned(), leases.1.to_owned()));
    at_home.sort_unstable();
    assert_eq!(allowed(cluster, "zt-system"), at_home);
}

/// What the agent's account may do in a namespace, without what everybody may: ask
/// who it is and what it may.
fn allowed(cluster: &Cluster, namespace: &str) -> Vec<(String, String)> {
    let list = ["auth", "can-i", "--list", "--namespace", namespace, ACCOUNT];
    let table = cluster
        .kubectl(&list)
        .and_then(Answer::ok)
        .expect("kubectl succeeds");
    let row = |line: &str| {
        let (what, rest) = line.split_once(' ')?;
        let (_, verbs) = rest.rsplit_once('[')?;
        let everybodys = what.is_empty() || what.starts_with("self");
        (!everybodys).then(|| (what.to_owned(), verbs.trim_end_matches(']').to_owned()))
    };
    let mut rows: Vec<_> = table.lines().skip(1).filter_map(row).collect();
    rows.sort_unstable();
    rows
}

const POLICY: &str = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata: {name: shop}
spec:
  rules:
    - from: {spiffe: spiffe://t/c/default/gateway}
      to:
        - spiffe: spiffe://t/c/default/postgres
          ports: [5432, \"8000-8010\"]
        - cidr: 203.0.113.0/24
          ports: [443]
    - from: []
      to:
        - spiffe: spiffe://t/c/default/postgres
          ports: any
";

#[test]
fn what_mirrors_a_policy_is_taken_as_network_policies() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let sandbox = zt_tests::Sandbox::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = sandbox.directory().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let policy = write("policy.yaml", POLICY);
    let config = write(
        "config.yaml",
        "identity: kubernetes\nkubernetes: {trustDomain: t, cluster: c}\n",
    );
    let rendered = Command::new(zt_tests::agent::built().unwrap())
        .args(["policy", "render-networkpolicy", "--config"])
        .args([&config, &policy])
        .output()
        .unwrap();
    let objects = String::from_utf8(rendered.stdout).unwrap();
    assert!(rendered.status.success(), "{objects}");
    let taken = ["apply", "--dry-run=server", "-o=name", "-f", "-"];
    let taken = cluster
        .kubectl_with(&taken, &objects)
        .unwrap()
        .ok()
        .unwrap();
    let names: Vec<&str> = taken.lines().collect();
    assert!(!names.is_empty(), "{objects}");
    let all = |name: &&str| name.starts_with("networkpolicy.networking.k8s.io/");
    assert!(names.iter().all(all), "{names:?}");
}
