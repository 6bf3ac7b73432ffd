//! Which interface of the node leads to which workload, and that changes of
//! links are seen.
//!
//! The bridge's namespace stands for the node: the code under test runs in it.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
    time::Duration,
};

use zt_agent::{
    netlink::{
        links,
        watch::{Change, Watch},
    },
    source::interfaces::{self, Coverage, Covered, Interfaces, Namespace},
};
use zt_tests::{
    Sandbox,
    netns::{Netns, Network},
    patience::scaled,
};

/// For what must happen.
const PATIENT: Duration = Duration::from_secs(10);

/// What the agent on the bridge's namespace finds for a workload.
fn find(network: &Network, workload: &Netns) -> Namespace {
    let paths = [workload.path()];
    let mut found = network
        .bridge()
        .enter(|| Ok(interfaces::find(&paths)?))
        .unwrap();
    found.remove(0).unwrap()
}

fn coverage(network: &Network, workload: &Netns) -> Vec<Coverage> {
    match find(network, workload).interfaces {
        Interfaces::Workload(coverage) => coverage,
        Interfaces::Node => panic!("it is not the node's namespace"),
    }
}

/// The only one.
fn covered(network: &Network, workload: &Netns) -> Covered {
    match &coverage(network, workload)[..] {
        [Coverage::Covered(covered)] => covered.clone(),
        other => panic!("{other:?}"),
    }
}

fn why_not(coverage: &[Coverage], of: &str) -> String {
    let why = coverage.iter().find_map(|one| match one {
        Coverage::Uncovered { name, why } if name == of => Some(why.clone()),
        _ => None,
    });
    why.unwrap_or_else(|| panic!("{of} is not uncovered: {coverage:?}"))
}

fn index_on_bridge(network: &Network, name: &str) -> u32 {
    let links = network.bridge().enter(|| Ok(links::list()?)).unwrap();
    let link = links.iter().find(|link| link.name == name);
    link.unwrap_or_else(|| panic!("no {name}")).index
}

#[test]
fn a_workloads_veth_is_found_with_its_mac_and_all_its_addresses() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(60).unwrap();
    let first = network.join("first", 10).unwrap();
    let second = network.join("second", 20).unwrap();
    first
        .ip(&["link", "set", "eth0", "address", "02:00:00:00:00:0a"])
        .unwrap();
    for (netns, host) in [(&first, 10), (&second, 20)] {
        let found = covered(&network, netns);
        assert_eq!(found.host_name, format!("p{host}"));
        assert_eq!(
            found.host_index,
            index_on_bridge(&network, &found.host_name)
        );
        assert_eq!(found.inside_name, "eth0");
        for address in [
            IpAddr::from(network.ipv4(host)),
            IpAddr::from(network.ipv6(host)),
        ] {
            assert!(found.addresses.contains(&address), "{found:?}");
        }
        let link_local = |address: &IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        assert!(found.addresses.iter().any(link_local), "{found:?}");
        assert_eq!(find(&network, netns).cookie, netns.cookie().unwrap());
    }
    let (first, second) = (covered(&network, &first), covered(&network, &second));
    assert_eq!(first.mac, [2, 0, 0, 0, 0, 10]);
    assert_eq!(
        first.inside_index, second.inside_index,
        "only the namespace tells"
    );
}

#[test]
fn a_renamed_interface_is_still_found_and_a_new_one_has_its_own_index() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(61).unwrap();
    let workload = network.join("workload", 10).unwrap();
    let bridge = network.bridge();
    let before = covered(&network, &workload);
    bridge.ip(&["link", "set", "p10", "down"]).unwrap();
    bridge
        .ip(&["link", "set", "p10", "name", "renamed"])
        .unwrap();
    workload.ip(&["link", "set", "eth0", "down"]).unwrap();
    workload
        .ip(&["link", "set", "eth0", "name", "net1"])
        .unwrap();
    let renamed = covered(&network, &workload);
    assert_eq!(renamed.host_index, before.host_index);
    assert_eq!(
        (renamed.host_name.as_str(), renamed.inside_name.as_str()),
        ("renamed", "net1")
    );

    bridge.ip(&["link", "delete", "renamed"]).unwrap();
    assert_eq!(coverage(&network, &workload), []);
    let peer = ["peer", "name", "eth0", "netns", workload.name()];
    let link = ["link", "add", "p10", "type", "veth"];
    bridge.ip(&[&link[..], &peer].concat()).unwrap();
    let again = covered(&network, &workload);
    assert_ne!(again.host_index, before.host_index);
    assert_eq!(again.host_index, index_on_bridge(&network, "p10"));
}

#[test]
fn what_has_no_host_side_is_uncovered_and_says_why() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(62).unwrap();
    let workload = network.join("workload", 10).unwrap();
    let other = sandbox.netns("other").unwrap();
    let bridge = network.bridge();
    let into = ["netns", workload.name()];
    // Below the node's bridge, past every port.
    let macvlan = ["link", "add", "mv0", "link", "br0"];
    let kind = ["type", "macvlan", "mode", "bridge"];
    bridge.ip(&[&macvlan[..], &into, &kind].concat()).unwrap();
    // Between two others, and with both ends inside.
    let elsewhere = ["link", "add", "el0", "type", "veth", "peer", "name", "x"];
    other.ip(&[&elsewhere[..], &into].concat()).unwrap();
    workload
        .ip(&["link", "add", "in0", "type", "veth", "peer", "name", "in1"])
        .unwrap();
    let inner = ["link", "add", "in2", "link", "in0", "type", "macvlan"];
    workload.ip(&inner).unwrap();

    let found = coverage(&network, &workload);
    assert_eq!(
        why_not(&found, "mv0"),
        "mv0 is a macvlan: it has no host side"
    );
    let x = "the other end of x is in another namespace than the agent";
    assert_eq!(why_not(&found, "x"), x);
    for inside in ["in0", "in1", "in2"] {
        let is_internal =
            |one: &Coverage| matches!(one, Coverage::Internal { name, .. } if name == inside);
        assert!(found.iter().any(is_internal), "{inside}: {found:?}");
    }
    let is_eth0 = |one: &Coverage| matches!(one, Coverage::Covered(c) if c.inside_name == "eth0");
    assert!(found.iter().any(is_eth0), "{found:?}");
    assert_eq!(found.len(), 6);
}

#[test]
fn the_nodes_own_namespace_is_known_and_a_missing_one_is_an_error_of_its_own() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(63).unwrap();
    let workload = network.join("workload", 10).unwrap();
    let paths = [
        network.bridge().path(),
        "/nowhere".into(),
        "/dev/null".into(),
        workload.path(),
    ];
    let found = network
        .bridge()
        .enter(|| Ok(interfaces::find(&paths)?))
        .unwrap();
    let node = found[0].as_ref().unwrap();
    assert_eq!(node.interfaces, Interfaces::Node);
    assert_eq!(node.cookie, network.bridge().cookie().unwrap());
    for missing in &found[1..3] {
        missing.as_ref().unwrap_err();
    }
    assert!(matches!(
        &found[3].as_ref().unwrap().interfaces,
        Interfaces::Workload(coverage) if matches!(coverage[..], [Coverage::Covered(_)])
    ));
}

/// Runs a watch in the bridge's namespace; what `act` does, it must tell. The
/// limit is for the telling: however long `act` takes, nobody reads meanwhile.
fn watched<T: Send>(
    network: &Network,
    act: impl FnOnce() + Send,
    mut until: impl FnMut(&Change) -> Option<T> + Send,
) -> T {
    let mut told = async |mut watch: Watch| loop {
        for change in watch.next().await? {
            if let Some(found) = until(&change) {
                return anyhow::Ok(found);
            }
        }
    };
    let watch = async {
        let watch = Watch::open()?;
        act();
        tokio::time::timeout(scaled(PATIENT), told(watch)).await?
    };
    network
        .bridge()
        .enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(watch)
        })
        .unwrap()
}

#[test]
fn a_new_link_a_new_name_and_a_removed_link_are_told() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(64).unwrap();
    let bridge = network.bridge();
    let named = |wanted: &'static str| {
        move |change: &Change| match change {
            Change::Link { index, name } if name == wanted => Some(*index),
            _ => None,
        }
    };
    let add = || network.join("workload", 10).map(drop).unwrap();
    let index = watched(&network, add, named("p10"));
    assert_eq!(index, index_on_bridge(&network, "p10"));
    let rename = || {
        bridge.ip(&["link", "set", "p10", "down"]).unwrap();
        bridge.ip(&["link", "set", "p10", "name", "new"]).unwrap();
    };
    assert_eq!(watched(&network, rename, named("new")), index);

    // A port that leaves the bridge is not gone.
    let off = || {
        bridge.ip(&["link", "set", "new", "nomaster"]).unwrap();
        bridge.ip(&["link", "add", "end", "type", "veth"]).unwrap();
    };
    let mut told = Vec::new();
    watched(&network, off, |change| {
        told.push(change.clone());
        named("end")(change)
    });
    let gone = told.iter().any(|one| matches!(one, Change::Gone { .. }));
    assert!(!gone, "{told:?}");

    let delete = || bridge.ip(&["link", "delete", "new"]).unwrap();
    let gone = watched(&network, delete, |change| match change {
        Change::Gone { index, name } => Some((*index, name.clone())),
        _ => None,
    });
    assert_eq!(gone, (index, "new".to_owned()));
}

#[test]
fn a_namespace_that_gets_a_number_is_told() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(65).unwrap();
    let other = sandbox.netns("other").unwrap();
    let number = ["netns", "set", other.name(), "77"];
    watched(
        &network,
        || network.bridge().ip(&number).unwrap(),
        |change| (*change == Change::Namespaces).then_some(()),
    );
}

#[test]
fn more_changes_than_the_buffer_holds_are_an_overrun_and_it_goes_on() {
    let sandbox = Sandbox::new().unwrap();
    let network = sandbox.network(66).unwrap();
    let flood = || {
        let mut ip = Command::new("ip")
            .args(["-n", network.bridge().name(), "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = String::new();
        for number in 0..4000 {
            lines += &format!("link set br0 alias a{number}\n");
        }
        ip.stdin
            .take()
            .unwrap()
            .write_all(lines.as_bytes())
            .unwrap();
        assert!(ip.wait().unwrap().success());
    };
    let mut overrun = false;
    let bridge = network.bridge();
    watched(&network, flood, |change| {
        if *change == Change::Overrun {
            overrun = true;
            let dummy = ["link", "add", "after", "type", "veth"];
            bridge.ip(&dummy).unwrap();
        }
        let is_after = matches!(change, Change::Link { name, .. } if name == "after");
        (overrun && is_after).then_some(())
    });
}
