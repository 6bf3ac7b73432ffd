//! A node that was booted: nothing is pinned any more, and pods run before the
//! agent's does.

use std::{fs, net::SocketAddr};

use zt_tests::{Workload, cluster};

use crate::stage::{Driver, PATIENT, SLOW, Stage, wait};

#[test]
fn what_was_enforced_is_restored_before_there_is_an_agent() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 39);
    let node = stage.network.bridge().clone();
    let address = format!("{}/24", stage.network.ipv4(1));
    node.ip(&["address", "add", &address, "dev", "br0"])
        .unwrap();
    let server = stage.pod("server", "server", Driver::Systemd, 10);
    let client = stage.pod("client", "client", Driver::Systemd, 11);
    let _serving = stage.serve(&server);
    // The agent's own pod, and others on the node's network.
    let uid = stage.unbound_host_object("daemon", "other");
    let pod = stage.cgroup(&uid, Driver::Systemd);
    let container = stage.container(&pod, Driver::Systemd);
    let daemon = Workload::sharing("daemon", container, Some(node.clone()));
    let at_node = SocketAddr::from((stage.network.ipv4(1), 6443));
    stage.agent.start().unwrap();
    stage.until(&client.workload, &server, true);
    stage.agent.stop().unwrap();

    // What a boot leaves: neither pins nor what is below /run.
    let on_node = |arguments: &[&str]| {
        let answer = stage.agent.ask_in(arguments, Some(&node)).unwrap();
        assert!(answer.is_success(), "{}", answer.summary());
        // Nobody is known, which is no news.
        assert!(
            !answer.errors.contains("selects nobody"),
            "{}",
            answer.errors
        );
        answer.output
    };
    on_node(&["cleanup"]);
    let runtime = stage.sandbox.directory().join("run");
    fs::remove_dir_all(&runtime).unwrap();
    stage.passes(&client.workload, &server);

    let said = on_node(&["boot", "restore"]);
    assert!(
        said.starts_with("generation 1 is in force below "),
        "{said}"
    );
    let denied = stage.connect(&client.workload, &server);
    assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{denied:?}");
    // Whoever serves the node and is on its network comes up.
    let _api_server = daemon.serve(&[at_node], &[]).unwrap();
    assert!(daemon.tcp(at_node, PATIENT).unwrap().replied());
    // A second time there is nothing to do.
    assert!(on_node(&["boot", "restore"]).starts_with("generation 1 is"));
    stage.is_denied(&client.workload, &server);

    stage.agent.start().unwrap();
    stage.until(&client.workload, &server, true);
    wait(SLOW, || {
        stage
            .records()
            .iter()
            .any(|record| record["reason"] == "unenrolled")
    });
}
