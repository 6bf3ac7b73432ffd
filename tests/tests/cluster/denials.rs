//! Denials are Events on the pods that met them.

use serde_json::Value;
use zt_tests::cluster;

use crate::stage::{Driver, SLOW, Stage, wait};

#[test]
fn a_denial_is_an_event_on_its_pod_once() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 33);
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Cgroupfs, 11);
    let other = stage.pod("other", "other", Driver::Cgroupfs, 12);
    let _serving = stage.serve(&server);
    stage.agent.start().unwrap();
    stage.passes(&client.workload, &server);
    for _ in 0..5 {
        stage.is_denied(&other.workload, &server);
    }
    let events = |pod: &str| {
        let all = stage.kubectl(&["get", "events.events.k8s.io", "-o=json"]);
        let all: Value = serde_json::from_str(&all).unwrap();
        let all = all["items"].as_array().unwrap().clone();
        let of_pod = all.into_iter().filter(|event| {
            event["regarding"]["name"] == pod && event["reportingController"] == "zt.hanzo.ai/agent"
        });
        of_pod.collect::<Vec<Value>>()
    };
    wait(SLOW, || !events("other").is_empty());
    let found = events("other");
    let [event] = &found[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(
        (&event["reason"], &event["type"]),
        (&"Denied".into(), &"Warning".into())
    );
    let note = event["note"].as_str().unwrap();
    let identity = format!("spiffe://t/c/{}/server", stage.namespace);
    assert!(
        note.contains(&identity) && note.ends_with("port 8080: no-policy"),
        "{note}"
    );
    // As people see it.
    let described = stage.kubectl(&["describe", "pod", "other"]);
    assert!(described.contains("no-policy"), "{described}");
    assert!(events("client").is_empty() && events("server").is_empty());
}
