//! The sandbox itself: everything connects while it lives, nothing is left after.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use zt_tests::patience::scaled;
use zt_tests::sandbox::sweep;
use zt_tests::workload::Udp;
use zt_tests::{Sandbox, Workload, cgroup};

const LIMIT: Duration = Duration::from_secs(2);

const NOTHING: [PathBuf; 0] = [];

/// A client and a server on one network, with the server's addresses.
fn pair(sandbox: &Sandbox) -> (Workload, Workload, Vec<SocketAddr>) {
    let network = sandbox.network(1).unwrap();
    let client = sandbox.workload(&network, "client", 10).unwrap();
    let server = sandbox.workload(&network, "server", 120).unwrap();
    let addresses = vec![
        SocketAddr::from((network.ipv4(120), 8080)),
        SocketAddr::from((network.ipv6(120), 8080)),
    ];
    (client, server, addresses)
}

/// Everything whose name starts with the sandbox's.
fn traces(name: &str) -> Vec<PathBuf> {
    let places = [
        cgroup::mount_point().unwrap(),
        "/run/netns".into(),
        "/run".into(),
    ];
    let entries = places
        .iter()
        .filter_map(|place| fs::read_dir(place).ok())
        .flatten()
        .flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(name))
        .map(|entry| entry.path())
        .collect()
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(path.to_str().unwrap())
}

#[test]
fn two_workloads_reach_each_other_over_tcp_and_udp_and_both_ip_versions() {
    let sandbox = Sandbox::new().unwrap();
    let (client, server, addresses) = pair(&sandbox);
    let mut serving = server.serve(&addresses, &addresses).unwrap();
    for to in addresses {
        let attempts = [
            client.tcp(to, LIMIT).unwrap(),
            client.udp(to, Udp::Connected, LIMIT).unwrap(),
            client.udp(to, Udp::SendTo, LIMIT).unwrap(),
        ];
        for attempt in attempts {
            assert_eq!(
                attempt.reply.as_deref(),
                Some("server:hello"),
                "{to} {attempt:?}"
            );
        }
        let ping = client.ping(to.ip(), LIMIT).unwrap();
        assert_eq!(ping.reply.as_deref(), Some("hello"), "{ping:?}");
    }
    let received = serving.received().unwrap();
    let count = |what: &str| {
        received
            .iter()
            .filter(|line| line.starts_with(what))
            .count()
    };
    assert_eq!(count("recv tcp 10.89.1.10:"), 1, "{received:#?}");
    assert_eq!(count("recv tcp [fd00:89:1::10]:"), 1, "{received:#?}");
    assert_eq!(count("recv udp 10.89.1.10:"), 2, "{received:#?}");
    assert_eq!(count("recv udp [fd00:89:1::10]:"), 2, "{received:#?}");
}

#[test]
fn an_ipv4_mapped_target_reaches_the_ipv4_server() {
    let sandbox = Sandbox::new().unwrap();
    let (client, server, addresses) = pair(&sandbox);
    let _serving = server.serve(&addresses[..1], &addresses[..1]).unwrap();
    let mapped = Ipv4Addr::new(10, 89, 1, 120).to_ipv6_mapped();
    let to = SocketAddr::from((mapped, 8080));
    assert!(client.tcp(to, LIMIT).unwrap().replied());
    assert!(client.udp(to, Udp::SendTo, LIMIT).unwrap().replied());
}

#[test]
fn a_client_chooses_its_own_address_and_the_size_of_a_datagram() {
    let sandbox = Sandbox::new().unwrap();
    let (client, server, addresses) = pair(&sandbox);
    let mut serving = server.serve(&addresses, &addresses).unwrap();
    let second = Ipv4Addr::new(10, 89, 1, 11);
    client.netns().unwrap().add_address(second.into()).unwrap();
    let to = addresses[0].to_string();
    let tcp = ["tcp", "--connect", &to, "--from", "10.89.1.11:7001"];
    assert!(client.ask(&tcp, LIMIT).unwrap().replied());
    let udp = ["udp", "--sendto", &to, "--from", "10.89.1.11:7002"];
    let large = client.ask(&[&udp[..], &["--size", "4000"]].concat(), LIMIT);
    assert_eq!(large.unwrap().reply.unwrap().len(), "server:".len() + 4000);
    let received = serving.received().unwrap().join("\n");
    for line in ["recv tcp 10.89.1.11:7001 ", "recv udp 10.89.1.11:7002 "] {
        assert!(received.contains(line), "{received}");
    }
}

#[test]
fn what_does_not_answer_is_told_by_its_error() {
    let sandbox = Sandbox::new().unwrap();
    let (client, _server, addresses) = pair(&sandbox);
    let refused = client.tcp(addresses[0], LIMIT).unwrap();
    assert_eq!(refused.errno.as_deref(), Some("ECONNREFUSED"));
    assert!(!refused.connected);
    // Nobody has that address: not even an answer to the question where it is.
    let nobody = SocketAddr::from(([10, 89, 1, 99], 8080));
    let silence = client.tcp(nobody, Duration::from_millis(200)).unwrap();
    assert_eq!(silence.errno.as_deref(), Some("TIMEOUT"));
}

#[test]
fn a_held_connection_is_used_again_until_its_server_ends() {
    let sandbox = Sandbox::new().unwrap();
    let (client, server, addresses) = pair(&sandbox);
    let mut serving = server.serve(&addresses, &[]).unwrap();
    let mut held = client.tcp_held(addresses[0], LIMIT).unwrap();
    assert!(held.first.replied());
    assert!(held.again().unwrap().replied());
    assert_eq!(
        serving.received().unwrap().len(),
        3,
        "one accept, two messages"
    );
    drop(serving);
    let last = held.again().unwrap();
    assert!(!last.replied() && last.errno.is_some(), "{last:?}");
}

#[test]
fn a_connect_loop_counts_successes_and_failures() {
    let sandbox = Sandbox::new().unwrap();
    let (client, server, addresses) = pair(&sandbox);
    let serving = server.serve(&addresses[..1], &[]).unwrap();
    let (duration, pause) = (scaled(Duration::from_millis(300)), Duration::from_millis(1));
    let looping = |to| client.tcp_loop(to, duration, pause, LIMIT).unwrap();
    let good = looping(addresses[0]).summary().unwrap();
    assert!(good.ok > 10 && good.failed.is_empty(), "{good:?}");
    drop(serving);
    let bad = looping(addresses[0]).summary().unwrap();
    assert_eq!(bad.ok, 0);
    assert!(bad.failed["ECONNREFUSED"] > 10, "{bad:?}");
}

#[test]
fn sockets_that_need_no_peer_are_tried_too() {
    let sandbox = Sandbox::new().unwrap();
    let (client, _server, _) = pair(&sandbox);
    for kind in ["v4", "v6", "packet"] {
        assert!(client.raw(kind).unwrap().connected, "{kind}");
    }
    let own = SocketAddr::from(([10, 89, 1, 10], 9000));
    let others = SocketAddr::from(([10, 89, 1, 11], 9000));
    for protocol in ["tcp", "udp"] {
        assert!(client.bind(protocol, own).unwrap().connected);
        let refused = client.bind(protocol, others).unwrap();
        assert_eq!(refused.errno.as_deref(), Some("EADDRNOTAVAIL"));
    }
}

#[test]
fn a_process_is_in_its_cgroup_and_namespace_and_a_cookie_tells_namespaces_apart() {
    let sandbox = Sandbox::new().unwrap();
    let (client, server, addresses) = pair(&sandbox);
    let serving = server.serve(&addresses, &[]).unwrap();
    let pid = serving.running().pid();
    let members = fs::read_to_string(server.cgroup().procs()).unwrap();
    assert_eq!(members.trim(), pid.to_string());
    let inode = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).unwrap().ino()
    };
    let theirs = inode(Path::new(&format!("/proc/{pid}/ns/net")));
    assert_eq!(theirs, inode(&server.netns().unwrap().path()));
    let cookie = |workload: &Workload| workload.netns().unwrap().cookie().unwrap();
    assert_ne!(cookie(&client), cookie(&server));
    assert_eq!(cookie(&client), cookie(&client));
}

#[test]
fn nothing_is_left_after_a_drop() {
    let sandbox = Sandbox::new().unwrap();
    let name = sandbox.name().to_owned();
    let (_client, server, addresses) = pair(&sandbox);
    let serving = server.serve(&addresses, &[]).unwrap();
    let bpffs = sandbox.bpffs().unwrap();
    let pins = bpffs.path().to_owned();
    fs::create_dir(pins.join("maps")).unwrap();
    assert!(is_mounted(&pins));
    assert_eq!(traces(&name).len(), 5, "{:?}", traces(&name));
    // The sandbox goes first, as when a test fails in between.
    let pid = serving.running().pid();
    drop(sandbox);
    assert_eq!(traces(&name), NOTHING);
    assert!(!is_mounted(&pins));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(status.is_empty() || status.contains("zombie"), "{status}");
}

#[test]
fn a_test_that_panics_leaves_nothing() {
    let name = std::thread::spawn(|| {
        let sandbox = Sandbox::new().unwrap();
        let _pair = pair(&sandbox);
        std::panic::panic_any(sandbox.name().to_owned());
    })
    .join()
    .unwrap_err();
    let name = name.downcast_ref::<String>().unwrap();
    assert_eq!(traces(name), NOTHING);
}

/// Makes by hand what a sandbox of this process would consist of.
fn leave_behind(pid: u32) -> String {
    let name = format!("zt-t{pid}-0");
    let cgroup = cgroup::mount_point().unwrap().join(&name);
    fs::create_dir_all(cgroup.join("client")).unwrap();
    fs::create_dir_all(Path::new("/run").join(&name)).unwrap();
    let netns = format!("{name}-client");
    let added = Command::new("ip").args(["netns", "add", &netns]).status();
    assert!(added.unwrap().success());
    name
}

fn sweep_well() {
    let problems = sweep();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn a_sweep_removes_the_leftovers_of_the_dead_and_not_of_the_living() {
    // One sandbox first: its own sweep is over then.
    let sandbox = Sandbox::new().unwrap();
    let mut living = Command::new("sleep").arg("600").spawn().unwrap();
    let mut dead = Command::new("sleep").arg("600").spawn().unwrap();
    let left_by_dead = leave_behind(dead.id());
    let left_by_living = leave_behind(living.id());
    dead.kill().unwrap();
    dead.wait().unwrap();
    sweep_well();
    assert_eq!(traces(&left_by_dead), NOTHING);
    assert_eq!(traces(&left_by_living).len(), 3);
    assert!(!traces(sandbox.name()).is_empty());
    living.kill().unwrap();
    living.wait().unwrap();
    sweep_well();
    assert_eq!(traces(&left_by_living), NOTHING);
}
