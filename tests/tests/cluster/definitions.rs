//! The definitions of our resources, as the API server and kubectl see them.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use zt_agent::resource;
use zt_tests::cluster::{self, Answer, Cluster};
use zt_tests::patience;

/// The shared cluster after it learnt our resources, or `None`: skipped.
#[track_caller]
pub fn with_definitions() -> Option<&'static Cluster> {
    static APPLIED: OnceLock<()> = OnceLock::new();
    let cluster = cluster::shared()?;
    APPLIED.get_or_init(|| {
        cluster
            .apply(&resource::manifest())
            .and_then(Answer::ok)
            .expect("kubectl succeeds");
        let wait = [
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "--all",
        ];
        cluster
            .kubectl(&wait)
            .and_then(Answer::ok)
            .expect("kubectl succeeds");
        wait_until_served(cluster);
    });
    Some(cluster)
}

/// They are served a moment after they are established.
fn wait_until_served(cluster: &Cluster) {
    let deadline = Instant::now() + patience::scaled(Duration::from_secs(30));
    loop {
        let answer = cluster.kubectl(&["get", "sap,idg"]).expect("kubectl runs");
        if answer.succeeded {
            return;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the clone has a root")
}

#[test]
fn the_documents_of_the_seeds_and_of_the_readme_apply_unchanged() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let data = root().join("zt-agent/testdata");
    let files = ["hanzo-core-policy.yaml", "every-form.yaml"]
        .map(|name| fs::read_to_string(data.join(name)).unwrap());
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let of_readme = policies_in(&readme);
    assert!(!of_readme.is_empty());
    for text in files.iter().map(String::as_str).chain(of_readme) {
        let answer = cluster.apply(text).unwrap();
        assert!(answer.succeeded, "{text}\n{}", answer.errors);
    }
    let listed = cluster.kubectl(&["get", "sap"]).unwrap().ok().unwrap();
    let seeds = listed
        .lines()
        .find(|line| line.starts_with("hanzo-core-policy"));
    assert!(
        seeds.is_some_and(|line| line.contains("enforce")),
        "{listed}"
    );
}

/// The YAML blocks of a page that have a policy in them.
fn policies_in(page: &str) -> Vec<&str> {
    let blocks = page.split("```yaml\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    blocks
        .filter(|block| block.contains("kind: ServiceAccessPolicy"))
        .collect()
}

#[test]
fn every_node_says_its_own_of_a_policy_and_kubectl_shows_the_sum() {
    let Some(cluster) = with_definitions() else {
        return;
    };
    let policy = "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {name: told}\nspec: {rules: []}\n";
    cluster.apply(policy).unwrap().ok().unwrap();
    for node in ["node-a", "node-b"] {
        tell(
            cluster,
            node,
            &format!(
                "{{nodes: [{{node: {node}, generation: 1, enforced: true, since: '2026-11-21T10:00:00Z'}}]}}"
            ),
        );
    }
    tell(cluster, "sum", "{enforced: 2/2, rules: 0}");
    let nodes = ["get", "sap", "told", "-o=jsonpath={.status.nodes[*].node}"];
    assert_eq!(
        cluster.kubectl(&nodes).unwrap().ok().unwrap(),
        "node-a node-b"
    );
    let listed = cluster
        .kubectl(&["get", "sap", "told"])
        .unwrap()
        .ok()
        .unwrap();
    let columns: Vec<&str> = listed.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(columns, ["NAME", "MODE", "RULES", "ENFORCED", "AGE", "WHY"]);
    let row: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["told", "enforce", "0", "2/2"], "{listed}");
}

fn tell(cluster: &Cluster, manager: &str, status: &str) {
    let text = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: told}}\nstatus: {status}\n"
    );
    cluster.apply_status(manager, &text).unwrap();
}
